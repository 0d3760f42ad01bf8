"""The images of a run: classes, splits, and a first reading of every image."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.core.settings import Classes, ClassNumbers, class_choice, setting
from benchmarks.datasets.download import CUB_IMAGES, download_cub
from benchmarks.datasets.embedded import distractors_of, write_embedded
from benchmarks.datasets.load import LAYOUTS, layout_of, load_dataset
from benchmarks.datasets.records import (
    DatasetError,
    ImageRecord,
    ImageSet,
    UnreadableImageError,
    clip_box,
    load_mask,
    load_rgb,
)
from captum_embed.errors import InputError

EMBEDDED = "embedded"
MOST_NAMED = 50  # unreadable images, in results.json
SPLITS = ("classes", "official", "zero-shot")

DATA_HELP = (
    "folder of a data set, known by the files in it ("
    + "; ".join(f"{name}: {layout.sign}" for name, layout in LAYOUTS.items())
    + f'), or "{EMBEDDED}": generated locally'
)
SPLIT_HELP = (
    "classes: those of --train-classes and --test-classes; official: the data set's own training "
    "and test images; zero-shot: the first half of its classes and the second (CUB: 1-100, 101-200)"
)
DOWNLOAD_HELP = "fetch CUB-200-2011 (1.2 GB) into --data, unless there is a data set"


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which images."""

    data: str = setting(DATA_HELP)
    train_classes: Classes | None = setting(
        "classes to train or to make weight banks of: numbers such as 1-10, or names such as "
        "robin,sparrow",
        default=None,
        parse=class_choice,
    )
    test_classes: Classes | None = setting(
        "classes to test on, likewise", default=None, parse=class_choice
    )
    split: str = setting(SPLIT_HELP, default=SPLITS[0], choices=SPLITS)
    download: bool = setting(DOWNLOAD_HELP, default=False, changes_results=False)


@dataclass(frozen=True)
class DataChoice:
    """Training images, for the bank, and test images, of other classes or the same.

    Args:
        train (ImageSet): of the training classes.
        test (ImageSet): of the test classes.
        unreadable (tuple of str): messages of the images that were dropped by `survey`.
    """

    train: ImageSet
    test: ImageSet
    train_classes: ClassNumbers
    test_classes: ClassNumbers
    unreadable: tuple[str, ...] = ()

    def digest(self) -> str:
        """Changes with any image's name, class, box or mask being there; not with the place."""
        listing = [
            # Named only where there is one: sets without masks keep their digests.
            [record.key, record.label, list(record.box), *["mask"] * (record.mask_path is not None)]
            for images in (self.train, self.test)
            for record in images.records
        ]
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        named, more = self.unreadable[:MOST_NAMED], len(self.unreadable) - MOST_NAMED
        return {
            "name": self.test.name,
            "root": str(self.test.root),
            "distractors": distractors_of(self.test.root),
            "train": _facts(self.train, self.train_classes),
            "test": _facts(self.test, self.test_classes),
            "unreadable": [*named, f"and {more} more"] if more > 0 else list(named),
        }


def _facts(images: ImageSet, classes: ClassNumbers) -> dict[str, Any]:
    return {
        "classes": str(classes),
        "images": len(images),
        "absent": images.num_absent,
        "masks": sum(record.mask_path is not None for record in images.records),
    }


def choose_data(
    data: str,
    train_classes: Classes | None,
    test_classes: Classes | None,
    folder: Path,
    seed: int,
    *,
    split: str = SPLITS[0],
    download: bool = False,
    progress: bool,
) -> DataChoice:
    """The images of a run.

    Args:
        data (str): a folder that `load_dataset` knows, or ``"embedded"``: generated locally.
        train_classes (Classes, optional): default, for the embedded set alone: its first
            half.
        test_classes (Classes, optional): likewise its second half.
        folder (Path): where the embedded set is written.
        seed (int): of the embedded set.
        split (str): ``"classes"``, by the class numbers given; ``"official"`` or ``"zero-shot"``,
            see `official_split` and `zero_shot_split`.
        download (bool): fetch CUB-200-2011 into the folder, unless there is a data set.
        progress (bool): show a bar while a data set is made or fetched.

    Raises:
        InputError: classes not given, or given beside another split.
        DatasetError: no known layout, a class without images, no such split, no download.
    """
    refuse_split_conflict(split, train_classes, test_classes)
    everything = open_data(data, folder, seed, download=download, progress=progress)
    if split != "classes":
        return split_data(everything, split)
    if data == EMBEDDED:
        labels = sorted({record.label for record in everything.records})
        half = len(labels) // 2
        train_classes = train_classes or ClassNumbers(labels[:half])
        test_classes = test_classes or ClassNumbers(labels[half:])
    if train_classes is None or test_classes is None:
        raise InputError(
            f"--data {data}: say which classes to use with --train-classes and --test-classes, "
            f"for example 1-10 and 26-35. Classes with images: {everything.listing()}"
        )
    train, test = everything.numbers_of(train_classes), everything.numbers_of(test_classes)
    return DataChoice(everything.select(train), everything.select(test), train, test)


