"""PxAP: average precision of all pixels of a data set, scored by heatmap, labelled by mask.

Each image is reduced to a histogram of its heatmap's values on and off the object; histograms add
up over images, so that the data set's precision and recall need no pixel twice and a bootstrap
resamples images by adding histograms.

Against Choe et al.'s published code (``MaskEvaluator``) heatmaps are divided by their maximum
and not shifted to a minimum of 0, and images keep their own size where theirs become 224 x 224.
The thresholds (0, 0.001, ..., 0.999 and 1) and the sum are theirs.
"""

import base64
import binascii
import zlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.metrics.heatmaps import check_mask, scale_to_max
from captum_embed.errors import InputError

NUM_BINS = 1000
COUNTS_SHAPE = (2, NUM_BINS + 1)


def pixel_histograms(
    heatmap: ArrayLike,
    mask: ArrayLike,
    *,
    ignore: ArrayLike | None = None,
    num_bins: int = NUM_BINS,
) -> NDArray[np.int64]:
    """Count one image's pixels by heatmap value, on the object and off it.

    Args:
        heatmap: (H, W), finite and not negative.
        mask: (H, W), boolean or 0 and 1: the object.
        ignore: (H, W), boolean or 0 and 1: pixels that count neither way (a trimap's border).
            Pixels of the mask always count.
        num_bins: B; bin b holds values in [b / B, (b + 1) / B) of the heatmap's maximum, and
            bin B the maximum itself.

    Returns:
        (2, B + 1) counts: on the object, off the object.

    Raises:
        InputError: see ``check_heatmap`` and ``check_mask``; or num_bins below 1.

    Example:
        >>> pixel_histograms([[0, 1], [2, 2]], [[0, 0], [0, 1]], num_bins=2).tolist()
        [[0, 0, 1], [1, 1, 1]]
    """
    scaled = scale_to_max(heatmap)
    inside = check_mask(mask, scaled.shape)
    if num_bins < 1:
        raise InputError(f"a histogram has at least one bin, got num_bins={num_bins}")
    outside = ~inside
    if ignore is not None and np.any(ignore):
        outside &= ~check_mask(ignore, scaled.shape)
    bins = _bins(scaled, num_bins)
    return np.stack([np.bincount(bins[part], minlength=num_bins + 1) for part in (inside, outside)])


def precision_recall(
    histograms: ArrayLike,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision and recall at each threshold, from the highest to the lowest.

    Args:
        histograms: (..., 2, B + 1), summed or averaged over images.

    Returns:
        Precision and recall, (..., B + 1) each; precision is 0 where no pixel passes.

    Raises:
        InputError: the shape is another, or there is no pixel on the object.

    Example:
        >>> precision_recall([[0, 0, 1], [1, 1, 1]])
        (array([0.5       , 0.33333333, 0.25      ]), array([1., 1., 1.]))
    """
    counts = np.asarray(histograms, dtype=np.float64)
    if counts.ndim < 2 or counts.shape[-2] != 2 or counts.shape[-1] == 0:
        raise InputError(f"expected histograms of shape (..., 2, bins), got {counts.shape}")
    passed = counts[..., ::-1].cumsum(axis=-1)
    hits, false_alarms = passed[..., 0, :], passed[..., 1, :]
    if not (hits[..., -1] > 0).all():
        raise InputError("PxAP needs at least one pixel on an object")
    selected = hits + false_alarms
    precision = np.divide(hits, selected, out=np.zeros_like(hits), where=selected > 0)
    return precision, hits / hits[..., -1:]


def pxap(histograms: ArrayLike) -> NDArray[np.float64]:
    """PxAP: precision summed over the gains in recall, from the highest threshold down.

    Args:
        histograms: (..., 2, B + 1), ``pixel_histograms`` summed or averaged over the images.

    Returns:
        (...) in [0, 1].

    Raises:
        InputError: see ``precision_recall``.

    Source:
        Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020,
        section 4.1.

    Example:
        >>> float(pxap([[0, 1, 1], [1, 0, 1]]))
        0.5833333333333333
    """
    precision, recall = precision_recall(histograms)
    return (precision * np.diff(recall, axis=-1, prepend=0.0)).sum(axis=-1)


def pack_counts(histograms: np.ndarray) -> str:
    """The histograms of `pixel_histograms`, (2, B + 1), as text for the records of a run.

    Little-endian 32-bit counts, compressed by zlib, in base64: a whole data set's PxAP follows
    from the records, whatever order the images came in.

    Example:
        >>> counts = np.zeros(COUNTS_SHAPE, int)
        >>> counts[1, 5] = 70_000
        >>> bool((unpack_counts(pack_counts(counts)) == counts).all())
        True
    """
    return base64.b64encode(zlib.compress(histograms.astype("<u4").tobytes(), 9)).decode()


def unpack_counts(text: str) -> np.ndarray:
    """The histograms (2, B + 1) of `pack_counts`.

    Raises:
        InputError: this is no such text.
    """
    try:
        counts = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), "<u4")
        return counts.reshape(COUNTS_SHAPE).astype(np.int64)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise InputError(f"these are no pixel histograms: {text[:40]!r} ({error})") from error


def _bins(scaled: NDArray[np.float64], num_bins: int) -> NDArray[np.intp]:
    # floor(scaled * B) is off by one where the product rounds across a bin's edge.
    edges = np.append(np.arange(num_bins + 1) / num_bins, np.inf)
    bins = (scaled * num_bins).astype(np.intp)
    bins -= scaled < edges[bins]
    bins += scaled >= edges[bins + 1]
    return bins
