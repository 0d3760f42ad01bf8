"""From photographs to tensors, with boxes and masks going through the same resize and crop."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from benchmarks.datasets.records import Box

SHORT_SIDE = 256
CROP_SIDE = 224
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as (3, H, W) float32, normalised by the mean and deviation of ImageNet."""
    return TF.normalize(TF.to_tensor(image), list(IMAGENET_MEAN), list(IMAGENET_STD))


def to_image(tensor: Tensor) -> Tensor:
    """The inverse of the normalisation, (3, H, W) in [0, 1]."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (tensor.cpu() * std + mean).clamp(0, 1)


def resized_size(width: int, height: int, short: int = SHORT_SIDE) -> tuple[int, int]:
    """Width and height after the shorter side is made ``short``, as torchvision rounds it."""
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


def resize_center_crop(
    image: Image.Image, short: int = SHORT_SIDE, crop: int = CROP_SIDE
) -> Image.Image:
    """Shorter side to ``short`` pixels (bilinear), then the centre of ``crop`` x ``crop``."""
    resized = TF.resize(image, [short], InterpolationMode.BILINEAR, antialias=True)
    return TF.center_crop(resized, [crop, crop])


def resize_center_crop_mask(
    mask: Image.Image, short: int = SHORT_SIDE, crop: int = CROP_SIDE
) -> Image.Image:
    """The same for a mask, by nearest neighbour."""
    resized = TF.resize(mask, [short], InterpolationMode.NEAREST)
    return TF.center_crop(resized, [crop, crop])


def resize_crop_box(
    box: Box, width: int, height: int, short: int = SHORT_SIDE, crop: int = CROP_SIDE
) -> Box | None:
    """A box of the image, in the coordinates of `resize_center_crop`.

    Args:
        box (Box): in the image, clipped to it.
        width (int): of the image, in pixels.
        height (int): of the image, in pixels.
        short (int): length of the shorter side after resizing.
        crop (int): side of the crop.

    Returns:
        Box or None: clipped to the crop; None where nothing of it is left.

    Example:
        >>> resize_crop_box((0.0, 0.0, 512.0, 256.0), 512, 256)
        (0.0, 0.0, 224.0, 224.0)
    """
    new_width, new_height = resized_size(width, height, short)
    left, top = round((new_width - crop) / 2.0), round((new_height - crop) / 2.0)
    sx, sy = new_width / width, new_height / height
    x0, x1 = (min(max(x * sx - left, 0.0), float(crop)) for x in (box[0], box[2]))
    y0, y1 = (min(max(y * sy - top, 0.0), float(crop)) for y in (box[1], box[3]))
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None
