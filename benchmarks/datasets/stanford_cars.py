"""Stanford Cars, in the layout that torchvision expects."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

from benchmarks.datasets.annotation_files import parse_box, path_below
from benchmarks.datasets.records import DatasetError, ImageRecord, ImageSet

FOLDER_NAME = "stanford_cars"
_CLASSES = Path("devkit", "cars_meta.mat")
_PARTS = (
    (Path("devkit", "cars_train_annos.mat"), "cars_train", True),
    (Path("cars_test_annos_withlabels.mat"), "cars_test", False),
)
_FIELDS = ("fname", "class", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def is_stanford_cars_root(root: Path) -> bool:
    """Whether ``load_stanford_cars`` would find its files here."""
    return _base(root) is not None


def load_stanford_cars(root: Path | str) -> ImageSet:
    """Read Stanford Cars, complete or a subset.

    The folder holds ``devkit/cars_meta.mat``, ``devkit/cars_train_annos.mat`` with
    ``cars_train/``, and may hold ``cars_test_annos_withlabels.mat`` with ``cars_test/``.
    Boxes are in pixels counted from 1, whose ends belong to them, and are turned into ours.

    Args:
        root (Path or str): the folder with ``devkit/``, or its parent with ``stanford_cars/``.

    Returns:
        The images that are there, training first. Listed images without a file are counted in
        ``num_absent``.

    Raises:
        DatasetError: a file is missing or malformed, or none of the listed images is there.
        BoxError: a box is not finite or has no area.

    Source:
        Krause et al., "3D Object Representations for Fine-Grained Categorization" (3dRR 2013).
    """
    base = _base(Path(root))
    if base is None:
        raise DatasetError(
            f"{root}: not Stanford Cars in torchvision's layout: expected {_CLASSES} and "
            f"{_PARTS[0][0]} there or in {FOLDER_NAME}/"
        )
    class_names = _read_class_names(base / _CLASSES)
    records: list[ImageRecord] = []
    listed: Counter[int] = Counter()
    for file_name, folder, is_training in _PARTS:
        if (base / file_name).is_file():
            _read_part(base, file_name, folder, is_training, class_names, records, listed)
    if not records:
        raise DatasetError(f"{base}: none of the {listed.total()} listed images is there")
    return ImageSet(
        name=base.name,
        root=base,
        records=tuple(records),
        num_absent=listed.total() - len(records),
        listed_counts=dict(sorted(listed.items())),
    )


def _base(root: Path) -> Path | None:
    for base in (root, root / FOLDER_NAME):
        if (base / _CLASSES).is_file() and (base / _PARTS[0][0]).is_file():
            return base
    return None


def _read_part(
    base: Path,
    file_name: Path,
    folder: str,
    is_training: bool,
    class_names: dict[int, str],
    records: list[ImageRecord],
    listed: Counter[int],
) -> None:
    """Add the images of one list to the records and to the counts of each class."""
    path = base / file_name
    seen: set[str] = set()
    for number, row in enumerate(_read_rows(path), start=1):
        source = f"{path}, annotation {number}"
        name, label = str(row["fname"]), _whole_number(row["class"], source)
        if name in seen:
            raise DatasetError(f"{source}: {name} is listed twice")
        seen.add(name)
        if label not in class_names:
            raise DatasetError(f"{base / _CLASSES}: no name for class {label} of {name}")
        listed[label] += 1
        x1, y1, x2, y2 = (_whole_number(row[field], source) for field in _FIELDS[2:])
        # Not parsed from text, but the same checks apply.
        sides = [str(x1 - 1), str(y1 - 1), str(x2 - x1 + 1), str(y2 - y1 + 1)]
        box = parse_box(sides, path, number, name)
        image_path = path_below(base / folder, name, source)
        if image_path.is_file():
            records.append(
                ImageRecord(
                    key=f"{folder}/{name}",
                    path=image_path,
                    label=label,
                    class_name=class_names[label],
                    box=box,
                    is_training=is_training,
                )
            )


def _read_rows(path: Path) -> np.ndarray:
    rows = np.atleast_1d(_read_variable(path, "annotations"))
    missing = [field for field in _FIELDS if field not in (rows.dtype.names or ())]
    if missing:
        raise DatasetError(f"{path}: the annotations have no {', '.join(missing)}")
    return rows


def _read_class_names(path: Path) -> dict[int, str]:
    names = np.atleast_1d(_read_variable(path, "class_names"))
    return {number: str(name) for number, name in enumerate(names, start=1)}


def _read_variable(path: Path, name: str) -> Any:
    try:
        return loadmat(str(path), squeeze_me=True)[name]
    except KeyError as error:
        raise DatasetError(f"{path}: there is no variable {name!r} in it") from error
    # scipy raises its own errors, TypeError, ValueError and others on broken files.
    except Exception as error:
        raise DatasetError(f"{path}: can't be read as a MATLAB file ({error})") from error


def _whole_number(value: Any, source: str) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise DatasetError(f"{source}: expected a whole number, got {value!r}") from error
    if number != value:
        raise DatasetError(f"{source}: expected a whole number, got {value!r}")
    return number
