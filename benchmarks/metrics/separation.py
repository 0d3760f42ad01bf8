"""AUROC: how well a number separates two groups."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from captum_embed.errors import InputError


def auroc(higher: ArrayLike, lower: ArrayLike) -> float:
    """Area under the ROC curve: how often a value of the first group is the higher one.

    Args:
        higher: (N,), values that should be high.
        lower: (M,), values that should be low.

    Returns:
        In [0, 1]; equal values count one half, so that a constant scores 0.5.

    Raises:
        InputError: a group without values, or values that are not finite.

    Source:
        Fawcett, "An introduction to ROC analysis", Pattern Recognition Letters 27, 2006, section
        7.

    Example:
        >>> auroc([0.9, 0.4], [0.1, 0.4])
        0.875
    """
    first, second = (np.asarray(values, dtype=np.float64) for values in (higher, lower))
    if first.ndim != 1 or second.ndim != 1 or not first.size or not second.size:
        raise InputError(f"expected two groups of numbers, got {first.shape} and {second.shape}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise InputError("values are finite, got NaN or infinity")
    ordered = np.sort(second)
    below = np.searchsorted(ordered, first, "left")
    not_above = np.searchsorted(ordered, first, "right")
    return float((below + not_above).mean() / 2 / len(second))


def paired_auroc(values: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """`auroc` of resamples, as an aggregate of a figure of merit.

    Args:
        values: (N, 2), of each image the value that should be high, and that which should be low.
        counts: (R, N), how often each resample has each image.

    Returns:
        (R,).

    Example:
        >>> paired_auroc(np.array([[0.9, 0.1], [0.4, 0.4]]), np.array([[1.0, 1.0], [0.0, 2.0]]))
        array([0.875, 0.5  ])
    """
    high, low = values.T
    wins = (high[:, None] > low).astype(np.float64) + 0.5 * (high[:, None] == low)
    won: NDArray[np.float64] = np.einsum("rn,rn->r", counts @ wins, counts)
    return won / counts.sum(1) ** 2
