"""Data sets with boxes and masks, and what happens to an image before the network sees it."""

from benchmarks.datasets.choice import (
    official_split,
    require_pairs,
    zero_shot_split,
)
from benchmarks.datasets.csv_folder import load_csv
from benchmarks.datasets.cub import load_cub
from benchmarks.datasets.load import load_dataset
from benchmarks.datasets.pets import load_pets
from benchmarks.datasets.records import (
    Box,
    BoxError,
    DatasetError,
    ImageRecord,
    ImageSet,
    UnreadableImageError,
    clip_box,
    load_mask,
    load_rgb,
)
from benchmarks.datasets.stanford_cars import load_stanford_cars

__all__ = [
    "Box",
    "BoxError",
    "DatasetError",
    "ImageRecord",
    "ImageSet",
    "UnreadableImageError",
    "clip_box",
    "load_csv",
    "load_cub",
    "load_dataset",
    "load_mask",
    "load_pets",
    "load_rgb",
    "load_stanford_cars",
    "official_split",
    "require_pairs",
    "zero_shot_split",
]
