"""CUB-200-2011, and any data set written in its layout."""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath

from benchmarks.datasets.annotation_files import parse_box, parse_int, path_below, read_keyed_rows
from benchmarks.datasets.records import DatasetError, ImageRecord, ImageSet

REQUIRED = ("images.txt", "image_class_labels.txt", "classes.txt", "bounding_boxes.txt")


def is_cub_root(root: Path) -> bool:
    """Whether ``load_cub`` would find its files here."""
    return (root / "images.txt").is_file() or (root / "CUB_200_2011" / "images.txt").is_file()


def load_cub(root: Path | str) -> ImageSet:
    """Read a data set in the CUB layout, complete or a subset.

    The folder holds ``images.txt`` (``<image id> <name>``), ``image_class_labels.txt``,
    ``classes.txt``, ``bounding_boxes.txt`` (``<image id> <x> <y> <width> <height>``),
    ``images/``, and may hold ``train_test_split.txt`` and ``segmentations/`` (the name of the
    image with ``.png``; pixels >= 128 are the object, which in CUB's own files is what most of
    the annotators marked).

    Args:
        root (Path or str): the folder with ``images.txt``, or its parent with ``CUB_200_2011/``.

    Returns:
        The images that are there, in the order of ``images.txt``. Listed images without a file
        are counted in ``num_absent``.

    Raises:
        DatasetError: a file is missing or malformed, or none of the listed images is there;
            names the file and the line.
        BoxError: a box is not finite or has no area.

    Source:
        Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset" (CNS-TR-2011-001).
    """
    root = _find_root(Path(root))
    names = read_keyed_rows(root / "images.txt", ("image id", "image name"))
    labels = _read_labels(root)
    class_names = {
        label: fields[0]
        for label, (_, fields) in read_keyed_rows(
            root / "classes.txt", ("class id", "class name")
        ).items()
    }
    boxes = read_keyed_rows(root / "bounding_boxes.txt", ("image id", "x", "y", "width", "height"))
    split = _read_split(root)
    _refuse_repeated_names(root, names)

    records: list[ImageRecord] = []
    listed: Counter[int] = Counter()
    for image_id, (line, (name,)) in names.items():
        source = f"{root / 'images.txt'}, line {line}"
        path = path_below(root / "images", name, source)
        label = labels.get(image_id)
        if label is None:
            raise DatasetError(f"{root / 'image_class_labels.txt'}: no class for {name}")
        if label not in class_names:
            raise DatasetError(f"{root / 'classes.txt'}: no name for class {label} of {name}")
        listed[label] += 1
        if image_id not in boxes:
            raise DatasetError(f"{root / 'bounding_boxes.txt'}: no box for image {name}")
        box_line, fields = boxes[image_id]
        box = parse_box(fields, root / "bounding_boxes.txt", box_line, name)
        if not path.is_file():
            continue
        records.append(
            ImageRecord(
                key=PurePosixPath(name).as_posix(),
                path=path,
                label=label,
                class_name=class_names[label],
                box=box,
                mask_path=_find_mask(root, name, source),
                is_training=split.get(image_id),
            )
        )
    if not records:
        raise DatasetError(f"{root / 'images'}: none of the {len(names)} listed images is there")
    return ImageSet(
        name=root.name,
        root=root,
        records=tuple(records),
        num_absent=len(names) - len(records),
        listed_counts=dict(sorted(listed.items())),
    )


def _find_root(root: Path) -> Path:
    if not root.is_dir():
        raise DatasetError(f"{root}: not a directory")
    if not (root / "images.txt").is_file() and (root / "CUB_200_2011" / "images.txt").is_file():
        root = root / "CUB_200_2011"
    missing = [name for name in REQUIRED if not (root / name).is_file()]
    if not (root / "images").is_dir():
        missing.append("images/")
    if missing:
        raise DatasetError(
            f"{root}: not a data set in the CUB layout, {', '.join(missing)} is missing"
        )
    return root


def _refuse_repeated_names(root: Path, names: dict[int, tuple[int, list[str]]]) -> None:
    first_lines: dict[str, int] = {}
    for line, (spelling,) in names.values():
        name = PurePosixPath(spelling).as_posix()
        if name in first_lines:
            raise DatasetError(
                f"{root / 'images.txt'}, line {line}: {name} is listed twice (first on line "
                f"{first_lines[name]})"
            )
        first_lines[name] = line


def _read_labels(root: Path) -> dict[int, int]:
    path = root / "image_class_labels.txt"
    rows = read_keyed_rows(path, ("image id", "class id"))
    return {
        image_id: parse_int(fields[0], "class id", path, line)
        for image_id, (line, fields) in rows.items()
    }


def _read_split(root: Path) -> dict[int, bool]:
    path = root / "train_test_split.txt"
    if not path.is_file():
        return {}
    split: dict[int, bool] = {}
    for image_id, (line, (flag,)) in read_keyed_rows(path, ("image id", "is training")).items():
        if flag not in ("0", "1"):
            raise DatasetError(f"{path}, line {line}: expected 0 or 1, got {flag!r}")
        split[image_id] = flag == "1"
    return split


def _find_mask(root: Path, name: str, source: str) -> Path | None:
    path = path_below(root / "segmentations", str(Path(name).with_suffix(".png")), source)
    if path.is_file():
        return path
    if path.exists():
        raise DatasetError(f"{source}: the mask {path} is no file")
    return None
