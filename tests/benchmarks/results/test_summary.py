from typing import Any

import numpy as np
import pytest

from benchmarks.metrics.pixel_counts import pack_counts
from benchmarks.results.summary import counts, overlaps, summarize


def image(ious: list[int], score: float, **more: Any) -> dict[str, Any]:
    """A record whose heatmap has one IoU (percent) up to tau = 0.5 and another above."""
    curve = [ious[0] * 100] * 50 + [ious[1] * 100] * 49
    # Of all components one is better than the largest, by 10 percent.
    best = [min(iou + 1000, 10_000) for iou in curve]
    boxes = {"iou": curve, "best_iou": best, "empty": False, "seconds": 0.25, **more}
    floor = {"iou": [6000], "best_iou": [6000], "empty": False}
    attention = {"score": score, "empty": score == 0, "seconds": 0.5}
    return {
        "key": str(ious),
        "protocols": {
            "boxes": {"methods": {"a": boxes}, "floors": {"centre_box": floor}},
            "attention": {"methods": {"a": attention}, "floors": {}},
        },
    }


RECORDS = [image([50, 80], 0.5), image([49, 70], 0.25), image([90, 10], 0.0)]


def test_figures_are_means_over_images() -> None:
    boxes = summarize(RECORDS, ["a"])["a"]["boxes"]
    assert boxes["accuracy_at_0.2"] == pytest.approx(2 / 3)
    assert boxes["mean_accuracy_0.15_to_0.25"] == pytest.approx(2 / 3)
    assert boxes["max_box_acc"] == pytest.approx(2 / 3)
    assert boxes["max_box_acc_threshold"] == 0.01
    # All components (60, 59 and 100 percent, or 90, 80 and 20), deltas 0.3, 0.5 and 0.7: at
    # their best thresholds 3, 3 and 2 of three images.
    assert boxes["max_box_acc_v2"] == pytest.approx((3 + 3 + 2) / 9)
    assert boxes["accuracy_curve"] == [0.66667] * 99
    assert boxes["median_seconds"] == 0.25


def test_an_empty_map_scores_nothing_and_is_counted() -> None:
    attention = summarize(RECORDS, ["a"])["a"]["attention"]
    assert attention["score"] == pytest.approx(0.25)
    assert attention["num_empty"] == 1
    assert attention["num_images"] == 3
    assert attention["mask_score"] is None


def test_a_floor_has_one_value_for_all_thresholds() -> None:
    floor = summarize(RECORDS, ["centre_box"])["centre_box"]
    assert floor["boxes"]["accuracy_curve"] == [1.0] * 99
    assert floor["boxes"]["median_seconds"] is None
    assert "attention" not in floor


def test_images_that_a_protocol_could_not_show_are_not_in_its_mean() -> None:
    left_out = {"key": "x", "protocols": {"attention": {"left_out": "box outside"}}}
    unreadable = {"key": "y", "unreadable": "truncated"}
    records = [*RECORDS, left_out, unreadable]
    assert summarize(records, ["a"]) == summarize(RECORDS, ["a"])
    assert counts(records, ["attention", "boxes"], unreadable=2) == {
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


def test_overlaps_are_in_units_of_one() -> None:
    found = overlaps([{"iou": [5000]}, {"iou": list(range(99))}])
    assert found.shape == (2, 99)
    assert (found[0] == 0.5).all()
    np.testing.assert_allclose(found[1], np.arange(99) / 10_000)


def test_pxap_is_that_of_all_pixels_together() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, (3, 2, 1001))
    records = [image([50, 80], 0.5, pointing=1.0, pixel_counts=pack_counts(c)) for c in counts]
    # One without a mask is in the other figures only.
    found = summarize([*records, image([50, 80], 0.5, pointing=0.0)], ["a"])["a"]["boxes"]
    values = np.repeat(np.tile(np.arange(1001), 6), counts.ravel())
    on_object = np.repeat(np.tile([True, False], 3).repeat(1001), counts.ravel())
    assert found["pxap"] == pytest.approx(average_precision(values, on_object))
    assert found["num_masks"] == 3
    assert found["pointing"] == 0.75
    assert found["mask_pointing"] is None


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
    found = summarize(records, ["a"])["a"]["faithfulness"]
    assert (found["deletion"], found["insertion"]) == (0.5, 0.5)
    assert found["deletion_curve"] == [1.0, 0.5]
    assert found["num_images"] == 2
