"""How an image is shown to the network, and how its heatmap is scored: the two protocols."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

from benchmarks.datasets.preprocess import (
    resize_center_crop,
    resize_center_crop_mask,
    resize_crop_box,
    to_tensor,
)
from benchmarks.datasets.records import ImageRecord, clip_box, load_mask, load_rgb
from benchmarks.faithfulness import FaithfulnessProtocol
from benchmarks.metrics.attention import attention_score, attention_score_mask
from benchmarks.metrics.boxes import iou
from benchmarks.metrics.floors import centre_box, uniform_heatmap, whole_image_box
from benchmarks.metrics.localization import PAPER_THRESHOLD, THRESHOLDS, threshold_sweep
from benchmarks.metrics.pointing import pointing_game, pointing_game_mask
from benchmarks.metrics.pxap import pixel_histograms
from benchmarks.pixel_counts import pack_counts
from benchmarks.protocol_parts import (
    Embed,
    EvaluationProtocol,
    Frame,
    Measures,
    centred_heatmap,
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


def pointing(heatmap: np.ndarray, frame: Frame) -> Measures:
    """Whether the heatmap's maximum is on the object: its box, and its mask where there is one."""
    measures = {"pointing": pointing_game(heatmap, frame.box)}
    if frame.mask is not None:
        measures["mask_pointing"] = pointing_game_mask(heatmap, frame.mask)
    return measures


class AttentionProtocol:
    """A: shorter side to 256, centre crop of 224; the share of the heatmap in the box.

    ``mask_score``, the share on the mask, is the relevance-mass accuracy of Arras et al.
    (`benchmarks.metrics.relevance`), and is not given a second time under that name.
    """

    name = "attention"
    shows = "attention"
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

    def measure(self, heatmap: np.ndarray, frame: Frame, embed: Embed | None = None) -> Measures:
        measures = {
            "empty": not heatmap.max() > 0,
            "score": float(attention_score(heatmap, frame.box)),
            **pointing(heatmap, frame),
        }
        if frame.mask is not None:
            measures["mask_score"] = float(attention_score_mask(heatmap, frame.mask))
        return measures

    def floors(self, frame: Frame, embed: Embed | None = None) -> dict[str, Measures]:
        height, width = frame.size
        return {
            "centre_box": self.measure(centred_heatmap(frame.size), frame),
            "uniform_heatmap": self.measure(uniform_heatmap(width, height), frame),
        }


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


_ATTENTION = AttentionProtocol()
PROTOCOLS: dict[str, EvaluationProtocol] = {
    protocol.name: protocol
    for protocol in (_ATTENTION, BoxProtocol(), FaithfulnessProtocol(_ATTENTION))
}
# Faithfulness takes twenty forward passes more for every method and image.
DEFAULT_PROTOCOLS = ("attention", "boxes")
