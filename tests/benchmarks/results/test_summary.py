from itertools import count
from typing import Any

import numpy as np
import pytest

from benchmarks.metrics.bootstrap import bootstrap_interval, paired_difference
from benchmarks.metrics.localization import THRESHOLDS
from benchmarks.metrics.pxap import pack_counts
from benchmarks.results.images import ImageTable, Record
from benchmarks.results.summary import Summary, main_method
from benchmarks.results.summary import summarize as summarize_table

RESAMPLES = 300
AT = int(np.argmin(np.abs(THRESHOLDS - 0.2)))
BAND = (THRESHOLDS > 0.149) & (THRESHOLDS < 0.251)


def summarize(records: list[Record], names: list[str], main: str | None = None) -> Summary:
    return summarize_table(ImageTable.from_records(records), names, main, num_resamples=RESAMPLES)


KEYS = count()


def image(ious: list[int], score: float, **more: Any) -> dict[str, Any]:
    """A record whose heatmap has one IoU (percent) up to tau = 0.5 and another above."""
    curve = [ious[0] * 100] * 50 + [ious[1] * 100] * 49
    # Of all components one is better than the largest, by 10 percent.
    best = [min(iou + 1000, 10_000) for iou in curve]
    boxes = {"iou": curve, "best_iou": best, "empty": False, "seconds": 0.25, **more}
    floor = {"iou": [6000], "best_iou": [6000], "empty": False}
    attention = {"score": score, "empty": score == 0, "seconds": 0.5}
    return {
        "key": f"{next(KEYS):05}",
        "protocols": {
            "boxes": {"methods": {"a": boxes}, "floors": {"centre_box": floor}},
            "attention": {"methods": {"a": attention}, "floors": {}},
        },
    }


RECORDS = [image([50, 80], 0.5), image([49, 70], 0.25), image([90, 10], 0.0)]


def values(numbers: dict[str, Any]) -> dict[str, float]:
    return {key: figure["value"] for key, figure in numbers["figures"].items()}


def test_figures_are_means_over_images() -> None:
    numbers = summarize(RECORDS, ["a"])["a"]["boxes"]
    boxes = values(numbers)
    assert boxes["accuracy_at_0.2"] == pytest.approx(2 / 3)
    assert boxes["mean_accuracy_0.15_to_0.25"] == pytest.approx(2 / 3)
    assert boxes["max_box_acc"] == pytest.approx(2 / 3)
    assert numbers["figures"]["max_box_acc"]["threshold"] == 0.01
    # All components (60, 59 and 100 percent, or 90, 80 and 20), deltas 0.3, 0.5 and 0.7: at
    # their best thresholds 3, 3 and 2 of three images.
    assert boxes["max_box_acc_v2"] == pytest.approx((3 + 3 + 2) / 9)
    assert numbers["curves"]["accuracy"]["x"] == THRESHOLDS.tolist()
    assert numbers["curves"]["accuracy"]["y"] == [0.66667] * 99
    assert numbers["median_seconds"] == 0.25


def test_an_empty_map_scores_nothing_and_is_counted() -> None:
    attention = summarize(RECORDS, ["a"])["a"]["attention"]
    assert values(attention) == {"score": 0.25}
    assert attention["num_empty"] == 1
    assert attention["num_images"] == 3


def test_a_floor_has_one_value_for_all_thresholds() -> None:
    floor = summarize(RECORDS, ["centre_box"])["centre_box"]
    assert floor["boxes"]["curves"]["accuracy"]["y"] == [1.0] * 99
    assert floor["boxes"]["median_seconds"] is None
    assert "attention" not in floor


def test_images_that_a_protocol_could_not_show_are_not_in_its_mean() -> None:
    left_out = {"key": "x", "protocols": {"attention": {"left_out": "box outside"}}}
    unreadable = {"key": "y", "unreadable": "truncated"}
    records = [*RECORDS, left_out, unreadable]
    assert summarize(records, ["a"]) == summarize(RECORDS, ["a"])
    assert ImageTable.from_records(records).counts(["attention", "boxes"], unreadable=2) == {
        "images": 5,
        "unreadable": 3,
        "measured": {"attention": 3, "boxes": 3},
        "left_out": {"attention": 1, "boxes": 0},
    }


