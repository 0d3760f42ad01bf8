"""What is drawn: PIL images, arrays and tensors as one kind of array."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from captum_embed.errors import InputError

FloatArray = NDArray[np.floating[Any]]
Picture: TypeAlias = Image.Image | NDArray[Any] | Tensor
"""An image of any kind: PIL, an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), a tensor
(C, H, W) or (1, C, H, W)."""
Normalization: TypeAlias = tuple[Any, Any] | Callable[[Tensor], Tensor]
"""How tensors were normalised, to be undone: the mean and the standard deviation of each channel,
or a function from a normalised tensor (C, H, W) to one in [0, 1]."""

# Interpolation beyond bilinear leaves the range of the pixels a little.
_OVERSHOOT = 0.25
_ROUNDING = 1e-3


def picture(image: Picture, normalization: Normalization | None = None) -> FloatArray:
    """Any image as an array of colours.

    Args:
        image: A PIL image; an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), floats in [0, 1] or
            8-bit; or a tensor (C, H, W) or (1, C, H, W) with one or three channels. An alpha
            channel is left out.
        normalization: Of tensors: (mean, std) of each channel, or a function that undoes the
            normalisation; None: their values are in [0, 1], or 8-bit.

    Returns:
        Array (H, W, 3), floats in [0, 1].

    Raises:
        InputError: It is none of these; or its values are not in [0, 1].

    Example::

        >>> import torch
        >>> normalised = (torch.rand(1, 3, 4, 6) - 0.5) / 0.25
        >>> picture(normalised, normalization=(0.5, 0.25)).shape
        (4, 6, 3)
    """
    if isinstance(image, Tensor):
        pixels = _of_tensor(image, normalization)
    else:
        pixels = np.asarray(_of_eight_bits(image) if isinstance(image, Image.Image) else image)
    if not (np.issubdtype(pixels.dtype, np.number) or pixels.dtype == bool):
        raise InputError(
            f"the image is a {type(image).__name__}; expected a PIL image, an array or a tensor "
            "(PIL.Image.open reads a file)"
        )
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or 0 in pixels.shape:
        raise InputError(
            f"the image is an array of shape {pixels.shape}; expected (height, width), or "
            "(height, width, channels) with 1, 3 or 4 channels: one image, channels last"
        )
    undone = isinstance(image, Tensor) and normalization is not None
    colours = _in_range(pixels, _OVERSHOOT if undone else _ROUNDING, isinstance(image, Tensor))
    return np.repeat(colours, 3, axis=2) if colours.shape[2] == 1 else colours[:, :, :3]


def _of_eight_bits(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith(("I;", "F")):
        raise InputError(
            f"the PIL image has mode {image.mode}, whose range of values is unknown; scale it to "
            "an array with floats in [0, 1]"
        )
    return image.convert("RGB")


def _of_tensor(image: Tensor, normalization: Normalization | None) -> NDArray[Any]:
    one = image.detach().cpu()
    one = one[0] if one.dim() == 4 and len(one) == 1 else one
    if one.dim() != 3 or one.shape[0] not in (1, 3):
        last = one.dim() == 3 and one.shape[-1] in (1, 3)
        hint = "permute(2, 0, 1) brings the channels to the front" if last else "pass one image"
        raise InputError(
            f"the image is a tensor of shape {tuple(image.shape)}; expected (C, H, W) or "
            f"(1, C, H, W) with 1 or 3 channels: {hint}"
        )
    if normalization is not None:
        one = _undone(one.float(), normalization)
    elif one.is_floating_point():
        one = one.float()
    return one.movedim(0, -1).numpy()


def _undone(image: Tensor, normalization: Normalization) -> Tensor:
    if callable(normalization):
        undone = normalization(image)
        if not isinstance(undone, Tensor) or undone.shape != image.shape:
            given = tuple(undone.shape) if isinstance(undone, Tensor) else type(undone).__name__
            raise InputError(
                f"normalization returned {given} for an image {tuple(image.shape)}; expected a "
                "tensor of the same shape, in [0, 1]"
            )
        return undone.detach().cpu().float()
    if not isinstance(normalization, Sequence) or len(normalization) != 2:
        raise InputError(
            f"normalization is {normalization!r}; expected (mean, std), each a number or one "
            "number a channel, or a function that undoes the normalisation"
        )
    mean, std = (torch.as_tensor(each, dtype=torch.float32).cpu() for each in normalization)
    if any(each.numel() not in (1, len(image)) for each in (mean, std)):
        raise InputError(
            f"normalization has a mean of {mean.numel()} numbers and a std of {std.numel()}, and "
            f"the image {len(image)} channels; expected one number, or one a channel"
        )
    return image * std.reshape(-1, 1, 1) + mean.reshape(-1, 1, 1)


def _in_range(pixels: NDArray[Any], beyond: float, is_tensor: bool) -> FloatArray:
    eight_bits = np.issubdtype(pixels.dtype, np.integer)
    colours = pixels / 255 if eight_bits else pixels.astype(float)
    low, high = float(np.min(colours)), float(np.max(colours))
    # Written so that NaN is refused too.
    if not (low >= -beyond and high <= 1 + beyond):
        values = f"{np.min(pixels):.3g} to {np.max(pixels):.3g}"
        advice = (
            "pass normalization=(mean, std), as the image was normalised with, or a function that "
            "undoes it"
            if is_tensor
            else "scale it, or pass 8-bit integers"
        )
        raise InputError(
            f"the image has values from {values}; expected floats in [0, 1] or 8-bit integers: "
            f"{advice}"
        )
    return np.clip(colours, 0, 1)
