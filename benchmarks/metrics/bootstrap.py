"""Percentile bootstrap over images, for the intervals of all figures.

A resample is a vector of counts: how often each image was drawn. An aggregate takes the images'
values and many such vectors at once. Most figures are a statistic of means over images: an accuracy
is a mean, the best threshold's accuracy the maximum of a mean curve, PxAP a function of the mean
histogram. Then all resamples are one matrix product with the images' values, and a statistic that
chooses (a best threshold) chooses anew in each resample.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from captum_embed.errors import InputError

NUM_RESAMPLES = 5000
CONFIDENCE = 0.95
# Resamples are drawn in blocks of about this many numbers, to bound memory.
BLOCK_SIZE = 4_000_000

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
# Values (N, ...) of N images and counts (R, N), of which each row adds up to N, to (R, ...).
Aggregate = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Interval:
    """An estimate and its bootstrap confidence interval; arrays for a curve, of shape (...).

    Attributes:
        estimate: of all images.
        low: lower end.
        high: upper end.
    """

    estimate: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def as_floats(self) -> tuple[float, float, float]:
        """(estimate, low, high) of a single figure, for a table or JSON."""
        return float(self.estimate), float(self.low), float(self.high)


@dataclass(frozen=True)
class Draws:
    """A figure of all images, and of each resample of them.

    Attributes:
        estimate: of all images, (...).
        resampled: (R, ...); equal seeds and numbers of images draw equal resamples.
    """

    estimate: NDArray[np.float64]
    resampled: NDArray[np.float64]

    def __sub__(self, other: "Draws") -> "Draws":
        """Paired difference to another figure of the same images."""
        return Draws(self.estimate - other.estimate, self.resampled - other.resampled)

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """Percentile interval."""
        if not 0 < confidence < 1:
            raise InputError(f"the confidence lies between 0 and 1, got {confidence}")
        tail = (1 - confidence) / 2
        low, high = np.quantile(self.resampled, [tail, 1 - tail], axis=0)
        return Interval(self.estimate, low, high)


def mean_itself(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means over images as they are: the statistic of a plain mean or curve."""
    return means