def refuse_unknown_data(settings: DataSettings) -> None:
    """Raise `DatasetError` where `choose_data` would find no data set in the folder.

    It only looks at the folder. Commands call it before they make or download a network.
    """
    if settings.data != EMBEDDED and not settings.download:
        layout_of(Path(settings.data))


def refuse_split_conflict(
    split: str, train_classes: Classes | None, test_classes: Classes | None
) -> None:
    """Raise `InputError` where classes are given, and another split than by classes."""
    if split == "classes":
        return
    for flag, classes in (("--train-classes", train_classes), ("--test-classes", test_classes)):
        if classes is not None:
            raise InputError(
                f"--split {split} takes its sides from the data set, and {flag} {classes} names "
                "classes; leave one of them out"
            )


def split_data(everything: ImageSet, split: str) -> DataChoice:
    """Both sides of the ``"official"`` or the ``"zero-shot"`` split."""
    sides = official_split(everything) if split == "official" else zero_shot_split(everything)
    train, test = (ClassNumbers(sorted(side.class_sizes)) for side in sides)
    return DataChoice(*sides, train, test)


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


def open_data(
    data: str, folder: Path, seed: int, *, download: bool = False, progress: bool
) -> ImageSet:
    """All images of ``--data``; the embedded set is made, and CUB fetched where asked.

    Raises:
        InputError: a download of the embedded set.
        DatasetError: no known layout, or the download failed.
    """
    if data == EMBEDDED:
        if download:
            raise InputError(
                f"--download fetches CUB-200-2011 into --data; --data {EMBEDDED} is generated "
                "locally; give a folder"
            )
        return load_dataset(write_embedded(folder / EMBEDDED, seed=seed, progress=progress))
    root = Path(data)
    if download and not any(layout.is_here(root) for layout in LAYOUTS.values()):
        inside = root.name == CUB_IMAGES.folder
        download_cub(root.parent if inside else root, progress=progress)
    return load_dataset(root)


def survey(choice: DataChoice, *, progress: bool) -> DataChoice:
    """Read every image, mask and box once, so that bad files show before work starts.

    Images that are unreadable, or whose masks are, are dropped, each with a warning.

    Raises:
        InputError: a box without a pixel in its image; or no image is left.
    """
    bar = tqdm(
        total=len(choice.train) + len(choice.test), desc="reading images", disable=not progress
    )
    with bar:
        train, train_bad = _readable(choice.train, bar)
        test, test_bad = _readable(choice.test, bar)
    # Training and test classes may overlap.
    unreadable = tuple(dict.fromkeys(train_bad + test_bad))
    return DataChoice(train, test, choice.train_classes, choice.test_classes, unreadable)


def _readable(images: ImageSet, bar: Any) -> tuple[ImageSet, list[str]]:
    kept: list[ImageRecord] = []
    unreadable: list[str] = []
    for record in images.records:
        problem = _problem(record)
        if problem is None:
            kept.append(record)
        else:
            warnings.warn(f"left out: {problem}", stacklevel=2)
            unreadable.append(problem)
        bar.update()
    if not kept:
        raise InputError(f"{images.root}: none of the {len(images)} chosen images could be read")
    return replace(images, records=tuple(kept)), unreadable


def _problem(record: ImageRecord) -> str | None:
    try:
        size = load_rgb(record).size
        clip_box(record.box, *size, record.key)
        if record.mask_path is not None:
            load_mask(record, size)
    except UnreadableImageError as error:
        return str(error)
    return None
