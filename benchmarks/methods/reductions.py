"""From attributions to one heatmap: the one place where channels and colours are reduced.

- Layer activations: L2 norm over the channels.
- Layer attributions: signed sum over the channels.
- Input attributions: sum over the colours of absolute values.
- Then for every method: ReLU, unless a protocol asks for signed maps, and bilinear interpolation
  (``align_corners=False``) to the image.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def channel_norm(activations: Tensor) -> Tensor:
    """(N, C, h, w) to (N, 1, h, w)."""
    return torch.linalg.vector_norm(activations, dim=1, keepdim=True)


def channel_sum(attributions: Tensor) -> Tensor:
    """(N, C, h, w) to (N, 1, h, w), signs kept."""
    return attributions.sum(dim=1, keepdim=True)


def colour_magnitude(attributions: Tensor) -> Tensor:
    """(N, 3, H, W) to (N, 1, H, W)."""
    return attributions.abs().sum(dim=1, keepdim=True)


def heatmap(
    signed_map: Tensor, size: tuple[int, int], power: float = 1.0, *, signed: bool = False
) -> np.ndarray:
    """A method's map as the heatmap that is scored.

    Args:
        signed_map (Tensor): (1, 1, h, w).
        size (tuple of int): height and width of the image, in pixels.
        power (float): exponent of the map once its highest magnitude is 1.
        signed (bool): signs are kept.

    Returns:
        np.ndarray: (H, W) float32, zero or more unless signed; all zero where nothing is positive.
        NaN stays.

    Example:
        >>> heatmap(torch.tensor([[[[-1.0, 4.0]]]]), (1, 4)).round(2)
        array([[0., 1., 3., 4.]], dtype=float32)
    """
    if signed_map.shape[:2] != (1, 1) or signed_map.ndim != 4:
        raise ValueError(f"expected a map (1, 1, h, w), got {tuple(signed_map.shape)}")
    kept = signed_map.detach().float() if signed else F.relu(signed_map.detach().float())
    # On the CPU always: interpolation kernels differ between devices.
    resized = F.interpolate(kept.cpu(), size, mode="bilinear", align_corners=False)
    if power != 1:
        maximum = resized.abs().max()
        if maximum > 0:
            resized = resized.sign() * (resized.abs() / maximum) ** power
    pixels: np.ndarray = resized[0, 0].numpy()
    return pixels
