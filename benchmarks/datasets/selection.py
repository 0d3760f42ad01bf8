"""Splits of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from benchmarks.datasets.errors import DatasetError
from benchmarks.datasets.records import ImageRecord, ImageSet


def official_split(image_set: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Split by the data set's own training and testing lists.

    Returns:
        (training, testing).

    Raises:
        DatasetError: the data set has no split, or one side of it is empty.
    """
    unknown = [record.key for record in image_set.records if record.is_training is None]
    if unknown:
        raise DatasetError(
            f"{image_set.name} at {image_set.root} has no official split "
            f"({len(unknown)} images are in neither list, for example {unknown[0]})"
        )
    return (
        _subset(image_set, lambda record: bool(record.is_training), "training side"),
        _subset(image_set, lambda record: not record.is_training, "testing side"),
    )


def zero_shot_split(image_set: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Split into the first and the second half of the classes, as metric learning does.

    On CUB-200-2011 these are classes 1-100 and 101-200; in a subset, those of them that have
    images.

    Returns:
        (classes for training, classes for testing).

    Raises:
        DatasetError: one half has no images.

    Source:
        Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding"
        (CVPR 2016), section 5.
    """
    classes = sorted(image_set.listed_counts or image_set.class_sizes)
    first = set(classes[: len(classes) // 2])
    return (
        _subset(image_set, lambda record: record.label in first, "first half of the classes"),
        _subset(image_set, lambda record: record.label not in first, "second half of the classes"),
    )


def require_pairs(image_set: ImageSet) -> None:
    """Check that each image has another one of its class, as metric losses need.

    Raises:
        DatasetError: the set is empty, or a class has a single image; names the classes.
    """
    if not image_set.records:
        raise DatasetError(f"{image_set.name} at {image_set.root}: no images are selected")
    names = image_set.class_names
    single = [f"{label} ({names[label]})" for label, n in image_set.class_sizes.items() if n == 1]
    if single:
        raise DatasetError(
            f"{image_set.name} at {image_set.root}: a metric loss needs two images of a class, "
            f"and there is only one of class {', '.join(single)}; leave the class out"
        )


def _subset(image_set: ImageSet, keep: Callable[[ImageRecord], bool], side: str) -> ImageSet:
    records = tuple(record for record in image_set.records if keep(record))
    if not records:
        raise DatasetError(
            f"{image_set.name} at {image_set.root}: the {side} has no images; classes with "
            f"images: {', '.join(map(str, image_set.class_sizes)) or 'none'}"
        )
    # Which side the absent images belong to is not known for each split, so none is claimed.
    return replace(image_set, records=records, num_absent=0, listed_counts={})
