"""Single deletion: rank correlation of a map's patches with the effect of removing each."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import spearmanr

from benchmarks.metrics.removal import SHARES, area_under_curve, removal_masks
from captum_embed.errors import InputError

# Patches along each side; 56, 32 and 16 pixels of the 224 crop.
GRIDS = (4, 7, 14)


def patch_sums(signed_map: ArrayLike, patches: int) -> NDArray[np.float64]:
    """A map's mass in each patch of a square grid, signs kept.

    Args:
        signed_map: (H, W), finite.
        patches: along each side; both sides of the map are multiples of it.

    Returns:
        (patches, patches).

    Raises:
        InputError: not a finite map, or a grid that does not divide its sides.

    Example:
        >>> patch_sums([[1, 2, 0, -1], [3, 4, 0, 0]], 2)
        array([[ 3., -1.],
               [ 7.,  0.]])
    """
    values = np.asarray(signed_map, dtype=np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise InputError(f"expected a finite map (H, W), got shape {values.shape} or NaN in it")
    height, width = values.shape
    if patches < 1 or height % patches or width % patches:
        raise InputError(f"{patches} by {patches} patches do not divide a map of {values.shape}")
    split = values.reshape(patches, height // patches, patches, width // patches)
    sums: NDArray[np.float64] = split.sum((1, 3))
    return sums


def patch_masks(patches: int, height: int, width: int) -> NDArray[np.bool_]:
    """Each patch of a square grid as a mask, in reading order, (patches * patches, H, W).

    Example:
        >>> patch_masks(2, 2, 4).astype(int).tolist()[1]
        [[0, 0, 1, 1], [0, 0, 0, 0]]
    """
    each = np.eye(patches * patches, dtype=bool).reshape(-1, patches, patches)
    return enlarged(each, height, width)


def enlarged(masks: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """Masks of patches (N, P, P) as masks of pixels (N, H, W)."""
    patches = masks.shape[-1]
    return masks.repeat(height // patches, axis=-2).repeat(width // patches, axis=-1)


def rank_correlation(sums: ArrayLike, drops: ArrayLike) -> float:
    """Spearman's correlation of patches' mass with the drop of the score when each is removed.

    Args:
        sums: (P, P), see `patch_sums`.
        drops: (P * P,) or (P, P), score of the image minus score without the patch.

    Returns:
        In [-1, 1]; 0 where all sums, or all drops, are equal: they predict nothing.

    Raises:
        InputError: another number of drops than of patches.

    Example:
        >>> round(rank_correlation([[1, 2], [3, 9]], [[0.1, 0.2], [0.4, 0.3]]), 3)
        0.8
    """
    mass, drop = np.ravel(sums), np.ravel(drops)
    if mass.shape != drop.shape:
        raise InputError(f"got {len(mass)} patches and {len(drop)} drops; expected as many")
    if np.ptp(mass) == 0 or np.ptp(drop) == 0:
        return 0.0
    return float(spearmanr(mass, drop).statistic)


def most_first(sums: ArrayLike) -> NDArray[np.bool_]:
    """The patches of highest mass, for each of `SHARES`; equal ones in a random order.

    The patches of lowest mass are the complement, ``~most_first(sums)[::-1]``.

    Args:
        sums: (P, P).

    Returns:
        (11, P, P), True on the patches that are removed.
    """
    values = np.asarray(sums, dtype=np.float64)
    return removal_masks(values - np.min(values))


def relevance_gain(least: ArrayLike, most: ArrayLike) -> float:
    """Symmetric relevance gain: area under the score with the least relevant patches removed
    first, minus that with the most relevant first.

    Args:
        least: (11,), scores at `SHARES` of removed patches.
        most: (11,).

    Source:
        Bluecher, Vielhaben and Strodthoff, "Decoupling Pixel Flipping and Occlusion Strategy for
        Consistent XAI Benchmarks", TMLR 2024, section 3.

    Example:
        >>> relevance_gain([1.0] * 11, [1.0] + [0.0] * 10)
        0.95
    """
    return area_under_curve(least, SHARES) - area_under_curve(most, SHARES)
