"""Pointing game: does the heatmap's maximum lie on the object?

Where several pixels share the maximum, the score is the share of them that hits: the expected
score of picking one at random. A uniform heatmap thus scores the object's area, and not 1 (as it
does in Quantus, where any of them may hit) or 0 or 1 by raster order (as with ``argmax``).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import distance_transform_edt

from benchmarks.metrics.boxes import check_box
from benchmarks.metrics.heatmaps import check_heatmap, check_mask
from captum_embed.errors import InputError


def pointing_game(heatmap: ArrayLike, box: ArrayLike, tolerance: float = 0.0) -> float:
    """Whether the heatmap's maximum lies in a box.

    Args:
        heatmap: (H, W), finite and not negative.
        box: (4,), x0, y0, x1, y1 in pixels, exclusive ends, clipped to the heatmap.
        tolerance: distance in pixels, from the centre of the maximal pixel to the box, that
            still hits (Zhang et al. use 15).

    Returns:
        1.0 for a hit, 0.0 for a miss or an empty heatmap; between where maxima are tied.

    Raises:
        InputError: see ``check_heatmap`` and ``check_box``; or a negative tolerance.

    Source:
        Zhang et al., "Top-Down Neural Attention by Excitation Backprop", IJCV 2018, section 4.2.

    Example:
        >>> pointing_game([[0, 0, 5]], (0, 0, 2, 1)), pointing_game([[0, 0, 5]], (0, 0, 2, 1), 1)
        (0.0, 1.0)
    """
    values = check_heatmap(heatmap)
    height, width = values.shape
    x0, y0, x1, y1 = check_box(box, width, height)
    _check_tolerance(tolerance)
    rows, columns = _maxima(values)
    across = _outside(columns + 0.5, x0, x1)
    down = _outside(rows + 0.5, y0, y1)
    return _mean(np.hypot(across, down) <= tolerance)


def pointing_game_mask(heatmap: ArrayLike, mask: ArrayLike, tolerance: float = 0.0) -> float:
    """Whether the heatmap's maximum lies on an object's mask.

    Args:
        heatmap: (H, W), finite and not negative.
        mask: (H, W), boolean or 0 and 1.
        tolerance: distance in pixels, from the centre of the maximal pixel to the centre of the
            nearest pixel of the mask, that still hits.

    Returns:
        1.0 for a hit, 0.0 for a miss or an empty heatmap; between where maxima are tied.

    Raises:
        InputError: see ``check_heatmap`` and ``check_mask``; or a negative tolerance.

    Source:
        Zhang et al., IJCV 2018, section 4.2.

    Example:
        >>> pointing_game_mask([[0, 5, 5, 0]], [[True, True, False, False]])
        0.5
    """
    values = check_heatmap(heatmap)
    inside = check_mask(mask, values.shape)
    _check_tolerance(tolerance)
    maxima = _maxima(values)
    if tolerance == 0:
        return _mean(inside[maxima])
    return _mean(distance_transform_edt(~inside)[maxima] <= tolerance)


def _maxima(values: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    highest = np.max(values)
    rows, columns = np.nonzero((values == highest) & (highest > 0))
    return rows, columns


def _outside(centres: NDArray[np.floating], start: float, stop: float) -> NDArray[np.floating]:
    return np.maximum(np.maximum(start - centres, centres - stop), 0.0)


def _mean(hits: NDArray[np.bool_]) -> float:
    return float(hits.mean()) if hits.size else 0.0


def _check_tolerance(tolerance: float) -> None:
    if not (np.isfinite(tolerance) and tolerance >= 0):
        raise InputError(f"the tolerance is a distance in pixels, at least 0, got {tolerance}")
