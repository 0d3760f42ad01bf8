"""From attributions to one heatmap: the one place where channels and colours are reduced.

Every method's attributions (1, C, h, w) go the same way: one channel of C, smoothed at their own
resolution, ReLU (unless a protocol asks for signs), bilinear interpolation
(``align_corners=False``) to the image. The first two steps are the method's `Reduction`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

Channels = Literal["signed", "absolute", "norm"]


@dataclass(frozen=True)
class Reduction:
    """How the channels or colours of an attribution become one, and how that is smoothed.

    Args:
        channels (str): ``"signed"``, their sum; ``"absolute"``, the sum of their absolute
            values; ``"norm"``, their L2 norm.
        sigma (float): deviation of the Gaussian, as a fraction of the shorter side of the map.
    """

    channels: Channels = "signed"
    sigma: float = 0.0

    def __str__(self) -> str:
        name = {"signed": "signed sum", "absolute": "absolute sum", "norm": "norm"}[self.channels]
        return f"{name}, smoothed {self.sigma:g}" if self.sigma else name

    def __call__(self, attributions: Tensor) -> Tensor:
        """Attributions (1, C, h, w) to a map (1, 1, h, w) on the CPU.

        Example:
            >>> colours = torch.tensor([-4.0, 3.0]).view(1, 2, 1, 1)
            >>> [Reduction(channels)(colours).item() for channels in ("signed", "absolute", "norm")]
            [-1.0, 7.0, 5.0]
        """
        values = attributions.detach().float().cpu()
        if values.ndim != 4 or len(values) != 1:
            raise ValueError(f"expected attributions (1, C, h, w), got {tuple(values.shape)}")
        if self.channels == "norm":
            one = torch.linalg.vector_norm(values, dim=1, keepdim=True)
        else:
            one = (values.abs() if self.channels == "absolute" else values).sum(1, keepdim=True)
        deviation = self.sigma * min(one.shape[2:])
        if not deviation:
            return one
        smooth: np.ndarray = gaussian_filter(one[0, 0].numpy(), deviation, mode="nearest")
        return torch.from_numpy(smooth)[None, None]


SIGNED, ABSOLUTE, NORM = Reduction("signed"), Reduction("absolute"), Reduction("norm")


def heatmap(
    attributions: Tensor,
    size: tuple[int, int],
    reduction: Reduction = SIGNED,
    *,
    signed: bool = False,
) -> np.ndarray:
    """A method's attributions as the heatmap that is scored.

    Args:
        attributions (Tensor): (1, C, h, w).
        size (tuple of int): height and width of the image, in pixels.
        reduction (Reduction): see there.
        signed (bool): signs are kept.

    Returns:
        np.ndarray: (H, W) float32, zero or more unless signed; all zero where nothing is positive.
        NaN stays.

    Example:
        >>> heatmap(torch.tensor([[[[-1.0, 4.0]]]]), (1, 4)).round(2)
        array([[0., 1., 3., 4.]], dtype=float32)
    """
    # On the CPU always: interpolation kernels differ between devices.
    one = reduction(attributions)
    kept = one if signed else F.relu(one)
    pixels: np.ndarray = F.interpolate(kept, size, mode="bilinear", align_corners=False)[
        0, 0
    ].numpy()
    return pixels
