"""The marks of the mark protocol, and their places in a photograph."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.datasets.records import Box

SIDE = 64
"""Of a mark, in pixels; a crop has 224."""

_STRIDE = 8
_GOLDEN = 0.618034  # steps of it around the circle of hues never come close to one before


def mark(number: int) -> NDArray[np.uint8]:
    """A disc, stripes or a triangle on a ground in a colour that no other number has.

    Args:
        number (int): 0 or more.

    Returns:
        (64, 64, 3).

    Example:
        >>> mark(0).shape, bool((mark(0) == mark(3)).all())
        ((64, 64, 3), False)
    """
    ground, opposite = (
        tuple(
            round(255 * part) for part in colorsys.hsv_to_rgb((number * _GOLDEN + turn) % 1, 1, 1)
        )
        for turn in (0, 0.5)
    )
    image = Image.new("RGB", (SIDE, SIDE), ground)
    draw = ImageDraw.Draw(image)
    edge, far = SIDE // 8, SIDE - SIDE // 8
    if number % 3 == 0:
        draw.ellipse((edge, edge, far, far), fill="white")
        draw.ellipse((2 * edge, 2 * edge, far - edge, far - edge), fill=opposite)
    elif number % 3 == 1:
        for left in range(0, SIDE, 2 * edge):
            draw.rectangle((left, 0, left + edge, SIDE), fill="white")
    else:
        draw.polygon([(SIDE // 2, edge), (far, far), (edge, far)], fill="black")
    return np.asarray(image)


def place_beside(taken: NDArray[np.bool_], generator: np.random.Generator) -> Box:
    """A random place for a mark where it hides least of what is taken.

    Args:
        taken (np.ndarray): (H, W), True on the object.
        generator (np.random.Generator): of the draw.

    Returns:
        Box: within the image; smaller than a mark where the image is.

    Example:
        >>> taken = np.zeros((70, 160), dtype=bool)
        >>> taken[:, :80] = True
        >>> x0, y0, x1, y1 = place_beside(taken, np.random.default_rng(0))
        >>> x0 >= 80, x1 - x0, y1 - y0
        (True, 64.0, 64.0)
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
