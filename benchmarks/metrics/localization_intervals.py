"""Bootstrap confidence intervals of every localization figure, and of differences between methods.

The figures and their point estimates are those of ``localization``. A best threshold is picked
anew in each resample of images, so that the interval of MaxBoxAcc includes the luck of the pick.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.metrics.bootstrap import (
    CONFIDENCE,
    NUM_RESAMPLES,
    Interval,
    Statistic,
    bootstrap_interval,
    paired_difference,
)
from benchmarks.metrics.localization import (
    PAPER_BAND,
    PAPER_THRESHOLD,
    THRESHOLDS,
    band,
    is_correct,
    is_correct_v2,
)
from captum_embed.errors import InputError


@dataclass(frozen=True)
class LocalizationIntervals:
    """Estimate and interval of each figure.

    Attributes:
        accuracy_curve: accuracy at each threshold, (T,).
        accuracy_at: accuracy at the paper's threshold, 0.2.
        mean_accuracy: mean over the paper's band, [0.15, 0.25].
        max_box_acc: at the data set's best threshold.
        max_box_acc_v2: over all components and three deltas.
    """

    accuracy_curve: Interval
    accuracy_at: Interval
    mean_accuracy: Interval
    max_box_acc: Interval
    max_box_acc_v2: Interval


def localization_intervals(
    ious: ArrayLike,
    best_ious: ArrayLike,
    *,
    thresholds: ArrayLike = THRESHOLDS,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> LocalizationIntervals:
    """Confidence intervals of one method's localization figures.

    Args:
        ious: (N, T), ``ThresholdSweep.iou`` of N images.
        best_ious: (N, T), ``ThresholdSweep.best_iou`` of the same.
        thresholds: (T,).
        num_resamples: how often N images are drawn with replacement.
        confidence: coverage, between 0 and 1.
        seed: of a generator of its own; all figures see the same resamples.

    Returns:
        Estimates and intervals.

    Raises:
        InputError: see ``localization.is_correct`` and ``bootstrap.bootstrap_interval``.

    Example:
        >>> found = localization_intervals([[0.6, 0.4]] * 4, [[0.6, 0.4]] * 4, thresholds=[0.2, 1])
        >>> found.accuracy_at.as_floats(), found.max_box_acc.as_floats()
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    """
    correct = _correct(ious, best_ious)
    return _split(
        bootstrap_interval(
            correct,
            _figures(thresholds, correct.shape[-1]),
            num_resamples=num_resamples,
            confidence=confidence,
            seed=seed,
        )
    )


def localization_differences(
    first: tuple[ArrayLike, ArrayLike],
    second: tuple[ArrayLike, ArrayLike],
    *,
    thresholds: ArrayLike = THRESHOLDS,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> LocalizationIntervals:
    """Confidence intervals of the differences between two methods on the same images.

    Args:
        first: ``ious`` and ``best_ious`` of the first method, (N, T) each.
        second: the same of the second method, for the same images in the same order.
        thresholds: (T,).
        num_resamples: how often N images are drawn with replacement.
        confidence: coverage, between 0 and 1.
        seed: of a generator of its own; both methods see the same resamples.

    Returns:
        First minus second.

    Raises:
        InputError: shapes differ, or see ``localization_intervals``.

    Example:
        >>> good, bad = [[0.6, 0.6]] * 4, [[0.4, 0.4]] * 4
        >>> found = localization_differences((good, good), (bad, bad), thresholds=[0.2, 1])
        >>> found.max_box_acc.as_floats()
        (1.0, 1.0, 1.0)
    """
    correct = _correct(*first)
    return _split(
        paired_difference(
            correct,
            _correct(*second),
            _figures(thresholds, correct.shape[-1]),
            num_resamples=num_resamples,
            confidence=confidence,
            seed=seed,
        )
    )


def _correct(ious: ArrayLike, best_ious: ArrayLike) -> NDArray[np.bool_]:
    largest, any_component = is_correct(ious), is_correct_v2(best_ious)
    if any_component[:, 0].shape != largest.shape:
        raise InputError(
            f"ious and best_ious belong to the same images and thresholds, got "
            f"{largest.shape} and {any_component[:, 0].shape}"
        )
    return np.concatenate([largest[:, None], any_component], axis=1)


def _figures(thresholds: ArrayLike, num_thresholds: int) -> Statistic:
    at = band(PAPER_THRESHOLD, PAPER_THRESHOLD, thresholds, num_thresholds)
    around = band(*PAPER_BAND, thresholds, num_thresholds)

    def figures(means: NDArray[np.float64]) -> NDArray[np.float64]:
        curve, any_component = means[:, 0], means[:, 1:]
        single = [
            curve[:, at].mean(axis=-1),
            curve[:, around].mean(axis=-1),
            curve.max(axis=-1),
            any_component.max(axis=-1).mean(axis=-1),
        ]
        return np.column_stack([curve, *single])

    return figures


def _split(figures: Interval) -> LocalizationIntervals:
    def part(index: int | slice) -> Interval:
        return Interval(figures.estimate[index], figures.low[index], figures.high[index])

    return LocalizationIntervals(part(slice(0, -4)), part(-4), part(-3), part(-2), part(-1))
