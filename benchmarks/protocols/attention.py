"""Protocol A: the share of the heatmap's mass on the object."""

from __future__ import annotations

from collections.abc import Sequence

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
from benchmarks.metrics.figures import Figure
from benchmarks.metrics.floors import uniform_heatmap
from benchmarks.protocols.protocol import (
    Embed,
    EvaluationProtocol,
    Frame,
    Measures,
    centred_heatmap,
    pointing,
    pointing_figures,
)

FIGURES = (
    Figure(
        "score", "attention, box", "Share of the map inside the box on the 224 crop, %", "higher",
        lead=True,
    ),
    Figure(
        "mask_score", "attention, mask",
        "Share of the map inside the mask on the 224 crop (relevance-mass accuracy), %",
        "higher", masked=True,
    ),
    *pointing_figures("Maps of crops", in_terminal=False),
)  # fmt: skip


class AttentionProtocol(EvaluationProtocol):
    """A: shorter side to 256, centre crop of 224; the share of the heatmap in the box.

    ``mask_score``, the share on the mask, is the relevance-mass accuracy of Arras, Osman and Samek
    ("CLEVR-XAI", Information Fusion 81, 2022), with 0 for an empty heatmap.
    """

    name = "attention"
    shows = "attention"
    title = "visual attention score on the 224 crop"
    figures = FIGURES

    def show(self, image: Image.Image) -> Tensor:
        return to_tensor(resize_center_crop(image))

    def frame(self, item: ImageRecord) -> Frame | None:
        image = load_rgb(item)
        box = resize_crop_box(clip_box(item.box, *image.size, item.key), *image.size)
        if box is None:
            return None
        return Frame(self.show(image), box, self._mask(item, image.size))

    def _mask(self, record: ImageRecord, size: tuple[int, int]) -> np.ndarray | None:
        if record.mask_path is None:
            return None
        inside = resize_center_crop_mask(load_mask(record, size))
        return inside if inside.any() else None

    def measure(
        self, heatmaps: Sequence[np.ndarray], frame: Frame, embed: Embed | None = None
    ) -> Measures:
        (heatmap,) = heatmaps
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
            "centre_box": self.measure([centred_heatmap(frame.size)], frame),
            "uniform_heatmap": self.measure([uniform_heatmap(width, height)], frame),
        }
