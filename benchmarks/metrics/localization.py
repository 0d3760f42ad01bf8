"""Weakly supervised localization: a box from a heatmap, at every threshold, against the object's.

The heatmap is divided by its maximum and binarised at >= tau; the tight box of the largest
8-connected component is the prediction; it is correct where its IoU with the object's box is at
least delta (0.5). No threshold is ever chosen per image. An empty heatmap is a miss.

MaxBoxAcc and MaxBoxAccV2 are those of Choe et al., "Evaluating Weakly Supervised Object
Localization Methods Right", CVPR 2020 (section 4.1), and its extension, arXiv 2007.04178. Against
their published code (github.com/clovaai/wsolevaluation, ``evaluation.py``) we differ on purpose:

- **Scale.** They shift and scale a map to [0, 1] by its minimum and maximum; we divide a map that
  went through a ReLU by its maximum, so that 0 keeps meaning "no evidence".
- **Precision and strictness.** They round maps down to 8 bits and keep pixels strictly above
  ``int(tau * 255)``; we compare float64 values with >= tau.
- **Largest.** They take the contour with the largest polygon area (holes filled, lines and single
  pixels worth 0); we take the component with the most pixels, and of several as large the first
  in raster order.
- **All components** (MaxBoxAccV2). They take the boxes of all contours, those of holes included;
  we take the boxes of components only.
- **Ends.** Their boxes have inclusive ends, and areas add 1 to each side; yet the predicted
  ``x1 = x + width`` is an exclusive end, which makes predictions one pixel too wide and too high
  except at the image's border. Ours are exclusive throughout, in continuous coordinates.
- **Size.** They resize images and boxes to 224 x 224 and truncate the boxes to integers; we work
  at the image's own size with the boxes as annotated, clipped to the image.
- **Empty maps.** Where no pixel passes they predict the box (0, 0, 0, 0) of one pixel; we
  count a miss.
- **Thresholds.** Theirs are 0, 0.001, ..., 0.999; ours 0.01, ..., 0.99, the paper's figure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.metrics.boxes import check_box, iou
from benchmarks.metrics.components import MAX_THRESHOLDS, sweep_components
from benchmarks.metrics.heatmaps import scale_to_max
from captum_embed.errors import InputError

THRESHOLDS: NDArray[np.float64] = np.arange(1, 100) / 100
THRESHOLDS.setflags(write=False)
PAPER_THRESHOLD = 0.2
PAPER_BAND = (0.15, 0.25)
DELTA = 0.5
V2_DELTAS = (0.3, 0.5, 0.7)
# Thresholds closer than this are the same number, written or computed differently.
ROUNDING = 1e-9


@dataclass(frozen=True)
class ThresholdSweep:
    """What one heatmap predicts at each threshold.

    Attributes:
        thresholds: (T,), increasing.
        iou: (T,), IoU of the largest component's box with the object's.
        best_iou: (T,), highest IoU of any component's box with the object's.
        boxes: (T, 4), box of the largest component, x0, y0, x1, y1 with exclusive ends.
        empty: whether the heatmap is zero everywhere; then all of the above are 0.
    """

    thresholds: NDArray[np.float64]
    iou: NDArray[np.float64]
    best_iou: NDArray[np.float64]
    boxes: NDArray[np.int64]
    empty: bool


def threshold_sweep(
    heatmap: ArrayLike, box: ArrayLike, thresholds: ArrayLike = THRESHOLDS
) -> ThresholdSweep:
    """Localize with one heatmap at every threshold, in one pass over its pixels.

    Args:
        heatmap: (H, W) at the size of the image, finite and not negative.
        box: (4,), the object's x0, y0, x1, y1 in pixels, exclusive ends, clipped to the image.
        thresholds: (T,), strictly increasing, in [0, 1], fractions of the heatmap's maximum.

    Returns:
        Boxes and IoU at each threshold.

    Raises:
        InputError: see ``check_heatmap`` and ``check_box``; or thresholds that are not as above.

    Source:
        Chen, Chen, Hajimirsadeghi and Mori, "Adapting Grad-CAM for Embedding Networks",
        WACV 2020, supplement, "Quantitative results".

    Example:
        >>> sweep = threshold_sweep([[0, 4, 0], [0, 2, 0]], (1, 0, 2, 2), thresholds=[0.5, 0.6])
        >>> sweep.boxes.tolist(), sweep.iou.tolist()
        ([[1, 0, 2, 2], [1, 0, 2, 1]], [1.0, 0.5])
    """
    scaled = scale_to_max(heatmap)
    height, width = scaled.shape
    target = check_box(box, width, height)
    taus = _check_thresholds(thresholds)
    if not scaled.any():
        zeros = np.zeros(taus.size)
        return ThresholdSweep(taus, zeros, zeros.copy(), np.zeros((taus.size, 4), np.int64), True)
    boxes, best_iou = sweep_components(scaled, taus, target)
    return ThresholdSweep(taus, iou(boxes, target), best_iou, boxes, False)


class BestThreshold(NamedTuple):
    """Accuracy at the threshold that is best for a whole data set, and that threshold."""

    accuracy: float
    threshold: float


def is_correct(ious: ArrayLike, delta: float = DELTA) -> NDArray[np.bool_]:
    """Whether each prediction counts as correct: IoU of at least delta.

    Args:
        ious: (N, T), of N images at T thresholds.
        delta: IoU to reach, in (0, 1].

    Returns:
        (N, T) bool.

    Raises:
        InputError: not (N, T), no images, values outside [0, 1] or NaN, or delta out of range.

    Example:
        >>> is_correct([[0.49, 0.5, 0.8]])
        array([[False,  True,  True]])
    """
    values = np.asarray(ious, dtype=np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise InputError(f"expected IoU of shape (images, thresholds), got {values.shape}")
    if not ((values >= 0) & (values <= 1)).all():
        raise InputError("IoU values lie in [0, 1], got values outside or NaN")
    if not 0 < delta <= 1:
        raise InputError(f"delta, the IoU to reach, lies above 0 and up to 1, got {delta}")
    return values >= delta


def is_correct_v2(best_ious: ArrayLike, deltas: Sequence[float] = V2_DELTAS) -> NDArray[np.bool_]:
    """Whether the best of all components counts as correct, for each delta of MaxBoxAccV2.

    Args:
        best_ious: (N, T), ``ThresholdSweep.best_iou`` of N images.
        deltas: (D,), IoU to reach.

    Returns:
        (N, D, T) bool.

    Raises:
        InputError: no deltas, or see ``is_correct``.

    Example:
        >>> is_correct_v2([[0.4, 0.6]], deltas=(0.3, 0.5)).tolist()
        [[[True, True], [False, True]]]
    """
    if len(deltas) == 0:
        raise InputError("MaxBoxAccV2 needs at least one delta, got none")
    return np.stack([is_correct(best_ious, delta) for delta in deltas], axis=1)


def accuracy_curve(ious: ArrayLike, delta: float = DELTA) -> NDArray[np.float64]:
    """Share of images localized correctly, at each threshold.

    Args:
        ious: (N, T), ``ThresholdSweep.iou`` of N images.
        delta: IoU to reach.

    Returns:
        (T,) in [0, 1].

    Raises:
        InputError: see ``is_correct``.

    Example:
        >>> accuracy_curve([[0.6, 0.4], [0.9, 0.5]])
        array([1. , 0.5])
    """
    return is_correct(ious, delta).mean(axis=0)


def accuracy_at(
    ious: ArrayLike, tau: float = PAPER_THRESHOLD, *, thresholds: ArrayLike = THRESHOLDS
) -> float:
    """Share of images localized correctly at one fixed threshold.

    Args:
        ious: (N, T).
        tau: one of ``thresholds``.
        thresholds: (T,).

    Returns:
        Accuracy in [0, 1].

    Raises:
        InputError: tau is not among the thresholds, T differs, or see ``is_correct``.

    Example:
        >>> accuracy_at([[0.6, 0.4], [0.9, 0.5]], tau=0.2, thresholds=[0.1, 0.2])
        0.5
    """
    return mean_accuracy(ious, tau, tau, thresholds=thresholds)


def mean_accuracy(
    ious: ArrayLike,
    low: float = PAPER_BAND[0],
    high: float = PAPER_BAND[1],
    *,
    thresholds: ArrayLike = THRESHOLDS,
) -> float:
    """Share of images localized correctly, averaged over the thresholds from low to high.

    Args:
        ious: (N, T).
        low: lowest threshold, included.
        high: highest threshold, included.
        thresholds: (T,).

    Returns:
        Accuracy in [0, 1].

    Raises:
        InputError: no threshold lies in the band, T differs, or see ``is_correct``.

    Example:
        >>> mean_accuracy([[0.2, 0.6, 0.8]], 0.1, 0.2, thresholds=[0.1, 0.2, 0.3])
        0.5
    """
    curve = accuracy_curve(ious)
    return float(curve[band(low, high, thresholds, curve.size)].mean())


def max_box_acc(ious: ArrayLike, *, thresholds: ArrayLike = THRESHOLDS) -> BestThreshold:
    """MaxBoxAcc: accuracy at the threshold that is best for the whole data set.

    Args:
        ious: (N, T).
        thresholds: (T,).

    Returns:
        Accuracy, and its threshold (the lowest of several as good).

    Raises:
        InputError: T differs, or see ``is_correct``.

    Source:
        Choe et al., CVPR 2020, section 4.1 (with the differences listed in this module).

    Example:
        >>> max_box_acc([[0.6, 0.4], [0.9, 0.5]], thresholds=[0.1, 0.2])
        BestThreshold(accuracy=1.0, threshold=0.1)
    """
    curve = accuracy_curve(ious)
    taus = _matching(thresholds, curve.size)
    best = int(np.argmax(curve))
    return BestThreshold(float(curve[best]), float(taus[best]))


def max_box_acc_v2(best_ious: ArrayLike, deltas: Sequence[float] = V2_DELTAS) -> float:
    """MaxBoxAccV2: MaxBoxAcc with the best of all components, averaged over several deltas.

    Args:
        best_ious: (N, T), ``ThresholdSweep.best_iou`` of N images.
        deltas: (D,), IoU to reach.

    Returns:
        Accuracy in [0, 1]; each delta has its own best threshold.

    Raises:
        InputError: no deltas, or see ``is_correct``.

    Source:
        Choe et al., arXiv 2007.04178 (with the differences listed in this module).

    Example:
        >>> max_box_acc_v2([[0.6, 0.4], [0.4, 0.4]], deltas=(0.3, 0.5))
        0.75
    """
    return float(is_correct_v2(best_ious, deltas).mean(axis=0).max(axis=-1).mean())


def band(low: float, high: float, thresholds: ArrayLike, size: int) -> NDArray[np.bool_]:
    """Which thresholds lie from low to high, ends included.

    Args:
        low: lowest threshold.
        high: highest threshold.
        thresholds: (T,).
        size: T of the curves that the answer is for.

    Returns:
        (T,) bool.

    Raises:
        InputError: no threshold lies there, or T differs.

    Example:
        >>> band(0.2, 0.3, [0.1, 0.2, 0.3], 3)
        array([False,  True,  True])
    """
    taus = _matching(thresholds, size)
    inside = (taus >= low - ROUNDING) & (taus <= high + ROUNDING)
    if not inside.any():
        raise InputError(
            f"none of the {taus.size} thresholds lies from {low:g} to {high:g}: "
            f"they run from {np.min(taus):g} to {np.max(taus):g}"
        )
    return inside


def _matching(thresholds: ArrayLike, size: int) -> NDArray[np.float64]:
    taus = np.asarray(thresholds, dtype=np.float64)
    if taus.shape != (size,):
        raise InputError(f"IoU at {size} thresholds, but thresholds of shape {taus.shape}")
    return taus


def _check_thresholds(thresholds: ArrayLike) -> NDArray[np.float64]:
    taus = np.array(thresholds, dtype=np.float64)
    if taus.ndim != 1 or not 1 <= taus.size <= MAX_THRESHOLDS:
        raise InputError(f"expected 1 to {MAX_THRESHOLDS} thresholds, got shape {taus.shape}")
    if not ((taus >= 0) & (taus <= 1)).all() or not (np.diff(taus) > 0).all():
        raise InputError("thresholds lie in [0, 1] and increase strictly")
    return taus
