"""Floors: maps that need no network, which every method has to beat."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from benchmarks.metrics.boxes import Box
from captum_embed.errors import InputError

CENTRE_FRACTION = 0.65


def centre_box(width: int, height: int, fraction: float = CENTRE_FRACTION) -> Box:
    """Box in the middle of an image.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        fraction: of each side of the image, above 0 and at most 1.

    Returns:
        x0, y0, x1, y1 in pixels, exclusive ends, not rounded.

    Raises:
        InputError: an image without pixels, or a fraction out of range.

    Example:
        >>> centre_box(100, 50, fraction=0.5)
        (25.0, 12.5, 75.0, 37.5)
    """
    _check_size(width, height)
    if not (math.isfinite(fraction) and 0 < fraction <= 1):
        raise InputError(f"the fraction of each side is above 0 and at most 1, got {fraction}")
    x0, y0 = width * (1 - fraction) / 2, height * (1 - fraction) / 2
    return (x0, y0, width - x0, height - y0)


def whole_image_box(width: int, height: int) -> Box:
    """Box around an entire image.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.

    Returns:
        x0, y0, x1, y1 in pixels, exclusive ends.

    Raises:
        InputError: an image without pixels.

    Example:
        >>> whole_image_box(100, 50)
        (0.0, 0.0, 100.0, 50.0)
    """
    _check_size(width, height)
    return (0.0, 0.0, float(width), float(height))


def uniform_heatmap(width: int, height: int) -> NDArray[np.float64]:
    """Heatmap that says the same of every pixel: its attention score is the object's area.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.

    Returns:
        (H, W) of ones.

    Raises:
        InputError: an image without pixels.

    Example:
        >>> uniform_heatmap(3, 2).shape
        (2, 3)
    """
    _check_size(width, height)
    return np.ones((height, width))


def edge_heatmap(image: ArrayLike) -> NDArray[np.float64]:
    """Strength of an image's edges, which no network has a part in.

    Args:
        image: (C, H, W), finite.

    Returns:
        (H, W), length of the Sobel gradient, summed over the channels.

    Raises:
        InputError: not a finite image.

    Example:
        >>> edge_heatmap([[[0, 0, 1, 1]] * 3])[1].tolist()
        [0.0, 4.0, 4.0, 0.0]
    """
    pixels = np.asarray(image, dtype=np.float64)
    if pixels.ndim != 3 or pixels.size == 0 or not np.isfinite(pixels).all():
        raise InputError(f"expected a finite image (C, H, W), got shape {pixels.shape}, or NaN")
    slopes = [
        [ndimage.sobel(channel, axis=axis, mode="nearest") for channel in pixels] for axis in (0, 1)
    ]
    edges: NDArray[np.float64] = np.linalg.norm(slopes, axis=0).sum(0)
    return edges


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise InputError(f"an image has at least one pixel, got {width} x {height} (width, height)")
