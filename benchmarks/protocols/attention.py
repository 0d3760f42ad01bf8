"""Protocol A: the share of the heatmap's mass on the object."""

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
from benchmarks.metrics.attention import attention_score, attention_score_mask
from benchmarks.metrics.floors import uniform_heatmap
from benchmarks.protocols.protocol import Embed, Frame, Measures, centred_heatmap, pointing


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
