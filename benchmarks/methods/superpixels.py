"""Superpixels, which ablation, Shapley values and LIME replace by the baseline."""

from __future__ import annotations

import numpy as np
import torch
from skimage.segmentation import slic
from torch import Tensor

from benchmarks.datasets.preprocess import to_image

# Of scikit-image's scale, where 10 is usual: on photographs that gives half as many superpixels as
# wished for, of very different sizes.
COMPACTNESS = 30.0


def superpixels(image: Tensor, most: int) -> Tensor:
    """SLIC superpixels of the image as it was before normalisation.

    Args:
        image (Tensor): (1, 3, H, W), normalised.
        most (int): superpixels at most, 2 or more. SLIC takes its number as a wish.

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
    wished = most
    labels, count = _slic(pixels, wished)
    while count > most and wished > 1:
        wished = max(1, wished - (count - most))
        labels, count = _slic(pixels, wished)
    if not 2 <= count <= most:
        height, width = image.shape[2:]
        labels = np.zeros((height, width), dtype=np.int64)
        labels[:, width // 2 :] = 1
    return torch.from_numpy(labels).long()[None, None].to(image.device)


def _slic(pixels: np.ndarray, wished: int) -> tuple[np.ndarray, int]:
    """Superpixels from 0 without gaps, and how many they are."""
    labels = slic(pixels, wished, COMPACTNESS, start_label=0, channel_axis=-1)
    distinct, dense = np.unique(labels, return_inverse=True)
    return dense.reshape(labels.shape), len(distinct)
