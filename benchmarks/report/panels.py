"""Images and maps of the page, kept in the run's folder so that it can be made again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from PIL import Image

from benchmarks.core.files import write_atomically, write_json
from benchmarks.protocols.boxes import AT_PAPER, IOU_UNIT
from benchmarks.protocols.registry import PROTOCOLS
from benchmarks.report.looks import ranked
from benchmarks.results.images import ImageTable
from captum_embed.errors import InputError

FOLDER, INDEX = "qualitative", "panels.json"
LONGER_SIDE, LEVELS = 288, 64
MOST_METHODS, NUM_WORST = 6, 8


@dataclass(frozen=True)
class MapPanel:
    """A method's map of one image.

    Args:
        method (str): its name.
        file (str): a transparent PNG, to be laid over the image.
        predicted (sequence of float, optional): box at the paper's threshold; None: empty map.
        score (float, optional): of this map, see `image_scores`; None where it was not measured.
    """

    method: str
    file: str
    predicted: Sequence[float] | None
    score: float | None = None


@dataclass(frozen=True)
class ImagePanels:
    """One image with the maps of several methods.

    Args:
        key (str): of the image.
        class_name (str): of its class.
        size (sequence of int): width and height; boxes are in these pixels, files are smaller.
        box (sequence of float): ground truth.
        file (str): a PNG.
        maps (sequence of MapPanel): in the order of the columns.
    """

    key: str
    class_name: str
    size: Sequence[int]
    box: Sequence[float]
    file: str
    maps: Sequence[MapPanel]


@dataclass(frozen=True)
class Panels:
    """All images of the report.

    Args:
        protocol (str): how they are shown.
        chosen (sequence of ImagePanels): drawn at random.
        worst (sequence of ImagePanels): where the main method does worst.
    """

    protocol: str
    chosen: Sequence[ImagePanels]
    worst: Sequence[ImagePanels]


def compared_methods(results: Mapping[str, Any], protocol: str) -> list[str]:
    """The methods whose maps are shown: the main one, and the best fast ones of each family.

    Args:
        results (Mapping): content of results.json.
        protocol (str): that says which are the best.
    """
    own = [figure for figure in results["figures"] if figure["protocol"] == protocol]
    about = {method["name"]: method for method in results["methods"]}
    best: dict[str, str] = {}
    for name in ranked({**results, "figures": own}):
        if name != results["main_method"] and about[name].get("cost") == "fast":
            best.setdefault(about[name]["family"], name)
    chosen = [name for name in (results["main_method"], *best.values()) if name is not None]
    return chosen[:MOST_METHODS]


def worst_images(
    images: ImageTable, protocol: str, main: str | None, count: int = NUM_WORST
) -> list[str]:
    """Keys of the images on which the main method does worst, by `image_scores`, worst first."""
    scores = image_scores(images, protocol, main)
    return sorted(scores, key=lambda key: (scores[key], key))[:count]


def image_scores(images: ImageTable, protocol: str, method: str | None) -> dict[str, float]:
    """What a method reaches on each image, by key: IoU at the paper's threshold, or the score."""
    rows = [] if method is None else images.rows(protocol, method)
    if protocol == "boxes":
        return {row["key"]: row["iou"][AT_PAPER] / IOU_UNIT for row in rows}
    figures = PROTOCOLS[protocol].figures
    figure = next((figure for figure in figures if figure.lead), figures[0])
    values = {row["key"]: figure.of(row) for row in rows}
    return {
        key: float(np.mean(np.asarray(value))) for key, value in values.items() if value is not None
    }


def write_photo(pixels: np.ndarray, path: Path) -> Path:
    """A smaller copy of an image (H, W, 3) uint8."""
    return _save(_small(Image.fromarray(pixels)), path)


def write_map(heatmap: np.ndarray, path: Path) -> Path:
    """A smaller copy of a heatmap (H, W), zero or more: the stronger, the redder and less clear.

    Its colours are a palette of 64, so that a map takes a few kilobytes.
    """
    strength = heatmap / heatmap.max() if heatmap.max() > 0 else heatmap
    small = _small(Image.fromarray(strength.astype(np.float32)))
    levels = np.clip(np.asarray(small), 0, 1) * (LEVELS - 1)
    indexed = Image.fromarray(levels.round().astype(np.uint8), mode="P")
    steps = np.linspace(0, 1, LEVELS)
    colours = (255 * mpl.colormaps["turbo"](steps)[:, :3]).round().astype(np.uint8)
    indexed.putpalette(colours.tobytes())
    opacity = (255 * (0.25 + 0.4 * np.sqrt(steps))).round().astype(np.uint8)
    return _save(indexed, path, transparency=opacity.tobytes())


def _small(image: Image.Image) -> Image.Image:
    scale = min(1.0, LONGER_SIDE / max(image.size))
    width, height = (max(1, round(scale * side)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX)


def _save(image: Image.Image, path: Path, **options: Any) -> Path:
    return write_atomically(
        path, lambda temporary: image.save(temporary, format="PNG", optimize=True, **options)
    )


def write_index(run: Path, panels: Panels) -> Path:
    return write_json(run / FOLDER / INDEX, asdict(panels))


def remove_panels(run: Path) -> None:
    """Leave no images of an earlier report behind."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)


def read_panels(run: Path) -> Panels | None:
    """What is in the folder of a run; None for a run without.

    Raises:
        InputError: the index is damaged, or names a file outside the folder.
    """
    path = run / FOLDER / INDEX
    if not path.exists():
        return None
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        parts = ([_image(one) for one in index[part]] for part in ("chosen", "worst"))
        return Panels(index["protocol"], *parts)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not an index of images ({error!r})") from error


def _image(one: Mapping[str, Any]) -> ImagePanels:
    image = ImagePanels(**{**one, "maps": [MapPanel(**of) for of in one["maps"]]})
    for name in (image.file, *(of.file for of in image.maps)):
        if Path(name).name != name or "\\" in name or name in ("", ".", ".."):
            raise ValueError(f"{name!r} is not the name of a file in this folder")
    for sides in (image.size, image.box, *(of.predicted for of in image.maps)):
        if sides is not None and not all(isinstance(side, (int, float)) for side in sides):
            raise ValueError(f"{sides!r} are not numbers")
    return image
