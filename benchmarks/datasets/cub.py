"""CUB-200-2011 and any data set in its layout, complete or in part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from benchmarks.datasets.records import (
    Box,
    DatasetError,
    ImageRecord,
    ImageSet,
    checked_box,
    path_below,
)

REQUIRED_FILES = ("images.txt", "image_class_labels.txt", "classes.txt", "bounding_boxes.txt")
FOLDER_NAME = "CUB_200_2011"
ZERO_SHOT_TRAIN = range(1, 101)
ZERO_SHOT_TEST = range(101, 201)

T = TypeVar("T")


def load_cub(root: str | Path) -> ImageSet:
    """Images with class, box and, where ``segmentations/`` is there, mask.

    Images that are listed and have no file are counted in ``num_absent``: a subset is as good.

    Args:
        root (str or Path): the folder that holds ``images.txt``, or the one above it.

    Returns:
        ImageSet: in the order of ``images.txt``.

    Raises:
        DatasetError: not in this layout; a malformed line (file and number are named); a name
            that leads out of the folder; no image at all.
    """
    folder = _folder(Path(root))
    classes = _table(folder / "classes.txt", lambda fields, _: fields[0], 1)
    labels = _table(folder / "image_class_labels.txt", lambda fields, _: int(fields[0]), 1)
    boxes = _table(folder / "bounding_boxes.txt", _box, 4)
    names = _table(folder / "images.txt", lambda fields, _: fields[0], 1)
    records = []
    for image_id, name in names.items():
        where = f"{folder / 'images.txt'}: image {image_id}"
        path = path_below(folder / "images", name, where)
        for table, file in ((labels, "image_class_labels.txt"), (boxes, "bounding_boxes.txt")):
            if image_id not in table:
                raise DatasetError(f"{where} has no line in {file}")
        label = labels[image_id]
        if label not in classes:
            raise DatasetError(f"{where} is of class {label}, which classes.txt does not list")
        if path.is_file():
            mask = path_below(
                folder / "segmentations", Path(name).with_suffix(".png").as_posix(), where
            )
            records.append(
                ImageRecord(
                    key=name,
                    path=path,
                    label=label,
                    class_name=classes[label],
                    box=boxes[image_id],
                    mask_path=mask if mask.is_file() else None,
                )
            )
    if not records:
        raise DatasetError(
            f"{folder}: images.txt lists {len(names)} images, and none of them is in "
            f"{folder / 'images'}"
        )
    return ImageSet(folder.name, folder, tuple(records), len(names) - len(records))


def official_split(images: ImageSet) -> tuple[ImageSet, ImageSet]:
    """The data set's own training and test images, from ``train_test_split.txt``.

    Raises:
        DatasetError: no such file, or it says nothing of an image.
    """
    path = images.root / "train_test_split.txt"
    if not path.is_file():
        raise DatasetError(f"{images.root}: there is no train_test_split.txt")
    is_train = _table(path, lambda fields, _: fields[0] == "1", 1)
    names = _table(images.root / "images.txt", lambda fields, _: fields[0], 1)
    train_names = {names[image_id] for image_id, train in is_train.items() if train}
    train = tuple(r for r in images.records if r.key in train_names)
    test = tuple(r for r in images.records if r.key not in train_names)
    return replace(images, records=train), replace(images, records=test)


def _folder(root: Path) -> Path:
    for folder in (root, root / FOLDER_NAME):
        if (folder / "images.txt").is_file():
            missing = [name for name in REQUIRED_FILES if not (folder / name).is_file()]
            if missing or not (folder / "images").is_dir():
                lacking = ", ".join(missing) or "the folder images/"
                raise DatasetError(f"{folder}: not in the CUB layout: {lacking} is missing")
            return folder
    what = "is not in the CUB layout: no images.txt in it" if root.is_dir() else "is no folder"
    raise DatasetError(
        f"{root} {what}; expected {', '.join(REQUIRED_FILES)} and images/ there or in "
        f"{FOLDER_NAME}/ below it"
    )


def _table(path: Path, parse: Callable[[list[str], str], T], columns: int) -> dict[int, T]:
    table: dict[int, T] = {}
    for number, fields in _lines(path):
        where = f"{path}, line {number}"
        try:
            key = int(fields[0])
            if len(fields) != columns + 1:
                raise ValueError
            value = parse(fields[1:], where)
        except DatasetError:
            raise
        except ValueError:
            raise DatasetError(
                f"{where}: {' '.join(fields)!r}; expected a number and {columns} more fields"
            ) from None
        if key in table:
            raise DatasetError(f"{where}: number {key} comes a second time")
        table[key] = value
    return table


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not a UTF-8 text file ({error})") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if fields := line.split():
            yield number, fields


def _box(fields: list[str], where: str) -> Box:
    x, y, width, height = map(float, fields)
    return checked_box(x, y, width, height, where)
