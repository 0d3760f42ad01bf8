"""Baselines: what stands for a missing image, or for a missing part of one.

- A single baseline is zero after normalisation: the mean colour of ImageNet, everywhere.
- A distribution of baselines is plain images, each of one colour, drawn from a normal
  distribution with ImageNet's mean and deviation per channel: nothing in them to see, and, unlike
  noise, no texture either.
- A missing layer activation is zero in the layer, which after a ReLU is silence.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mean_image(image: Tensor) -> Tensor:
    """The baseline of an image (1, 3, H, W), of its shape."""
    return torch.zeros_like(image)


def plain_images(image: Tensor, count: int) -> Tensor:
    """Baselines (count, 3, H, W) of an image (1, 3, H, W), drawn from the global generator."""
    # On the CPU, so that every device sees the same colours.
    colours = torch.randn(count, image.shape[1], 1, 1).to(image)
    return colours.expand(-1, -1, *image.shape[2:]).contiguous()
