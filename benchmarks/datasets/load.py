"""Loading of a data set of any known layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.datasets.csv_folder import is_csv_root, load_csv
from benchmarks.datasets.cub import is_cub_root, load_cub
from benchmarks.datasets.pets import is_pets_root, load_pets
from benchmarks.datasets.records import DatasetError, ImageSet
from benchmarks.datasets.stanford_cars import is_stanford_cars_root, load_stanford_cars
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
    root = Path(root)
    if kind != "auto":
        return LAYOUTS[kind].load(root)
    if not root.exists():
        raise DatasetError(f"{root}: no such folder")
    for layout in LAYOUTS.values():
        if layout.is_here(root):
            return layout.load(root)
    looked_for = "; ".join(f"{name}: {layout.sign}" for name, layout in LAYOUTS.items())
    raise DatasetError(f"{root}: no data set in a known layout here. Looked for {looked_for}")
