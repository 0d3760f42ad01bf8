"""Checks of heatmaps and masks, and the scaling of a heatmap."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from captum_embed.errors import InputError


def check_heatmap(heatmap: ArrayLike) -> NDArray[np.float64]:
    """Return a heatmap as a float64 array, or refuse it.

    Args:
        heatmap: (H, W), finite and not negative. Signed attributions go through a ReLU first
            (that is part of the protocol, not of a figure of merit).

    Returns:
        (H, W) float64, C-contiguous.

    Raises:
        InputError: wrong number of axes, no pixels, not numbers, NaN, infinite or negative.
    """
    array = np.asarray(heatmap)
    if array.dtype.kind not in "biuf":
        raise InputError(f"a heatmap holds real numbers, got dtype {array.dtype}")
    if array.ndim != 2:
        raise InputError(
            f"a heatmap has shape (height, width), got {array.shape}: pass one channel of one image"
        )
    if array.size == 0:
        raise InputError(f"a heatmap has at least one pixel, got shape {array.shape}")
    values = np.ascontiguousarray(array, dtype=np.float64)
    lowest, highest = float(np.min(values)), float(np.max(values))
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        bad = int((~np.isfinite(values)).sum())
        raise InputError(
            f"a heatmap is finite, but {bad} of {values.size} pixels are NaN or infinite: "
            "look for NaN in the network's activations"
        )
    if lowest < 0:
        raise InputError(
            f"a heatmap is not negative, but its lowest pixel is {lowest:g}: "
            "apply the ReLU first (np.maximum(heatmap, 0))"
        )
    return values


def scale_to_max(heatmap: ArrayLike) -> NDArray[np.float64]:
    """Divide a heatmap by its maximum, in float64; an empty one (all zero) stays zero.

    Args:
        heatmap: (H, W), finite and not negative.

    Returns:
        (H, W) float64 in [0, 1].

    Raises:
        InputError: see ``check_heatmap``.

    Example:
        >>> scale_to_max([[0, 2], [4, 1]])
        array([[0.  , 0.5 ],
               [1.  , 0.25]])
    """
    values = check_heatmap(heatmap)
    highest = np.max(values)
    return values / highest if highest > 0 else values


def check_mask(mask: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return an object's mask as a boolean array, or refuse it.

    Args:
        mask: (H, W), boolean or holding only 0 and 1.
        shape: (H, W) of the heatmap that the mask belongs to.

    Returns:
        (H, W) bool, with at least one pixel set.

    Raises:
        InputError: not binary, another shape than the heatmap's, or no pixel set.
    """
    array = np.asarray(mask)
    if array.shape != shape:
        raise InputError(
            f"mask and heatmap differ in shape: {array.shape} and {shape} (height, width)"
        )
    if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
        raise InputError(
            f"a mask is boolean or holds only 0 and 1, got values from {array.min()} to "
            f"{array.max()}: choose a level first (for instance mask > 127)"
        )
    inside = array.astype(np.bool_)
    if not inside.any():
        raise InputError("the mask has no pixel set: leave the image out, and count it")
    return inside