def test_maps_that_were_not_finite_are_counted() -> None:
    records = [*RECORDS, image([0, 0], 0.0, not_finite=True)]
    assert summarize(records, ["a"])["a"]["boxes"]["num_not_finite"] == 1


def test_no_image_at_all_gives_no_numbers() -> None:
    assert summarize([], ["a"]) == {"a": {}}


def test_pxap_is_that_of_all_pixels_together() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, (3, 2, 1001))
    records = [image([50, 80], 0.5, pointing=1.0, pixel_counts=pack_counts(c)) for c in counts]
    # One without a mask is in the other figures only.
    numbers = summarize([*records, image([50, 80], 0.5, pointing=0.0)], ["a"])["a"]["boxes"]
    pixels = np.repeat(np.tile(np.arange(1001), 6), counts.ravel())
    on_object = np.repeat(np.tile([True, False], 3).repeat(1001), counts.ravel())
    precision = average_precision(pixels, on_object)
    assert numbers["figures"]["pxap"]["value"] == pytest.approx(precision)
    assert numbers["num_masks"] == 3
    assert numbers["figures"]["pointing"]["value"] == 0.75
    assert "mask_pointing" not in numbers["figures"]


def average_precision(values: np.ndarray, on_object: np.ndarray) -> float:
    total, before = 0.0, 0.0
    for threshold in np.unique(values)[::-1]:
        passed = values >= threshold
        recall = on_object[passed].sum() / on_object.sum()
        total += on_object[passed].mean() * (recall - before)
        before = recall
    return total


def test_removal_curves_are_means_over_images() -> None:
    records = [
        {
            "key": str(area),
            "protocols": {
                "faithfulness": {
                    "methods": {
                        "a": {
                            "empty": False,
                            "deletion": area,
                            "insertion": 1 - area,
                            "deletion_curve": [1.0, area],
                            "insertion_curve": [area, 1.0],
                        }
                    },
                    "floors": {},
                }
            },
        }
        for area in (0.25, 0.75)
    ]
    numbers = summarize(records, ["a"])["a"]["faithfulness"]
    assert values(numbers) == {"deletion": 0.5, "insertion": 0.5}
    assert numbers["curves"]["deletion"]["y"] == [1.0, 0.5]
    assert numbers["num_images"] == 2


def drawn(count: int, *names: str) -> list[Record]:
    """Records of several methods with numbers drawn at random."""
    rng = np.random.default_rng(5)
    records = []
    for index in range(count):
        boxes, attention = {}, {}
        for quality, name in enumerate(names):
            ious = rng.integers(1000 * quality, 10_000, 99).tolist()
            boxes[name] = {"iou": ious, "best_iou": ious, "empty": False}
            attention[name] = {"score": float(rng.uniform()), "empty": False}
        protocols = {"boxes": boxes, "attention": attention}
        shown = {name: {"methods": of, "floors": {}} for name, of in protocols.items()}
        records.append({"key": f"{index:03}", "protocols": shown})
    return records


def measured(records: list[Record], protocol: str, name: str, measure: str) -> np.ndarray:
    methods = [record["protocols"][protocol]["methods"] for record in records]
    return np.array([of[name][measure] for of in methods if measure in of.get(name, {})])


@pytest.mark.parametrize(
    ("figure", "statistic"),
    [
        ("accuracy_at_0.2", lambda means: means[:, AT]),
        ("mean_accuracy_0.15_to_0.25", lambda means: means[:, BAND].mean(axis=1)),
        ("max_box_acc", lambda means: means.max(axis=1)),
    ],
)
def test_intervals_and_differences_are_the_bootstrap_s(figure: str, statistic: Any) -> None:
    records = drawn(12, "ours", "other")
    stated = summarize(records, ["ours", "other"], "ours")["other"]["boxes"]["figures"][figure]
    theirs, ours = (measured(records, "boxes", n, "iou") >= 5000 for n in ("other", "ours"))
    interval = bootstrap_interval(theirs, statistic, num_resamples=RESAMPLES)
    assert [stated[k] for k in ("value", "low", "high")] == pytest.approx(interval.as_floats())
    difference = paired_difference(theirs, ours, statistic, num_resamples=RESAMPLES)
    parts = ("difference", "difference_low", "difference_high")
    assert [stated[part] for part in parts] == pytest.approx(difference.as_floats())


