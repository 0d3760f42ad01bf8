"""Any folder of images with a table of boxes."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from benchmarks.datasets.annotation_files import WHOLE_NUMBER, parse_box, path_below
from benchmarks.datasets.records import DatasetError, ImageRecord, ImageSet

FILE_NAME = "boxes.csv"
COLUMNS = ("image", "label", "x", "y", "width", "height")


def is_csv_root(root: Path) -> bool:
    """Whether ``load_csv`` would find its table here."""
    return (root.is_file() and root.suffix.lower() == ".csv") or (root / FILE_NAME).is_file()


def load_csv(root: Path | str) -> ImageSet:
    """Read a folder with a table of boxes.

    The table has a line of column names, ``image,label,x,y,width,height`` in any order, and may
    have ``mask`` (a grey image in which pixels >= 128 are the object; may be empty) and
    ``split`` (``train`` or ``test``). Further columns are left alone. Files are named relative to
    the folder of the table, boxes are in pixels. Labels that are whole numbers are the class
    numbers; otherwise classes are numbered from 1 by the order of their names.

    Args:
        root (Path or str): the folder with ``boxes.csv``, or a CSV file of any name.

    Returns:
        The images that are there, in the order of the table. Listed images without a file are
        counted in ``num_absent``.

    Raises:
        DatasetError: no such table, a column is missing, a line is malformed or none of the
            images is there; names the file and the line.
        BoxError: a box is not finite or has no area.
    """
    path = _find_table(Path(root))
    rows = list(_read_rows(path))
    numbers = _number_classes(sorted({row["label"] for _, row in rows}), path)
    folder = path.parent
    records: list[ImageRecord] = []
    lines: dict[str, int] = {}
    for line, row in rows:
        name = PurePosixPath(row["image"]).as_posix()
        if name in lines:
            raise DatasetError(
                f"{path}, line {line}: {name} is listed twice (first on line {lines[name]})"
            )
        lines[name] = line
        box = parse_box([row[column] for column in COLUMNS[2:]], path, line, name)
        image_path = path_below(folder, row["image"], f"{path}, line {line}")
        if image_path.is_file():
            records.append(
                ImageRecord(
                    key=name,
                    path=image_path,
                    label=numbers[row["label"]],
                    class_name=row["label"],
                    box=box,
                    mask_path=_find_mask(folder, row.get("mask", ""), f"{path}, line {line}"),
                    is_training=_read_split(row.get("split", ""), f"{path}, line {line}"),
                )
            )
    if not records:
        raise DatasetError(f"{path}: none of the {len(rows)} listed images is below {folder}")
    listed = Counter(numbers[row["label"]] for _, row in rows)
    return ImageSet(
        name=folder.resolve().name,
        root=folder,
        records=tuple(records),
        num_absent=len(rows) - len(records),
        listed_counts=dict(sorted(listed.items())),
    )


def _find_table(root: Path) -> Path:
    path = root if root.is_file() else root / FILE_NAME
    if not path.is_file():
        raise DatasetError(f"{root}: no table of boxes; expected a CSV file or {path}")
    return path


def _read_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, the fields by the name of their column, stripped)."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.reader(file, strict=True)
            header = [name.strip().lower() for name in next(table, [])]
            _check_header(path, header)
            for fields in table:
                if not fields:
                    continue
                if len(fields) != len(header):
                    raise DatasetError(
                        f"{path}, line {table.line_num}: expected {len(header)} fields "
                        f"({','.join(header)}), got {len(fields)}"
                    )
                row = dict(zip(header, (field.strip() for field in fields), strict=True))
                if not row["label"]:
                    raise DatasetError(f"{path}, line {table.line_num}: the label is empty")
                yield table.line_num, row
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 text ({error.reason})") from error
    except csv.Error as error:
        raise DatasetError(f"{path}, line {table.line_num}: not CSV ({error})") from error


def _check_header(path: Path, header: list[str]) -> None:
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise DatasetError(
            f"{path}, line 1: no column {', '.join(missing)}; expected the column names "
            f"{','.join(COLUMNS)} and perhaps mask,split; got {','.join(header) or 'nothing'}"
        )
    if repeated := [name for name, count in Counter(header).items() if count > 1]:
        raise DatasetError(f"{path}, line 1: column {', '.join(repeated)} comes twice")


def _number_classes(labels: list[str], path: Path) -> dict[str, int]:
    if not all(re.fullmatch(WHOLE_NUMBER, label) for label in labels):
        return {label: number for number, label in enumerate(labels, start=1)}
    spellings: dict[int, str] = {}
    for label in labels:
        if (first := spellings.setdefault(int(label), label)) != label:
            raise DatasetError(
                f"{path}: the labels {first!r} and {label!r} are the same class number; write it "
                "in one way"
            )
    return {label: number for number, label in spellings.items()}


def _find_mask(folder: Path, name: str, source: str) -> Path | None:
    if not name:
        return None
    path = path_below(folder, name, source)
    if not path.is_file():
        raise DatasetError(f"{source}: there is no mask {path}")
    return path


def _read_split(text: str, source: str) -> bool | None:
    if text not in ("", "train", "test"):
        raise DatasetError(f"{source}: split must be train, test or empty, got {text!r}")
    return None if not text else text == "train"
