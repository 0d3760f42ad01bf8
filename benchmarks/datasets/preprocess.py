"""Preprocessing of an image to the network's input, with its box and mask.

Protocol A resizes the shorter side to 256 and crops the central 224x224; protocol B feeds the
image at its full size.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from benchmarks.datasets.records import Box
from captum_embed.errors import InputError

SHORT_SIDE = 256
CROP_SIDE = 224
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Turn an RGB image into a tensor normalised by ImageNet's mean and deviation.

    Args:
        image (PIL.Image): in mode RGB, of any size.

    Returns:
        float32 tensor (3, H, W).
    """
    if image.mode != "RGB":
        raise InputError(f"expected an RGB image, got mode {image.mode}; use load_rgb")
    pixels = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 255
    mean = torch.tensor(IMAGENET_MEAN)[:, None, None]
    std = torch.tensor(IMAGENET_STD)[:, None, None]
    return ((pixels - mean) / std).contiguous()


def to_image(tensor: torch.Tensor) -> torch.Tensor:
    """Undo the normalisation of `to_tensor`: (3, H, W) with values in [0, 1]."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (tensor.cpu() * std + mean).clamp(0, 1)


def resize_center_crop(
    image: Image.Image, short: int = SHORT_SIDE, crop: int = CROP_SIDE
) -> Image.Image:
    """Resize so that the shorter side is ``short`` (bilinear, antialiased) and crop the centre.

    Returns:
        Image of ``crop`` x ``crop`` pixels.
    """
    _check_sizes(short, crop)
    resized = resize(image, [short], InterpolationMode.BILINEAR)
    return center_crop(resized, [crop, crop])


def resize_center_crop_mask(
    mask: np.ndarray, short: int = SHORT_SIDE, crop: int = CROP_SIDE
) -> np.ndarray:
    """Do to a mask what ``resize_center_crop`` does to its image, with nearest neighbours.

    Args:
        mask (np.ndarray): boolean (H, W).
        short (int): length of the shorter side after resizing.
        crop (int): side of the central square.

    Returns:
        Boolean array (crop, crop). It is empty if the object lies outside the crop.
    """
    _check_sizes(short, crop)
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise InputError(f"expected a boolean mask (H, W), got {mask.dtype} {mask.shape}")
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    resized = resize(image, [short], InterpolationMode.NEAREST)
    return np.asarray(center_crop(resized, [crop, crop])) > 0


def resize_crop_box(
    box: Box, width: int, height: int, short: int = SHORT_SIDE, crop: int = CROP_SIDE
) -> Box | None:
    """Do to a box what ``resize_center_crop`` does to its image, with torchvision's rounding.

    Args:
        box (Box): (x0, y0, x1, y1) in the pixels of the image.
        width (int): of the image before resizing.
        height (int): of the image before resizing.
        short (int): length of the shorter side after resizing.
        crop (int): side of the central square.

    Returns:
        The box in the pixels of the crop, clipped to it, with fractions of pixels kept; None if
        no part of it lies in the crop.

    Example:
        >>> resize_crop_box((0.0, 0.0, 512.0, 512.0), 512, 512)
        (0.0, 0.0, 224.0, 224.0)
        >>> resize_crop_box((100.0, 50.0, 300.0, 250.0), 512, 512)
        (34.0, 9.0, 134.0, 109.0)
    """
    _check_sizes(short, crop)
    new_width, new_height = resized_size(width, height, short)
    left, top = round((new_width - crop) / 2.0), round((new_height - crop) / 2.0)
    scale_x, scale_y = new_width / width, new_height / height
    x0, x1 = (min(max(x * scale_x - left, 0.0), float(crop)) for x in (box[0], box[2]))
    y0, y1 = (min(max(y * scale_y - top, 0.0), float(crop)) for y in (box[1], box[3]))
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def resized_size(width: int, height: int, short: int = SHORT_SIDE) -> tuple[int, int]:
    """The (width, height) after resizing the shorter side; the longer side is rounded down."""
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


def _check_sizes(short: int, crop: int) -> None:
    if not 0 < crop <= short:
        raise InputError(f"crop must be between 1 and short = {short}, got {crop}")
