"""How an image is shown to the network, and how its heatmap is scored: the two protocols."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from benchmarks.datasets.preprocess import (
    resize_center_crop,
    resize_center_crop_mask,
    resize_crop_box,
    to_tensor,
)
from benchmarks.datasets.records import (
    Box,
    ImageRecord,
    clip_box,
    load_mask,
    load_rgb,
)
from benchmarks.metrics.attention import attention_score, attention_score_mask
from benchmarks.metrics.boxes import iou
from benchmarks.metrics.floors import centre_box, uniform_heatmap, whole_image_box
from benchmarks.metrics.localization import threshold_sweep

# IoU values are kept as whole ten-thousandths, rounded down: short in JSON, and on the right side
# of every threshold that is itself a whole number of them (0.3, 0.5, 0.7).
IOU_UNIT = 10_000

Measures = dict[str, Any]


@dataclass(frozen=True)
class Frame:
    """One image as a protocol shows it.

    Args:
        image (Tensor): (3, H, W), normalised.
        box (Box): ground truth in this frame's pixels.
        mask (np.ndarray, optional): ground truth (H, W), bool.
    """

    image: Tensor
    box: Box
    mask: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.shape[1], self.image.shape[2]


class EvaluationProtocol(Protocol):
    name: str
    title: str

    def show(self, image: Image.Image) -> Tensor:
        """The image (3, H, W) as the network sees it."""

    def frame(self, record: ImageRecord) -> Frame | None:
        """The image with its ground truth; None where there is nothing to find in the frame."""

    def measure(self, heatmap: np.ndarray, frame: Frame) -> Measures:
        """What is kept of a heatmap (H, W)."""

    def floors(self, frame: Frame) -> dict[str, Measures]:
        """The same of what needs no network, by name."""


def ten_thousandths(values: np.ndarray) -> list[int]:
    """Values in [0, 1] as integers, rounded down.

    Example:
        >>> ten_thousandths(np.array([0.3, 0.5, 0.49999999, 0.7, 1.0]))
        [3000, 5000, 4999, 7000, 10000]
    """
    return [int(value) for value in np.floor(values * IOU_UNIT)]


class AttentionProtocol:
    """A: shorter side to 256, centre crop of 224; the share of the heatmap in the box."""

    name = "attention"
    title = "visual attention score on the 224 crop"

    def show(self, image: Image.Image) -> Tensor:
        return to_tensor(resize_center_crop(image))

    def frame(self, record: ImageRecord) -> Frame | None:
        image = load_rgb(record)
        box = resize_crop_box(clip_box(record.box, *image.size, record.key), *image.size)
        if box is None:
            return None
        return Frame(self.show(image), box, self._mask(record, image.size))

    def _mask(self, record: ImageRecord, size: tuple[int, int]) -> np.ndarray | None:
        if record.mask_path is None:
            return None
        inside = resize_center_crop_mask(load_mask(record, size))
        return inside if inside.any() else None

    def measure(self, heatmap: np.ndarray, frame: Frame) -> Measures:
        measures = {
            "empty": not heatmap.max() > 0,
            "score": float(attention_score(heatmap, frame.box)),
        }
        if frame.mask is not None:
            measures["mask_score"] = float(attention_score_mask(heatmap, frame.mask))
        return measures

    def floors(self, frame: Frame) -> dict[str, Measures]:
        height, width = frame.size
        centred = np.zeros(frame.size, dtype=np.float32)
        x0, y0, x1, y1 = (round(side) for side in centre_box(width, height))
        centred[y0:y1, x0:x1] = 1
        return {
            "centre_box": self.measure(centred, frame),
            "uniform_heatmap": self.measure(uniform_heatmap(width, height), frame),
        }


class BoxProtocol:
    """B: full-size image; IoU of the box around the heatmap's largest component."""

    name = "boxes"
    title = "weakly supervised localization on the full-size image"

    def show(self, image: Image.Image) -> Tensor:
        return to_tensor(image)

    def frame(self, record: ImageRecord) -> Frame | None:
        image = load_rgb(record)
        return Frame(self.show(image), clip_box(record.box, *image.size, record.key))

    def measure(self, heatmap: np.ndarray, frame: Frame) -> Measures:
        sweep = threshold_sweep(heatmap, frame.box)
        return {
            "empty": bool(sweep.empty),
            "iou": ten_thousandths(sweep.iou),
            "best_iou": ten_thousandths(sweep.best_iou),
        }

    def floors(self, frame: Frame) -> dict[str, Measures]:
        height, width = frame.size
        boxes = {
            "centre_box": centre_box(width, height),
            "whole_image": whole_image_box(width, height),
        }
        overlaps = {name: ten_thousandths(iou(np.array([box]), frame.box))
                    for name, box in boxes.items()}  # fmt: skip
        return {
            name: {"empty": False, "iou": overlap, "best_iou": overlap}
            for name, overlap in overlaps.items()
        }


PROTOCOLS: dict[str, EvaluationProtocol] = {
    protocol.name: protocol for protocol in (AttentionProtocol(), BoxProtocol())
}
