"""Relevance mass and rank accuracy, as defined for CLEVR-XAI and computed by Quantus."""

import numpy as np
from numpy.typing import ArrayLike

from benchmarks.metrics.attention import attention_score_mask
from benchmarks.metrics.heatmaps import check_heatmap, check_mask


def relevance_mass_accuracy(heatmap: ArrayLike, mask: ArrayLike) -> float:
    """Share of a heatmap's mass that lies on the object's mask.

    The same number as ``attention_score_mask``, under the name that the field knows it by. It
    agrees with Quantus's ``RelevanceMassAccuracy`` except for an empty heatmap, where that gives
    NaN and this the 0 of our protocol.

    Args:
        heatmap: (H, W), finite and not negative.
        mask: (H, W), boolean or 0 and 1.

    Returns:
        Score in [0, 1]; 0 for an empty heatmap.

    Raises:
        InputError: see ``check_heatmap`` and ``check_mask``.

    Source:
        Arras, Osman and Samek, "CLEVR-XAI: A benchmark dataset for the ground truth evaluation
        of neural network explanations", Information Fusion 81, 2022.

    Example:
        >>> relevance_mass_accuracy([[1, 3]], [[False, True]])
        0.75
    """
    return attention_score_mask(heatmap, mask)


def relevance_rank_accuracy(heatmap: ArrayLike, mask: ArrayLike) -> float:
    """Share of the K highest pixels that lie on the object's mask of K pixels.

    Pixels tied at the K-th place share the places left, so that the score does not depend on
    the order of pixels (a ReLU leaves many zeros). Without such a tie it agrees with Quantus's
    ``RelevanceRankAccuracy``, which takes tied pixels in the order of an unstable sort.

    Args:
        heatmap: (H, W), finite and not negative.
        mask: (H, W), boolean or 0 and 1.

    Returns:
        Score in [0, 1]; 0 for an empty heatmap.

    Raises:
        InputError: see ``check_heatmap`` and ``check_mask``.

    Source:
        Arras, Osman and Samek, Information Fusion 81, 2022.

    Example:
        >>> relevance_rank_accuracy([[4, 3, 2, 1]], [[True, False, True, False]])
        0.5
    """
    values = check_heatmap(heatmap)
    inside = check_mask(mask, values.shape)
    if not values.any():
        return 0.0
    size = int(inside.sum())
    last = np.partition(values, values.size - size, axis=None)[values.size - size]
    above, tied = values > last, values == last
    places_left = size - int(above.sum())
    hits = (above & inside).sum() + places_left * (tied & inside).sum() / tied.sum()
    return float(hits / size)
