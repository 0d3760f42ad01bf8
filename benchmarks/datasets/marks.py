"""Small coloured marks, and where they lie in a photograph."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.records import Box

SIDE = 48
"""Of a mark, in pixels; a crop has 224."""

_BLOCKS = 4
_STRIDE = 8
_GOLDEN = 0.618034  # steps of it around the circle of hues never come close to one before


def mark(number: int) -> NDArray[np.uint8]:
    """A square of 4 x 4 blocks in two colours, which no other number has.

    Args:
        number (int): 0 or more.

    Returns:
        (48, 48, 3).

    Example:
        >>> mark(0).shape, bool((mark(0) == mark(1)).all())
        ((48, 48, 3), False)
    """
    generator = np.random.default_rng(number)
    # Half of the blocks, so that every mark has as much of either colour.
    blocks = generator.permutation(np.arange(_BLOCKS**2) % 2).reshape(_BLOCKS, _BLOCKS)
    hue = number * _GOLDEN % 1
    colours = [colorsys.hsv_to_rgb(hue, 1, 1), colorsys.hsv_to_rgb((hue + 0.5) % 1, 1, 0.35)]
    pixels = np.array(colours)[blocks].repeat(SIDE // _BLOCKS, 0).repeat(SIDE // _BLOCKS, 1)
    drawn: NDArray[np.uint8] = (pixels * 255).round().astype(np.uint8)
    return drawn


def place_beside(taken: NDArray[np.bool_], generator: np.random.Generator) -> Box:
    """A random place for a mark where it hides least of what is taken.

    Args:
        taken (np.ndarray): (H, W), True on the object.
        generator (np.random.Generator): of the draw.

    Returns:
        Box: within the image; smaller than a mark where the image is.

    Example:
        >>> taken = np.zeros((60, 120), dtype=bool)
        >>> taken[:, :60] = True
        >>> x0, y0, x1, y1 = place_beside(taken, np.random.default_rng(0))
        >>> x0 >= 60, x1 - x0, y1 - y0
        (True, 48.0, 48.0)
    """
    height, width = taken.shape
    sides = min(SIDE, height), min(SIDE, width)
    total = np.pad(taken.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    tops, lefts = (
        np.arange(0, whole - side + 1, _STRIDE)
        for whole, side in zip((height, width), sides, strict=True)
    )
    rows, columns = np.meshgrid(tops, lefts, indexing="ij")
    below, beside = rows + sides[0], columns + sides[1]
    hidden = total[below, beside] - total[rows, beside] - total[below, columns]
    hidden += total[rows, columns]
    best = np.flatnonzero(hidden == hidden.min())
    chosen = best[generator.integers(len(best))]
    top, left = float(rows.flat[chosen]), float(columns.flat[chosen])
    return (left, top, left + sides[1], top + sides[0])
