"""Protocol B: the box around the heatmap's largest component, on the full-size image."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

from benchmarks.datasets.preprocess import to_tensor
from benchmarks.datasets.records import ImageRecord, clip_box, load_mask, load_rgb
from benchmarks.metrics.boxes import iou
from benchmarks.metrics.floors import centre_box, uniform_heatmap, whole_image_box
from benchmarks.metrics.localization import PAPER_THRESHOLD, THRESHOLDS, threshold_sweep
from benchmarks.metrics.pixel_counts import pack_counts
from benchmarks.metrics.pxap import pixel_histograms
from benchmarks.protocols.protocol import Embed, Frame, Measures, centred_heatmap, pointing

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


class BoxProtocol:
    """B: full-size image; IoU of the box around the heatmap's largest component.

    ``predicted`` is that box (x0, y0, x1, y1) at the paper's threshold; all 0 for an empty map.
    And, from the same full-size heatmap: the pointing game, and the pixel histograms of PxAP for
    images with a mask.
    """

    name = "boxes"
    shows = "boxes"
    title = "weakly supervised localization on the full-size image"

    def show(self, image: Image.Image) -> Tensor:
        return to_tensor(image)

    def frame(self, record: ImageRecord) -> Frame | None:
        image = load_rgb(record)
        mask = None if record.mask_path is None else load_mask(record, image.size)
        return Frame(self.show(image), clip_box(record.box, *image.size, record.key), mask)

    def measure(self, heatmap: np.ndarray, frame: Frame, embed: Embed | None = None) -> Measures:
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
