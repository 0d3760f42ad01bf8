"""A heatmap's pixel histograms as a short string, for the records of a run."""

from __future__ import annotations

import base64
import binascii
import zlib

import numpy as np

from benchmarks.metrics.pxap import NUM_BINS
from captum_embed.errors import InputError

SHAPE = (2, NUM_BINS + 1)


def pack_counts(histograms: np.ndarray) -> str:
    """The histograms of `benchmarks.metrics.pxap.pixel_histograms`, (2, B + 1), as text.

    Little-endian 32-bit counts, compressed by zlib, in base64: a whole data set's PxAP follows
    from the records, whatever order the images came in.

    Example:
        >>> counts = np.zeros(SHAPE, int)
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
        return counts.reshape(SHAPE).astype(np.int64)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise InputError(f"these are no pixel histograms: {text[:40]!r} ({error})") from error
