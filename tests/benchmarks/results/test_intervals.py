from typing import Any

import numpy as np
import pytest

from benchmarks.metrics.bootstrap import bootstrap_interval, paired_difference
from benchmarks.metrics.localization import THRESHOLDS
from benchmarks.results.intervals import main_method, with_intervals
from benchmarks.results.summary import summarize

RESAMPLES = 300
AT = int(np.argmin(np.abs(THRESHOLDS - 0.2)))
BAND = (THRESHOLDS > 0.149) & (THRESHOLDS < 0.251)


def enriched(results: dict[str, Any], main: str | None = "ours_recommended") -> Any:
    plain = summarize(results["images"], ["ours_recommended", "layer_grad_cam", "centre_box"])
    return with_intervals(plain, results["images"], main, num_resamples=RESAMPLES)


def values(results: dict[str, Any], name: str, figure: str, protocol: str) -> np.ndarray:
    return np.array(
        [
            image["protocols"][protocol]["methods"][name][figure]
            for image in results["images"]
            if "methods" in image["protocols"][protocol]
        ]
    )


def correct(results: dict[str, Any], name: str, figure: str = "iou", delta: float = 0.5) -> Any:
    return values(results, name, figure, "boxes") >= 10_000 * delta


def test_the_interval_of_a_score_is_the_bootstrap_s(results: dict[str, Any]) -> None:
    found = enriched(results)["layer_grad_cam"]["attention"]
    scores = values(results, "layer_grad_cam", "score", "attention")
    assert len(scores) == found["num_images"] == 11
    by_hand = bootstrap_interval(scores, num_resamples=RESAMPLES)
    assert found["intervals"]["score"] == [float(by_hand.low), float(by_hand.high)]
    assert found["intervals"]["score"][0] < found["score"] < found["intervals"]["score"][1]


@pytest.mark.parametrize(
    ("figure", "statistic"),
    [
        ("accuracy_at_0.2", lambda means: means[:, AT]),
        ("mean_accuracy_0.15_to_0.25", lambda means: means[:, BAND].mean(axis=1)),
        ("max_box_acc", lambda means: means.max(axis=1)),
    ],
)
def test_the_intervals_and_differences_of_accuracies_are_the_bootstrap_s(
    results: dict[str, Any], figure: str, statistic: Any
) -> None:
    found = enriched(results)["layer_grad_cam"]["boxes"]
    theirs, ours = (correct(results, name) for name in ("layer_grad_cam", "ours_recommended"))
    interval = bootstrap_interval(theirs, statistic, num_resamples=RESAMPLES)
    assert found["intervals"][figure] == pytest.approx([interval.low, interval.high])
    difference = paired_difference(theirs, ours, statistic, num_resamples=RESAMPLES)
    assert found["difference"][figure] == pytest.approx(difference.as_floats())
    assert found["difference"][figure][0] < 0


def test_the_curve_s_band_is_the_bootstrap_of_every_threshold(results: dict[str, Any]) -> None:
    low, high = enriched(results)["layer_grad_cam"]["boxes"]["intervals"]["accuracy_curve"]
    band = bootstrap_interval(correct(results, "layer_grad_cam"), num_resamples=RESAMPLES)
    np.testing.assert_allclose(low, band.low, atol=1e-5)
    assert np.max(np.subtract(high, low)) > 0.3
    np.testing.assert_allclose(high, band.high, atol=1e-5)


def test_the_interval_of_max_box_acc_v2_picks_a_threshold_for_each_delta(
    results: dict[str, Any],
) -> None:
    deltas = [correct(results, "layer_grad_cam", "best_iou", delta) for delta in (0.3, 0.5, 0.7)]
    by_hand = bootstrap_interval(
        np.stack(deltas, axis=1), lambda m: m.max(axis=-1).mean(axis=-1), num_resamples=RESAMPLES
    )
    found = enriched(results)["layer_grad_cam"]["boxes"]["intervals"]["max_box_acc_v2"]
    assert found == pytest.approx([by_hand.low, by_hand.high])


def test_the_main_method_has_no_difference_to_itself(results: dict[str, Any]) -> None:
    found = enriched(results)
    assert "difference" not in found["ours_recommended"]["boxes"]
    assert found["centre_box"]["boxes"]["difference"]["num_images"] == 12


def test_a_difference_is_over_the_images_that_both_methods_have(results: dict[str, Any]) -> None:
    for image in results["images"][:4]:
        del image["protocols"]["boxes"]["methods"]["ours_recommended"]
    found = enriched(results)["layer_grad_cam"]["boxes"]
    assert found["num_images"] == 12
    assert found["difference"]["num_images"] == 8
    common = {"images": results["images"][4:]}
    theirs, ours = (correct(common, name) for name in ("layer_grad_cam", "ours_recommended"))
    expected = theirs[:, AT].mean() - ours[:, AT].mean()
    assert found["difference"]["accuracy_at_0.2"][0] == pytest.approx(expected)


def test_masks_of_some_images_are_paired_with_the_same_masks(results: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    masked = [image for image in results["images"] if "methods" in image["protocols"]["attention"]]
    for image in masked[:5]:
        for measures in image["protocols"]["attention"]["methods"].values():
            measures["mask_score"] = float(rng.uniform())
    found = enriched(results)
    scores = {
        name: [i["protocols"]["attention"]["methods"][name]["mask_score"] for i in masked[:5]]
        for name in ("layer_grad_cam", "ours_recommended")
    }
    interval = bootstrap_interval(scores["layer_grad_cam"], num_resamples=RESAMPLES)
    attention = found["layer_grad_cam"]["attention"]
    assert attention["intervals"]["mask_score"] == [float(interval.low), float(interval.high)]
    difference = paired_difference(*scores.values(), num_resamples=RESAMPLES)
    assert attention["difference"]["mask_score"] == pytest.approx(difference.as_floats())


def test_without_a_main_method_there_are_no_differences(results: dict[str, Any]) -> None:
    found = enriched(results, None)
    assert all("difference" not in p for protocols in found.values() for p in protocols.values())
    assert found["layer_grad_cam"]["boxes"]["intervals"]


def test_intervals_are_the_same_each_time_and_leave_the_summary_alone(
    results: dict[str, Any],
) -> None:
    plain = summarize(results["images"], ["layer_grad_cam"])
    before = repr(plain)
    assert enriched(results) == enriched(results)
    with_intervals(plain, results["images"], "layer_grad_cam", num_resamples=10)
    assert repr(plain) == before


@pytest.mark.parametrize(
    ("names", "main"),
    [
        (["ours_gradient", "ours_transfer", "ours_recommended"], "ours_recommended"),
        (["ours_gradient", "ours_transfer_absolute", "ours_transfer"], "ours_transfer_absolute"),
        (["ours_gradient_50"], "ours_gradient_50"),
        (["saliency"], None),
    ],
)
def test_the_main_method_is_the_recommended_transfer_or_the_next_best_of_ours(
    names: list[str], main: str | None
) -> None:
    methods = [{"name": n, "family": "ours" if n.startswith("ours") else "rival"} for n in names]
    assert main_method(methods) == main


def test_a_method_that_cannot_serve_the_network_is_not_the_main_one() -> None:
    methods = [
        {"name": "ours_recommended", "family": "ours", "unavailable": "no bank"},
        {"name": "ours_gradient_1", "family": "ours", "unavailable": None},
    ]
    assert main_method(methods) == "ours_gradient_1"
