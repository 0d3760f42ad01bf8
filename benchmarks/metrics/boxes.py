"""Boxes are (x0, y0, x1, y1) in pixels; x1 and y1 are exclusive, so a width is x1 - x0.

Coordinates are continuous: pixel (row r, column c) covers [c, c + 1) x [r, r + 1), and the tight
box of a set of pixels is (min c, min r, max c + 1, max r + 1).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from captum_embed.errors import InputError

Box = tuple[float, float, float, float]


def check_box(box: ArrayLike, width: int, height: int) -> NDArray[np.float64]:
    """Return an object's box as a float64 array, or refuse it.

    Args:
        box: (4,), x0, y0, x1, y1 in pixels, already clipped to the image.
        width: of the image, in pixels.
        height: of the image, in pixels.

    Returns:
        (4,) float64.

    Raises:
        InputError: not four finite numbers, no area, or sticking out of the image.
    """
    corners = np.array(box, dtype=np.float64)
    if corners.shape != (4,):
        raise InputError(f"a box is four numbers (x0, y0, x1, y1), got shape {corners.shape}")
    x0, y0, x1, y1 = (float(value) for value in corners)
    shown = f"({x0:g}, {y0:g}, {x1:g}, {y1:g})"
    if not np.isfinite(corners).all():
        raise InputError(f"a box is finite, got {shown}")
    if x1 <= x0 or y1 <= y0:
        raise InputError(
            f"box {shown} has no area: expected x0 < x1 and y0 < y1 (not x, y, width, height)"
        )
    if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
        raise InputError(
            f"box {shown} sticks out of the image of {width} x {height} pixels: clip it first"
        )
    return corners


def iou(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union of boxes, in continuous coordinates.

    Args:
        first: (..., 4), x0, y0, x1, y1.
        second: (..., 4); leading axes broadcast against those of ``first``.

    Returns:
        (...) in [0, 1]; 0 where both boxes are without area.

    Raises:
        InputError: the last axis is not 4, a coordinate is not finite, or x1 < x0 or y1 < y0.

    Example:
        >>> float(iou((0, 0, 2, 2), (1, 0, 3, 2)))
        0.3333333333333333
    """
    a, b = (_corners(boxes) for boxes in (first, second))
    shared = shared_area(a, b)
    united = area(a) + area(b) - shared
    return np.divide(shared, united, out=np.zeros_like(united), where=united > 0)


def shared_area(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the overlaps of boxes (..., 4) that broadcast, (...)."""
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(
        first[..., :2], second[..., :2]
    )
    return np.maximum(sides, 0.0).prod(axis=-1)


def _corners(boxes: ArrayLike) -> NDArray[np.float64]:
    corners = np.asarray(boxes, dtype=np.float64)
    if corners.ndim == 0 or corners.shape[-1] != 4:
        raise InputError(f"boxes have shape (..., 4), got {corners.shape}")
    if not np.isfinite(corners).all():
        raise InputError("boxes are finite, got NaN or infinite coordinates")
    if (corners[..., 2:] < corners[..., :2]).any():
        raise InputError("boxes are (x0, y0, x1, y1) with x0 <= x1 and y0 <= y1")
    return corners


def area(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of boxes (..., 4), (...)."""
    return (corners[..., 2:] - corners[..., :2]).prod(axis=-1)