def of_mean(statistic: Statistic = mean_itself) -> Aggregate:
    """Aggregate that applies a statistic to the mean over images.

    Args:
        statistic: maps means of shape (R, ...), R resamples, to (R, ...); for instance
            ``pxap.pxap``, or the maximum of a curve.

    Example:
        >>> best = of_mean(lambda curves: curves.max(axis=1))
        >>> best(np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[1.0, 1.0], [2.0, 0.0]]))
        array([0.5, 1. ])
    """

    def aggregate(values: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
        means = counts @ values.reshape(len(values), -1) / len(values)
        return statistic(means.reshape(-1, *values.shape[1:]))

    return aggregate


def paired_auroc(values: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area under the ROC curve of two values of each image, as an aggregate.

    How often an image's first value is higher than any image's second one. Equal values count one
    half, so that a constant scores 0.5.

    Args:
        values: (N, 2), of each image the value that should be high, and that which should be low.
        counts: (R, N), how often each resample has each image.

    Returns:
        (R,), in [0, 1].

    Source:
        Fawcett, "An introduction to ROC analysis", Pattern Recognition Letters 27, 2006, section
        7.

    Example:
        >>> paired_auroc(np.array([[0.9, 0.1], [0.4, 0.4]]), np.array([[1.0, 1.0], [0.0, 2.0]]))
        array([0.875, 0.5  ])
    """
    high, low = values.T
    wins = (high[:, None] > low).astype(np.float64) + 0.5 * (high[:, None] == low)
    won: NDArray[np.float64] = np.einsum("rn,rn->r", counts @ wins, counts)
    return won / counts.sum(1) ** 2


def draw(
    values: ArrayLike,
    aggregate: Aggregate,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Draws:
    """A figure of all images and of each resample.

    Args:
        values: (N, ...), one entry for each image. Images that were left out are not in it.
        aggregate: values (N, ...) and counts (R, N) to (R, ...), see `of_mean`.
        num_resamples: how often N images are drawn with replacement.
        seed: of a generator of its own.

    Raises:
        InputError: no images, NaN or infinite values, or no resamples.
    """
    images = _check_values(values)
    if num_resamples < 1:
        raise InputError(f"at least one resample is needed, got num_resamples={num_resamples}")

    def apply(counts: NDArray[np.float64]) -> NDArray[np.float64]:
        result = np.asarray(aggregate(images, counts), dtype=np.float64)
        if result.shape[:1] != (len(counts),):
            raise InputError(
                f"an aggregate has a row for each of {len(counts)} resamples, "
                f"got shape {result.shape}"
            )
        return result

    estimate = apply(np.ones((1, len(images))))[0]
    resampled = [apply(counts) for counts in _counts(len(images), num_resamples, seed)]
    return Draws(estimate, np.concatenate(resampled))


def bootstrap_interval(
    values: ArrayLike,
    statistic: Statistic = mean_itself,
    *,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """Confidence interval of a statistic of the mean over images.

    Args:
        values: (N, ...), one entry for each image: a score, a curve of correct answers (N, T),
            a pair of histograms. Images that were left out are not in it.
        statistic: maps means of shape (R, ...), R resamples, to (R, ...); for instance
            ``pxap.pxap``, or the maximum of a curve.
        num_resamples: how often N images are drawn with replacement.
        confidence: coverage, between 0 and 1.
        seed: of a generator of its own; equal seeds and N draw equal resamples.

    Returns:
        Estimate and interval, each in the shape of one statistic.

    Raises:
        InputError: no images, NaN or infinite values, or a setting out of range.

    Source:
        Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3 (percentile
        interval).

    Example:
        >>> bootstrap_interval([0.0, 1.0, 1.0, 1.0], num_resamples=100).as_floats()
        (0.75, 0.25, 1.0)
    """
    draws = draw(values, of_mean(statistic), num_resamples=num_resamples, seed=seed)
    return draws.interval(confidence)


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    statistic: Statistic = mean_itself,
    *,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """Confidence interval of the difference between two methods on the same images.

    Both methods see the same resample of images, so that what makes an image hard for both
    cancels out. An interval without 0 says that the difference is not one of sampling.

    Args:
        first: (N, ...), values of the first method.
        second: (N, ...), values of the second method, of the same images in the same order.
        statistic: applied to each method's means; a best threshold is chosen for each method.
        num_resamples: how often N images are drawn with replacement.
        confidence: coverage, between 0 and 1.
        seed: of a generator of its own.

    Returns:
        Statistic of the first minus that of the second.

    Raises:
        InputError: shapes differ, or see ``bootstrap_interval``.

    Example:
        >>> paired_difference([1.0, 1.0, 0.0], [0.5, 0.5, -0.5]).as_floats()
        (0.5, 0.5, 0.5)
    """
    a, b = _check_values(first), _check_values(second)
    if a.shape != b.shape:
        raise InputError(
            f"paired values come from the same images and differ in shape: {a.shape}, {b.shape}"
        )
    ours, theirs = (
        draw(values, of_mean(statistic), num_resamples=num_resamples, seed=seed)
        for values in (a, b)
    )
    return (ours - theirs).interval(confidence)


def _counts(num_images: int, num_resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each resample drew each image, (R, N), in blocks."""
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK_SIZE // num_images)
    for start in range(0, num_resamples, block):
        drawn = generator.integers(num_images, size=(min(block, num_resamples - start), num_images))
        drawn += num_images * np.arange(len(drawn))[:, None]
        counts = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        yield counts.astype(np.float64)


def _check_values(values: ArrayLike) -> NDArray[np.float64]:
    images = np.asarray(values, dtype=np.float64)
    if images.ndim == 0 or images.size == 0:
        raise InputError(f"a bootstrap needs values of at least one image, got {images.shape}")
    if not np.isfinite(images).all():
        raise InputError("values are finite, got NaN or infinity: leave out the images skipped")
    return images
