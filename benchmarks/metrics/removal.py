"""Deletion and insertion: how a score changes while pixels go, or come, by a heatmap's order."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.metrics.heatmaps import check_heatmap
from captum_embed.errors import InputError

# Shares of the pixels that are changed; none and all of them are the ends of every curve.
SHARES = tuple(step / 10 for step in range(11))
TIES_SEED = 0


def removal_masks(
    heatmap: ArrayLike, shares: ArrayLike = SHARES, *, seed: int = TIES_SEED
) -> NDArray[np.bool_]:
    """The highest pixels of a heatmap, for several shares of all pixels.

    Equal pixels (a ReLU leaves many zeros) are taken in a random order that is the same for all
    heatmaps of one size, so that an even heatmap takes pixels at random and not row by row.

    Args:
        heatmap: (H, W), finite and not negative.
        shares: (S,) in [0, 1].
        seed: of the order of equal pixels.

    Returns:
        (S, H, W), True on the ``round(share * H * W)`` highest pixels; half pixels go to the even
        number.

    Raises:
        InputError: see ``check_heatmap``; or a share out of range.

    Example:
        >>> removal_masks([[3, 1], [2, 4]], (0, 0.25, 0.5)).astype(int).tolist()
        [[[0, 0], [0, 0]], [[0, 0], [0, 1]], [[1, 0], [0, 1]]]
    """
    values = check_heatmap(heatmap)
    wanted = np.asarray(shares, dtype=np.float64)
    if wanted.ndim != 1 or not ((wanted >= 0) & (wanted <= 1)).all():
        raise InputError(f"shares of the pixels are a list of numbers from 0 to 1, got {shares!r}")
    counts = np.round(wanted * values.size)
    return places(values, seed=seed) < counts[:, None, None]


def places(values: NDArray[np.float64], *, seed: int = TIES_SEED) -> NDArray[np.intp]:
    """The place of each pixel from the highest, 0, to the lowest; equal ones in a random order.

    Args:
        values: (H, W), finite.
        seed: of the order of equal pixels.

    Example:
        >>> places(np.array([[3.0, 1.0], [2.0, 4.0]])).tolist()
        [[1, 3], [2, 0]]
    """
    order = np.random.default_rng(seed).permutation(values.size)
    highest_first = order[np.argsort(-values.ravel()[order], kind="stable")]
    place = np.empty(values.size, dtype=np.intp)
    place[highest_first] = np.arange(values.size)
    return place.reshape(values.shape)


def area_under_curve(scores: ArrayLike, shares: ArrayLike = SHARES) -> float:
    """Area under a score over the share of changed pixels, by the trapezoid rule.

    Args:
        scores: (S,).
        shares: (S,), ascending; from 0 to 1 the area is the mean score.

    Returns:
        The area.

    Raises:
        InputError: fewer than two scores, another number of shares, or shares not ascending.

    Source:
        Petsiuk, Das and Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box
        Models", BMVC 2018, section 4.3.

    Example:
        >>> area_under_curve([1, 0.5, 0], [0, 0.5, 1])
        0.5
    """
    heights = np.asarray(scores, dtype=np.float64)
    at = np.asarray(shares, dtype=np.float64)
    if heights.ndim != 1 or heights.shape != at.shape or len(at) < 2 or (np.diff(at) <= 0).any():
        raise InputError(
            f"a curve has a score for each of two or more ascending shares, got {heights.shape} "
            f"scores at {at.tolist()}"
        )
    return float((np.diff(at) * (heights[1:] + heights[:-1]) / 2).sum())
