"""Numbers of samples, steps, windows and superpixels within a budget of evaluations.

One evaluation is one image through the network, with its backward pass where the method takes
gradients. Methods that would gain little from more than `MOST_STEPS` stop there.
"""

from __future__ import annotations

import math

from torch import Tensor

MOST_STEPS = 50

# Images of a batch hold about this many pixels together. On the CPU more is no faster; there it is
# two images of 500 x 375, whose activations for a backward pass take 0.6 GB in EfficientNet-Lite0.
BATCH_PIXELS = {"cpu": 500_000, "cuda": 2_000_000}


def batch_size(image: Tensor, least: int = 1) -> int:
    """How many images like this one (1, 3, H, W) are evaluated together.

    Example:
        >>> import torch
        >>> batch_size(torch.zeros(1, 3, 375, 500))
        2
    """
    pixels = BATCH_PIXELS.get(image.device.type, BATCH_PIXELS["cpu"])
    return max(least, pixels // (image.shape[2] * image.shape[3]))


def num_steps(budget: int, evaluations: int = 1, extra: int = 0) -> int:
    """Steps or samples of `evaluations` each, after `extra` ones: 1 to `MOST_STEPS`.

    Example:
        >>> num_steps(200), num_steps(30), num_steps(30, evaluations=3, extra=2)
        (50, 30, 9)
    """
    return max(1, min(MOST_STEPS, (budget - extra) // evaluations))


def window_stride(size: tuple[int, int], budget: int) -> int:
    """The smallest stride at which windows of twice its size cover an image within a budget.

    Args:
        size (tuple of int): height and width.
        budget (int): windows at most; an image always takes one.

    Returns:
        int: stride, in pixels; see `window_sides`.

    Example:
        >>> window_stride((375, 500), 199)
        30
    """
    for stride in range(1, max(size) + 1):
        if math.prod(_num_windows(side, stride) for side in size) <= budget:
            return stride
    return max(size)


def window_sides(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Height and width of the windows: twice the stride, and no more than the image."""
    return min(2 * stride, size[0]), min(2 * stride, size[1])


def _num_windows(side: int, stride: int) -> int:
    return math.ceil((side - min(2 * stride, side)) / stride) + 1


def block_side(size: tuple[int, int], budget: int) -> int:
    """Side of the smallest square blocks of positions that are no more than the budget.

    Example:
        >>> block_side((12, 16), 198), block_side((12, 16), 100)
        (1, 2)
    """
    for side in range(1, max(size)):
        if math.prod(math.ceil(length / side) for length in size) <= budget:
            return side
    return max(size)
