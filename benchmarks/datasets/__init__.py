"""Data sets with boxes and masks, and what happens to an image before the network sees it."""

from benchmarks.datasets.cub import load_cub
from benchmarks.datasets.errors import BoxError, DatasetError, UnreadableImageError
from benchmarks.datasets.records import (
    Box,
    ImageRecord,
    ImageSet,
    clip_box,
    load_mask,
    load_rgb,
)
from benchmarks.datasets.selection import (
    official_split,
    require_pairs,
    zero_shot_split,
)

__all__ = [
    "Box",
    "BoxError",
    "DatasetError",
    "ImageRecord",
    "ImageSet",
    "UnreadableImageError",
    "clip_box",
    "load_cub",
    "load_mask",
    "load_rgb",
    "official_split",
    "require_pairs",
    "zero_shot_split",
]
