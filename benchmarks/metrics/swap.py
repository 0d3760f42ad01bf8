"""The swap game: pixels of a region that a map ranks before pixels outside it."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.metrics.heatmaps import check_mask
from benchmarks.metrics.removal import TIES_SEED, places
from captum_embed.errors import InputError


def taken(
    signed_map: ArrayLike, region: ArrayLike, shares: ArrayLike, *, seed: int = TIES_SEED
) -> NDArray[np.bool_]:
    """The pixels of a region that a map puts before all but a share of the pixels outside it.

    Equal pixels are taken in one random order, so that an even map takes as large a share of
    the region as of what lies outside.

    Args:
        signed_map: (H, W), finite; its pixels are taken from the highest to the lowest.
        region: (H, W), boolean, with pixels inside and outside.
        shares: (S,) in [0, 1], of the pixels outside that have been taken.
        seed: of the order of equal pixels.

    Returns:
        (S, H, W), True on pixels of the region. Never fewer for a larger share.

    Raises:
        InputError: not a finite map; a region that is nothing or all; a share out of range.

    Source:
        Williford, May and Byrne, "Explainable Face Recognition", ECCV 2020, section 3: there the
        share is the false alarm rate.

    Example:
        >>> region = np.array([[True, True, False, False]])
        >>> taken([[9, 2, 3, 1]], region, (0, 0.5)).astype(int).tolist()
        [[[1, 0, 0, 0]], [[1, 1, 0, 0]]]
    """
    values = np.asarray(signed_map, dtype=np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise InputError(f"expected a finite map (H, W), got shape {values.shape} or NaN in it")
    inside = check_mask(region, values.shape)
    if inside.all():
        raise InputError("the region is the whole image: nothing outside it can be taken")
    wanted = np.asarray(shares, dtype=np.float64)
    if wanted.ndim != 1 or not ((wanted >= 0) & (wanted <= 1)).all():
        raise InputError(f"shares of the pixels are a list of numbers from 0 to 1, got {shares!r}")
    order = np.argsort(places(values, seed=seed).ravel())
    outside = ~inside.ravel()
    before = np.empty(values.size, dtype=np.intp)
    # Pixels outside that are taken before each pixel.
    before[order] = np.cumsum(outside[order]) - outside[order]
    most = np.round(wanted * outside.sum())
    return inside & (before.reshape(values.shape) <= most[:, None, None])


def flipped(margins: ArrayLike) -> NDArray[np.bool_]:
    """Whether a decision has flipped, at each step or at one before it.

    Args:
        margins: (S,), similarity to the mate minus that to the non-mate, step by step.

    Returns:
        (S,), True from the first margin below zero on.

    Example:
        >>> flipped([0.3, 0.0, -0.1, 0.2]).tolist()
        [False, False, True, True]
    """
    return np.logical_or.accumulate(np.asarray(margins) < 0)
