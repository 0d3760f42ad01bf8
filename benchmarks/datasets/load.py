"""Loading of a data set of any known layout."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.datasets.csv_folder import COLUMNS, FILE_NAME, is_csv_root, load_csv
from benchmarks.datasets.cub import is_cub_root, load_cub
from benchmarks.datasets.pets import is_pets_root, load_pets
from benchmarks.datasets.records import DatasetError, ImageSet
from benchmarks.datasets.stanford_cars import is_stanford_cars_root, load_stanford_cars
from captum_embed.command_line.images import find_images, printable, read_image
from captum_embed.errors import InputError


@dataclass(frozen=True)
class Layout:
    """How one kind of data set is recognised and read.

    Args:
        load (Callable): folder to `ImageSet`.
        is_here (Callable): whether a folder looks like it.
        sign (str): by what it is recognised, for the error.
    """

    load: Callable[[Path | str], ImageSet]
    is_here: Callable[[Path], bool]
    sign: str


LAYOUTS: dict[str, Layout] = {
    "cub": Layout(load_cub, is_cub_root, "images.txt, or CUB_200_2011/images.txt"),
    "pets": Layout(load_pets, is_pets_root, "images/ and annotations/ with trimaps/, trainval.txt"),
    "cars": Layout(load_stanford_cars, is_stanford_cars_root, "devkit/cars_train_annos.mat"),
    "csv": Layout(load_csv, is_csv_root, "boxes.csv"),
}
"""The layouts by name, in the order in which they are looked for."""

KINDS = ("auto", *LAYOUTS)


def load_dataset(root: Path | str, kind: str = "auto") -> ImageSet:
    """Read a data set.

    Args:
        root (Path or str): its folder (or a CSV file of boxes).
        kind (str): name of the layout, or ``"auto"``: the first of `LAYOUTS` that is there.

    Returns:
        The images that are there.

    Raises:
        InputError: no such kind.
        DatasetError: nothing there in a known layout, or malformed files; names them.
    """
    if kind not in KINDS:
        raise InputError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    layout = layout_of(Path(root)) if kind == "auto" else LAYOUTS[kind]
    return layout.load(root)


def layout_of(root: Path) -> Layout:
    """The first of `LAYOUTS` that a folder looks like.

    Raises:
        DatasetError: it does not exist, or looks like none.
    """
    if not root.exists():
        raise DatasetError(f"{printable(root)}: no such folder")
    for layout in LAYOUTS.values():
        if layout.is_here(root):
            return layout
    looked_for = "; ".join(f"{name}: {layout.sign}" for name, layout in LAYOUTS.items())
    raise DatasetError(
        f"{printable(root)}: no data set in a known layout here. Looked for {looked_for}"
        + _about_photographs(root)
    )


def _about_photographs(root: Path) -> str:
    """What to do with a folder of images alone."""
    try:
        first, *others = find_images([root])
    except InputError:
        return ""
    name = first.relative_to(root) if first != root else Path(first.name)
    label = name.parts[0] if len(name.parts) > 1 else "sparrow"
    try:
        width, height = read_image(first).size
    except InputError:
        width, height = 640, 480
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow([name.as_posix(), label, 0, 0, width, height])
    return (
        f". There are {1 + len(others)} images without boxes and classes. To measure methods on "
        f"them, write {FILE_NAME} into this folder: the line {','.join(COLUMNS)}, and one such as "
        f"{printable(line.getvalue()[:-1])} for each image, with the object's box. To look at maps "
        "of them, no table is needed: captum-embed explain --help"
    )
