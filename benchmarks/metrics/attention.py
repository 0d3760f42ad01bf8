"""Visual attention score: the share of a heatmap's mass that lies on the object."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.metrics.boxes import check_box
from benchmarks.metrics.heatmaps import check_mask, scale_to_max


def attention_score(heatmap: ArrayLike, box: ArrayLike) -> float:
    """Heatmap mass inside a box, over the total mass.

    A pixel that an edge of the box cuts counts with the share of its area inside.

    Args:
        heatmap: (H, W), finite and not negative.
        box: (4,), x0, y0, x1, y1 in pixels of the heatmap, exclusive ends, clipped to it.

    Returns:
        Score in [0, 1]; 0 for an empty heatmap.

    Raises:
        InputError: see ``check_heatmap`` and ``check_box``.

    Source:
        Chen, Chen, Hajimirsadeghi and Mori, "Adapting Grad-CAM for Embedding Networks",
        WACV 2020, supplement, "Quantitative results" (bounding box score and mask score).

    Example:
        >>> attention_score([[1, 1, 1, 1]], (0.5, 0, 2, 1))
        0.375
    """
    scaled = scale_to_max(heatmap)
    height, width = scaled.shape
    x0, y0, x1, y1 = check_box(box, width, height)
    return _share(np.outer(coverage(y0, y1, height), coverage(x0, x1, width)), scaled)


def attention_score_mask(heatmap: ArrayLike, mask: ArrayLike) -> float:
    """Heatmap mass on an object's mask, over the total mass.

    Args:
        heatmap: (H, W), finite and not negative.
        mask: (H, W), boolean or 0 and 1.

    Returns:
        Score in [0, 1]; 0 for an empty heatmap.

    Raises:
        InputError: see ``check_heatmap`` and ``check_mask``.

    Example:
        >>> attention_score_mask([[1, 3]], [[False, True]])
        0.75
    """
    scaled = scale_to_max(heatmap)
    return _share(check_mask(mask, scaled.shape), scaled)


def coverage(start: float, stop: float, length: int) -> NDArray[np.float64]:
    """Share of each of ``length`` unit cells that the interval [start, stop) covers.

    Args:
        start: in pixels.
        stop: in pixels, exclusive.
        length: number of cells.

    Returns:
        (length,) in [0, 1].

    Example:
        >>> coverage(0.5, 2, 4)
        array([0.5, 1. , 0. , 0. ])
    """
    cells = np.arange(length, dtype=np.float64)
    return np.clip(np.minimum(cells + 1, stop) - np.maximum(cells, start), 0.0, 1.0)


def _share(weights: NDArray[np.float64] | NDArray[np.bool_], scaled: NDArray[np.float64]) -> float:
    # Both sums add the same pixels in the same order, so that all of the mass is exactly 1.
    total = float(scaled.sum())
    return float((weights * scaled).sum()) / total if total > 0 else 0.0
