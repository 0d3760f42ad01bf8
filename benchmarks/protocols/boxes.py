"""Protocol B: the box around the heatmap's largest component, on the full-size image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks.datasets.preprocess import to_tensor
from benchmarks.datasets.records import ImageRecord, clip_box, load_mask, load_rgb
from benchmarks.metrics.bootstrap import of_mean
from benchmarks.metrics.boxes import iou
from benchmarks.metrics.figures import Curve, Figure
from benchmarks.metrics.floors import centre_box, uniform_heatmap, whole_image_box
from benchmarks.metrics.localization import (
    PAPER_BAND,
    PAPER_THRESHOLD,
    THRESHOLDS,
    V2_DELTAS,
    band,
    is_correct,
    threshold_sweep,
)
from benchmarks.metrics.pxap import pack_counts, pixel_histograms, pxap, unpack_counts
from benchmarks.protocols.protocol import (
    Embed,
    EvaluationProtocol,
    Frame,
    Measures,
    centred_heatmap,
    pointing,
    pointing_figures,
)

# IoU values are kept as whole ten-thousandths, rounded down: short in JSON, and on the right side
# of every threshold that is itself a whole number of them (0.3, 0.5, 0.7).
IOU_UNIT = 10_000
AT_PAPER = int(np.argmin(np.abs(THRESHOLDS - PAPER_THRESHOLD)))


def ten_thousandths(values: np.ndarray) -> list[int]:
    """Values in [0, 1] as integers, rounded down.

    Example:
        >>> ten_thousandths(np.array([0.3, 0.5, 0.49999999, 0.7, 1.0]))
        [3000, 5000, 4999, 7000, 10000]
    """
    return [int(value) for value in np.floor(values * IOU_UNIT)]


def overlaps(measures: Mapping[str, Any], kind: str = "iou") -> NDArray[np.float64]:
    """IoU of one image at each threshold, (99,); a floor has one for all."""
    return np.broadcast_to(np.asarray(measures[kind]) / IOU_UNIT, THRESHOLDS.shape)


def correct(measures: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Whether the box is right at each threshold, (99,)."""
    return is_correct(overlaps(measures)[None])[0]


def _correct_v2(measures: Mapping[str, Any]) -> NDArray[np.bool_]:
    best = overlaps(measures, "best_iou")[None]
    return np.concatenate([is_correct(best, delta) for delta in V2_DELTAS])


def _mean_correct(low: float, high: float) -> Callable[[Mapping[str, Any]], float]:
    inside = band(low, high, THRESHOLDS, len(THRESHOLDS))
    return lambda measures: float(correct(measures)[inside].mean())


def _best_threshold(values: NDArray[np.float64]) -> float:
    """The lowest of several as good."""
    return float(THRESHOLDS[int(np.argmax(values.mean(axis=0)))])


def _histograms(measures: Mapping[str, Any]) -> NDArray[np.int64] | None:
    return unpack_counts(measures["pixel_counts"]) if measures.get("pixel_counts") else None


FIGURES = (
    Figure(
        "accuracy_at_0.2", "IoU≥0.5 at τ=0.2",
        "Images whose box at the paper's threshold overlaps the true one by IoU 0.5 or more, %",
        "higher", _mean_correct(PAPER_THRESHOLD, PAPER_THRESHOLD), lead=True,
    ),
    Figure(
        "mean_accuracy_0.15_to_0.25", "mean τ 0.15-0.25",
        "Accuracy averaged over the thresholds from 0.15 to 0.25, %", "higher",
        _mean_correct(*PAPER_BAND),
    ),
    Figure(
        "max_box_acc", "MaxBoxAcc (τ)",
        "Accuracy at the threshold that is best for the whole data set, %", "higher",
        correct, of_mean(lambda curves: curves.max(axis=-1)), at=("threshold", _best_threshold),
    ),
    Figure(
        "max_box_acc_v2", "MaxBoxAccV2",
        "The same with the best of all components, mean over IoU 0.3, 0.5 and 0.7, %", "higher",
        _correct_v2, of_mean(lambda curves: curves.max(axis=-1).mean(axis=-1)),
    ),
    Figure(
        "pxap", "PxAP", "Average precision of the full-size maps' pixels against the masks, %",
        "higher", _histograms, of_mean(pxap), masked=True,
    ),
    *pointing_figures("Full-size maps"),
)  # fmt: skip
CURVES = (Curve("accuracy", tuple(THRESHOLDS.tolist()), correct),)


class BoxProtocol(EvaluationProtocol):
    """B: full-size image; IoU of the box around the heatmap's largest component.

    ``predicted`` is that box (x0, y0, x1, y1) at the paper's threshold; all 0 for an empty map.
    And, from the same full-size heatmap: the pointing game, and the pixel histograms of PxAP for
    images with a mask.
    """

    name = "boxes"
    shows = "boxes"
    title = "weakly supervised localization on the full-size image"
    figures = FIGURES
    curves = CURVES

    def show(self, image: Image.Image) -> Tensor:
        return to_tensor(image)

    def frame(self, item: ImageRecord) -> Frame | None:
        image = load_rgb(item)
        mask = None if item.mask_path is None else load_mask(item, image.size)
        return Frame(self.show(image), clip_box(item.box, *image.size, item.key), mask)

    def measure(
        self, heatmaps: Sequence[np.ndarray], frame: Frame, embed: Embed | None = None
    ) -> Measures:
        (heatmap,) = heatmaps
        sweep = threshold_sweep(heatmap, frame.box)
        return {
            "empty": bool(sweep.empty),
            "predicted": sweep.boxes[AT_PAPER].tolist(),
            "iou": ten_thousandths(sweep.iou),
            "best_iou": ten_thousandths(sweep.best_iou),
            **_pixels(heatmap, frame),
        }

    def floors(self, frame: Frame, embed: Embed | None = None) -> dict[str, Measures]:
        height, width = frame.size
        floors = {
            "centre_box": (centre_box(width, height), centred_heatmap(frame.size)),
            "whole_image": (whole_image_box(width, height), uniform_heatmap(width, height)),
        }
        measures = {}
        for name, (box, heatmap) in floors.items():
            overlap = ten_thousandths(iou(np.array([box]), frame.box))
            ious = {"empty": False, "iou": overlap, "best_iou": overlap}
            measures[name] = {**ious, **_pixels(heatmap, frame)}
        return measures


def _pixels(heatmap: np.ndarray, frame: Frame) -> Measures:
    measures = pointing(heatmap, frame)
    if frame.mask is not None:
        measures["pixel_counts"] = pack_counts(pixel_histograms(heatmap, frame.mask))
    return measures