def test_the_curve_s_band_is_the_bootstrap_of_every_threshold() -> None:
    records = drawn(12, "a")
    curve = summarize(records, ["a"])["a"]["boxes"]["curves"]["accuracy"]
    right = measured(records, "boxes", "a", "iou") >= 5000
    band = bootstrap_interval(right, num_resamples=RESAMPLES)
    np.testing.assert_allclose(curve["low"], band.low, atol=1e-5)
    np.testing.assert_allclose(curve["high"], band.high, atol=1e-5)
    assert np.max(np.subtract(curve["high"], curve["low"])) > 0.3


def test_a_difference_is_over_the_images_that_both_methods_have() -> None:
    records = drawn(12, "ours", "other")
    for record in records[:4]:
        del record["protocols"]["boxes"]["methods"]["ours"]
    numbers = summarize(records, ["ours", "other"], "ours")["other"]["boxes"]
    assert numbers["num_images"] == 12
    theirs, ours = (measured(records[4:], "boxes", n, "iou") for n in ("other", "ours"))
    expected = (theirs >= 5000)[:, AT].mean() - (ours >= 5000)[:, AT].mean()
    assert numbers["figures"]["accuracy_at_0.2"]["difference"] == pytest.approx(expected)


def test_masks_of_some_images_are_paired_with_the_same_masks() -> None:
    records = drawn(12, "ours", "other")
    rng = np.random.default_rng(3)
    for record in records[:5]:
        for measures in record["protocols"]["attention"]["methods"].values():
            measures["mask_score"] = float(rng.uniform())
    numbers = summarize(records, ["ours", "other"], "ours")["other"]["attention"]
    theirs, ours = (measured(records, "attention", n, "mask_score") for n in ("other", "ours"))
    interval = bootstrap_interval(theirs, num_resamples=RESAMPLES)
    difference = paired_difference(theirs, ours, num_resamples=RESAMPLES)
    assert list(numbers["figures"]["mask_score"].values()) == pytest.approx(
        [*interval.as_floats(), *difference.as_floats()]
    )
    assert numbers["num_masks"] == 5


def test_the_main_method_has_no_difference_to_itself() -> None:
    records = drawn(4, "ours", "other")
    summary = summarize(records, ["ours", "other"], "ours")
    assert "difference" not in summary["ours"]["boxes"]["figures"]["max_box_acc"]
    without = summarize(records, ["ours", "other"])
    assert "difference" not in without["other"]["boxes"]["figures"]["max_box_acc"]


def test_the_order_of_the_records_does_not_matter() -> None:
    records = drawn(8, "ours", "other")
    names = ["ours", "other"]
    assert summarize(records[::-1], names, "ours") == summarize(records, names, "ours")


@pytest.mark.parametrize(
    ("names", "main"),
    [
        (["ours_gradient", "ours_paper", "ours_localize"], "ours_localize"),
        (["ours_gradient", "ours_explain", "ours_paper"], "ours_gradient"),
        (["ours_gradient"], "ours_gradient"),
        (["saliency"], None),
    ],
)
def test_the_main_method_is_the_recipe_for_boxes_or_the_first_of_ours(
    names: list[str], main: str | None
) -> None:
    methods = [{"name": n, "family": "ours" if n.startswith("ours") else "rival"} for n in names]
    assert main_method(methods) == main


def test_a_method_that_cannot_serve_the_network_is_not_the_main_one() -> None:
    methods = [
        {"name": "ours_localize", "family": "ours", "unavailable": "no bank"},
        {"name": "ours_explain", "family": "ours", "unavailable": None},
    ]
    assert main_method(methods) == "ours_explain"
