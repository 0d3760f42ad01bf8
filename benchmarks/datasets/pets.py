"""Oxford-IIIT Pet, in the layout that torchvision downloads it to."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.datasets.annotation_files import parse_int, path_below, read_rows
from benchmarks.datasets.records import Box, DatasetError, ImageRecord, ImageSet, load_mask

FOLDER_NAME = "oxford-iiit-pet"
FOREGROUND = (1, 3)
"""Values of a trimap that are the animal.

1 is the animal, 2 the background, 3 the band along the outline that was left undecided. The band
is counted in, as is usual where two classes are wanted: it holds thin parts such as ears and
tails whole, and without it the annotated box of the head reaches out of the animal in 9 images
of 10; with it, in none.
"""


def is_pets_root(root: Path) -> bool:
    """Whether ``load_pets`` would find its files here."""
    return _base(root) is not None


def load_pets(root: Path | str) -> ImageSet:
    """Read Oxford-IIIT Pet, complete or a subset.

    The folder holds ``images/`` and ``annotations/`` with ``trainval.txt``, ``test.txt``
    (``<image name> <class id> <species> <breed id>``), ``trimaps/`` and, for some of the images,
    ``xmls/`` with the box of the head. Masks are those of `FOREGROUND`, boxes are the tight
    boxes of the masks, and the box of the head is in ``extra_boxes["head"]``.

    Args:
        root (Path or str): the folder with ``annotations/``, or its parent with
            ``oxford-iiit-pet/``.

    Returns:
        The images that are there, ``trainval.txt`` first. Listed images without a ``.jpg`` file
        are counted in ``num_absent``.

    Raises:
        DatasetError: a file is missing or malformed, or none of the listed images is there;
            names the file and, of a list, the line.
        UnreadableImageError: a trimap can't be decoded.

    Source:
        Parkhi et al., "Cats and Dogs" (CVPR 2012).
    """
    base = _base(Path(root))
    if base is None:
        raise DatasetError(
            f"{root}: not Oxford-IIIT Pet in torchvision's layout: expected images/, "
            f"annotations/trimaps/ and annotations/trainval.txt there or in {FOLDER_NAME}/"
        )
    records: list[ImageRecord] = []
    listed: Counter[int] = Counter()
    first_places: dict[str, str] = {}
    for list_name, is_training in (("trainval.txt", True), ("test.txt", False)):
        path = base / "annotations" / list_name
        if not path.is_file():
            continue
        for line, fields in read_rows(path, ("image name", "class id", "species", "breed id")):
            source = f"{path}, line {line}"
            name, label = fields[0], parse_int(fields[1], "class id", path, line)
            if name in first_places:
                raise DatasetError(f"{source}: {name} is listed twice ({first_places[name]})")
            first_places[name] = source
            listed[label] += 1
            image_path = path_below(base / "images", f"{name}.jpg", source)
            if image_path.is_file():
                records.append(_record(base, name, image_path, label, is_training, source))
    if not records:
        raise DatasetError(f"{base / 'images'}: none of the {len(first_places)} images is there")
    return ImageSet(
        name=base.name,
        root=base,
        records=tuple(records),
        num_absent=len(first_places) - len(records),
        listed_counts=dict(sorted(listed.items())),
    )


def _base(root: Path) -> Path | None:
    for base in (root, root / FOLDER_NAME):
        annotations = base / "annotations"
        if (
            (base / "images").is_dir()
            and (annotations / "trimaps").is_dir()
            and (annotations / "trainval.txt").is_file()
        ):
            return base
    return None


def _record(
    base: Path, name: str, image_path: Path, label: int, is_training: bool, source: str
) -> ImageRecord:
    trimap = path_below(base / "annotations" / "trimaps", f"{name}.png", source)
    if not trimap.is_file():
        raise DatasetError(f"{source}: {name} has no trimap {trimap}, and so no box")
    head = path_below(base / "annotations" / "xmls", f"{name}.xml", source)
    record = ImageRecord(
        key=f"{name}.jpg",
        path=image_path,
        label=label,
        class_name=name.rsplit("_", 1)[0],
        box=(0.0, 0.0, 0.0, 0.0),
        mask_path=trimap,
        mask_foreground=FOREGROUND,
        is_training=is_training,
        extra_boxes={"head": _head_box(head)} if head.is_file() else {},
    )
    return replace(record, box=tight_box(load_mask(record)))


def tight_box(mask: np.ndarray) -> Box:
    """The smallest box that holds every True pixel.

    Args:
        mask (np.ndarray): boolean (H, W) with a True pixel.

    Example:
        >>> tight_box(np.array([[False, False, False], [False, True, True]]))
        (1.0, 1.0, 3.0, 2.0)
    """
    columns = np.flatnonzero(mask.any(axis=0))
    rows = np.flatnonzero(mask.any(axis=1))
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def _head_box(path: Path) -> Box:
    """The box of a Pascal VOC file, whose pixels are counted from 1 and whose ends belong to it."""
    try:
        # A document type could define entities that expand without end, and none is needed.
        if b"<!" in (content := path.read_bytes()):
            raise ValueError("it holds a declaration")
        box = ElementTree.fromstring(content).find("object/bndbox")
        if box is None:
            raise ValueError("no object with a bndbox")
        x0, y0, x1, y1 = (float(box.findtext(k, "")) for k in ("xmin", "ymin", "xmax", "ymax"))
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise DatasetError(f"{path}: can't be read as a Pascal VOC annotation ({error})") from error
    if not (1 <= x0 <= x1 < float("inf") and 1 <= y0 <= y1 < float("inf")):
        raise DatasetError(f"{path}: not a box: ({x0}, {y0}) to ({x1}, {y1})")
    return (x0 - 1, y0 - 1, x1, y1)
