"""The photographs of the shortcut example, and copies of them with one thing exchanged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from benchmarks.datasets.annotation_files import read_keyed_rows
from benchmarks.datasets.cub import load_cub
from benchmarks.datasets.embedded import write_embedded
from benchmarks.datasets.preprocess import to_tensor
from benchmarks.datasets.records import DatasetError, load_mask, load_rgb
from benchmarks.datasets.textures import TEXTURES, TextureStore

BACKGROUND_OF_CLASS = {
    1: "moon",  # Astronaut
    3: "gravel",  # Coin
    4: "wood",  # Cup
    6: "grass",  # Horse
    7: "brick",  # Motorcycle
    10: "tissue",  # Retina
    11: "stars",  # Rocket
}
"""The planted shortcut: each class that is trained on has a texture of its own."""

# Textures are photographed at about the size of the data set's images.
_TEXTURE_SIDE = 480


@dataclass(frozen=True)
class Photographs:
    """Images made square, with what is known of them.

    Args:
        keys (tuple of str): N names.
        pixels (np.ndarray): (N, S, S, 3) uint8.
        masks (np.ndarray): (N, S, S) bool, the object.
        labels (tuple of int): N classes.
        backgrounds (tuple of str): N textures.
    """

    keys: tuple[str, ...]
    pixels: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    labels: tuple[int, ...]
    backgrounds: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def select(self, indices: Sequence[int] | NDArray[np.intp]) -> Photographs:
        chosen = [int(index) for index in indices]
        return Photographs(
            tuple(self.keys[i] for i in chosen),
            self.pixels[chosen],
            self.masks[chosen],
            tuple(self.labels[i] for i in chosen),
            tuple(self.backgrounds[i] for i in chosen),
        )

    def of_classes(self, classes: Sequence[int]) -> Photographs:
        return self.select([i for i, label in enumerate(self.labels) if label in set(classes)])


def write_sets(folder: Path, images_per_class: int, seed: int, *, progress: bool) -> list[Path]:
    """Write the three sets: planted, fixed (any background) and test (other images, likewise)."""
    return [
        write_embedded(
            folder / name,
            images_per_class=images_per_class,
            seed=3 * seed + number,
            background_of_class=backgrounds,
            progress=progress,
        )
        for number, (name, backgrounds) in enumerate(
            (("planted", BACKGROUND_OF_CLASS), ("fixed", {}), ("test", {}))
        )
    ]


def load_photographs(
    root: Path, side: int, classes: Sequence[int] | None = None, *, progress: bool
) -> Photographs:
    """The whole images of an embedded set, each squeezed to a square.

    Args:
        root (Path): written by `write_embedded`.
        side (int): in pixels.
        classes (sequence of int, optional): which to load; default: all.
        progress (bool): show a bar.

    Raises:
        DatasetError: no embedded set, or one without ``backgrounds.txt``.
    """
    images = load_cub(root)
    records = images.records if classes is None else images.select(classes).records
    backgrounds = _backgrounds(root)
    pixels = np.empty((len(records), side, side, 3), np.uint8)
    masks = np.empty((len(records), side, side), np.bool_)
    bar = tqdm(records, f"reading {root.name}", leave=False, disable=not progress)
    for index, record in enumerate(bar):
        image = load_rgb(record)
        mask = Image.fromarray(load_mask(record, image.size).astype(np.uint8))
        pixels[index] = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))
        masks[index] = np.asarray(mask.resize((side, side), Image.Resampling.NEAREST)) > 0
    return Photographs(
        tuple(record.key for record in records),
        pixels,
        masks,
        tuple(record.label for record in records),
        tuple(backgrounds[record.key] for record in records),
    )


def _backgrounds(root: Path) -> dict[str, str]:
    """From the key of an image to its texture."""
    path = root / "backgrounds.txt"
    if not path.is_file():
        raise DatasetError(
            f"{path} is missing: not the embedded data set, or written by an older version; "
            f"remove {root} to have it written again"
        )
    names = read_keyed_rows(root / "images.txt", ("image_id", "image_name"))
    textures = read_keyed_rows(path, ("image_id", "texture"))
    return {names[number][1][0]: fields[0] for number, (_, fields) in textures.items()}


def split_held_out(photographs: Photographs) -> tuple[Photographs, Photographs]:
    """The first three quarters of each class, and the rest."""
    kept: list[int] = []
    held_out: list[int] = []
    labels = np.asarray(photographs.labels)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = -(-3 * len(members) // 4)
        kept.extend(members[:count])
        held_out.extend(members[count:])
    return photographs.select(kept), photographs.select(held_out)


def as_batch(pixels: NDArray[np.uint8]) -> Tensor:
    """(N, S, S, 3) uint8 to the network's input (N, 3, S, S)."""
    batch = torch.stack([to_tensor(Image.fromarray(image)) for image in pixels])
    return batch.contiguous(memory_format=torch.channels_last)


SWAPS = ("original", "same_background", "other_background", "other_object")
"""What each composite of `swapped` shows, in comparison with the first."""


def swapped(photographs: Photographs, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Four composites of each photograph, (4, S, S, 3) uint8, in the order of `SWAPS`.

    The object pasted on a fresh piece of its own texture; on another piece of that texture; on a
    piece of another texture; and, on the very piece of the first, an object of another class from
    another photograph.

    Args:
        photographs (Photographs): of two classes or more.
        seed (int): of the pieces and the partners.
    """
    textures = TextureStore()
    labels = np.asarray(photographs.labels)
    for index in range(len(photographs)):
        rng = np.random.default_rng([seed, index])
        own = photographs.backgrounds[index]
        others = [name for name in TEXTURES if name != own]
        other = others[int(rng.integers(len(others)))]
        partner = int(rng.choice(np.flatnonzero(labels != labels[index])))
        side = photographs.masks.shape[1]
        scene, scene_again = (_piece(textures, own, side, rng) for _ in range(2))
        other_scene = _piece(textures, other, side, rng)
        yield np.stack(
            [
                _paste(photographs, index, scene),
                _paste(photographs, index, scene_again),
                _paste(photographs, index, other_scene),
                _paste(photographs, partner, scene),
            ]
        )


def _piece(
    textures: TextureStore, name: str, side: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    pixels = textures.crop(name, (_TEXTURE_SIDE, _TEXTURE_SIDE), rng).round().astype(np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR))


def _paste(photographs: Photographs, index: int, scene: NDArray[np.uint8]) -> NDArray[np.uint8]:
    mask = photographs.masks[index][..., None]
    return np.where(mask, photographs.pixels[index], scene)
