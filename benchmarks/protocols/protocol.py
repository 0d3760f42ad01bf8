"""What all protocols have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from benchmarks.datasets.records import Box, ImageRecord
from benchmarks.metrics.floors import centre_box
from benchmarks.metrics.pointing import pointing_game, pointing_game_mask

Measures = dict[str, Any]
# Images (N, 3, H, W) to embeddings (N, D), both on the CPU.
Embed = Callable[[Tensor], Tensor]


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
    """How images are shown and heatmaps are measured.

    Attributes:
        name (str): on the command line and in the records.
        title (str): in words.
        shows (str): protocols of which this is the same show the same pixels, and share what is
            prepared from them.
    """

    name: str
    title: str
    shows: str

    def show(self, image: Image.Image) -> Tensor:
        """The image (3, H, W) as the network sees it."""

    def frame(self, record: ImageRecord) -> Frame | None:
        """The image with its ground truth; None where there is nothing to find in the frame."""

    def measure(self, heatmap: np.ndarray, frame: Frame, embed: Embed | None = None) -> Measures:
        """What is kept of a heatmap (H, W); `embed` is the network, for protocols that need it."""

    def floors(self, frame: Frame, embed: Embed | None = None) -> dict[str, Measures]:
        """The same of what needs no explanation, by name."""


def centred_heatmap(size: tuple[int, int]) -> np.ndarray:
    """1 in the centre box, its sides rounded to pixels, and 0 around it, (H, W)."""
    height, width = size
    heatmap = np.zeros(size, dtype=np.float32)
    x0, y0, x1, y1 = (round(side) for side in centre_box(width, height))
    heatmap[y0:y1, x0:x1] = 1
    return heatmap


def pointing(heatmap: np.ndarray, frame: Frame) -> Measures:
    """Whether the heatmap's maximum is on the object: its box, and its mask where there is one."""
    measures = {"pointing": pointing_game(heatmap, frame.box)}
    if frame.mask is not None:
        measures["mask_pointing"] = pointing_game_mask(heatmap, frame.mask)
    return measures
