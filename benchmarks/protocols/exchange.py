"""Photographs in which one region is replaced by another photograph's."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.datasets.pets import tight_box

# Pixels around a mask that may still show the object's outline.
MARGIN = 3


@dataclass(frozen=True)
class Photograph:
    """An image as a protocol shows it, and where its object is.

    Args:
        pixels (Tensor): (3, H, W).
        mask (np.ndarray): (H, W), bool, True on the object, with a pixel.
    """

    pixels: Tensor
    mask: NDArray[np.bool_]


def with_object_of(photograph: Photograph, other: Photograph) -> Photograph:
    """The object is replaced by another photograph's, stretched to its box.

    Where the new object is smaller than the old one, what is around it comes along: of the old
    object nothing is left.

    Args:
        photograph (Photograph): whose background stays.
        other (Photograph): whose object comes.

    Returns:
        Photograph: its mask is the region that was replaced, both objects.

    Example:
        >>> def square(value, side):
        ...     mask = np.zeros((12, 12), dtype=bool)
        ...     mask[4 : 4 + side, 4 : 4 + side] = True
        ...     return Photograph(torch.full((3, 12, 12), value), mask)
        >>> twin = with_object_of(square(0.0, 2), square(1.0, 3))
        >>> twin.pixels[0, ::4, 4].round(decimals=3).tolist(), int(twin.mask.sum())
        ([0.0, 1.0, 1.0], 64)
    """
    old = grown(photograph.mask)
    x0, y0, x1, y1 = (int(side) for side in tight_box(old))
    left, top, right, bottom = (int(side) for side in tight_box(grown(other.mask)))
    size = (y1 - y0, x1 - x0)
    piece = other.pixels[None, :, top:bottom, left:right]
    stretched = F.interpolate(piece, size, mode="bilinear", antialias=True)[0]
    shape = torch.from_numpy(grown(other.mask)[None, None, top:bottom, left:right])
    pixels, region = photograph.pixels.clone(), old.copy()
    region[y0:y1, x0:x1] |= F.interpolate(shape.float(), size)[0, 0].numpy() > 0.5
    pixels[:, y0:y1, x0:x1] = stretched
    return Photograph(torch.where(torch.from_numpy(region), pixels, photograph.pixels), region)


def with_background_of(photograph: Photograph, other: Photograph) -> Photograph:
    """All but the object is replaced by another photograph's background.

    Args:
        photograph (Photograph): whose object stays.
        other (Photograph): whose background comes; where its own object was, it is filled.

    Returns:
        Photograph: its mask is the region that was replaced, the background.
    """
    region = ~photograph.mask
    scene = background(other)
    return Photograph(torch.where(torch.from_numpy(region), scene, photograph.pixels), region)


def background(photograph: Photograph) -> Tensor:
    """The image (3, H, W) without its object: pieces of its own background lie in its place."""
    missing = torch.from_numpy(grown(photograph.mask))
    filled, absent = photograph.pixels.clone(), missing
    height, width = missing.shape
    shifts = ((0, 0), (height // 2, 0), (0, width // 2), (height // 2, width // 2))
    for flips, shift in product(((-1,), (-2,), (-2, -1)), shifts):
        if missing.any():
            pixels, hole = (
                torch.flip(one, flips).roll(shift, (-2, -1)) for one in (photograph.pixels, absent)
            )
            usable = missing & ~hole
            filled = torch.where(usable, pixels, filled)
            missing = missing & hole
    if missing.any() and not absent.all():
        filled[:, missing] = photograph.pixels[:, ~absent].mean(1, keepdim=True)
    return filled


def mirrored(photograph: Photograph) -> Photograph:
    """Left and right exchanged."""
    return Photograph(photograph.pixels.flip(-1), photograph.mask[:, ::-1].copy())


def grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask with `MARGIN` pixels around it."""
    pixels = torch.from_numpy(np.ascontiguousarray(mask))[None, None].float()
    dilated: NDArray[np.bool_] = (
        F.max_pool2d(pixels, 2 * MARGIN + 1, stride=1, padding=MARGIN)[0, 0].numpy() > 0
    )
    return dilated
