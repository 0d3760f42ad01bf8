"""Baselines, which stand for a missing image or part of one, and the superpixels they replace.

- A single baseline is zero after normalisation: the mean colour of ImageNet, everywhere.
- A distribution of baselines is plain images, each of one colour, drawn from a normal
  distribution with ImageNet's mean and deviation per channel: nothing in them to see, and, unlike
  noise, no texture either.
- A missing layer activation is zero, which after a ReLU is a unit that is not active.
"""

from __future__ import annotations

import numpy as np
import torch
from skimage.segmentation import slic
from torch import Tensor

from benchmarks.datasets.preprocess import to_image

# Of scikit-image's scale, where 10 is usual: on photographs that gives half as many superpixels as
# asked for, of very different sizes.
COMPACTNESS = 30.0


def mean_image(image: Tensor) -> Tensor:
    """The baseline of an image (1, 3, H, W), of its shape."""
    return torch.zeros_like(image)


def plain_images(image: Tensor, count: int) -> Tensor:
    """Baselines (count, 3, H, W) of an image (1, 3, H, W), drawn from the global generator."""
    # On the CPU, so that every device sees the same colours.
    colours = torch.randn(count, image.shape[1], 1, 1).to(image)
    return colours.expand(-1, -1, *image.shape[2:]).contiguous()


def superpixels(image: Tensor, most: int) -> Tensor:
    """SLIC superpixels of the image as it was before normalisation.

    Args:
        image (Tensor): (1, 3, H, W), normalised.
        most (int): superpixels at most, 2 or more. SLIC returns about the number that it is given.

    Returns:
        Tensor: (1, 1, H, W), integers from 0 without gaps, on the image's device. Two halves
        where SLIC finds fewer than two superpixels.

    Source: Achanta et al., SLIC Superpixels Compared to State-of-the-Art Superpixel Methods,
        PAMI 2012; scikit-image's implementation.

    Example:
        >>> parts = superpixels(torch.randn(1, 3, 40, 60), most=8)
        >>> parts.shape, bool(parts.max() < 8)
        (torch.Size([1, 1, 40, 60]), True)
    """
    pixels = to_image(image[0].detach()).permute(1, 2, 0).numpy()
    requested = most
    labels, count = _slic(pixels, requested)
    while count > most and requested > 1:
        requested = max(1, requested - (count - most))
        labels, count = _slic(pixels, requested)
    if not 2 <= count <= most:
        height, width = image.shape[2:]
        labels = np.zeros((height, width), dtype=np.int64)
        labels[:, width // 2 :] = 1
    return torch.from_numpy(labels).long()[None, None].to(image.device)


def _slic(pixels: np.ndarray, requested: int) -> tuple[np.ndarray, int]:
    """Superpixels from 0 without gaps, and how many they are."""
    labels = slic(pixels, requested, COMPACTNESS, start_label=0, channel_axis=-1)
    distinct, dense = np.unique(labels, return_inverse=True)
    return dense.reshape(labels.shape), len(distinct)
