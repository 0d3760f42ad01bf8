"""Images and maps of the HTML report, kept in the run's folder so that it can be made again."""

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
from benchmarks.metrics.figures import Figure
from benchmarks.protocols.boxes import AT_PAPER, IOU_UNIT
from benchmarks.protocols.registry import PROTOCOLS
from benchmarks.report.looks import figure_of
from benchmarks.results.images import ImageTable
from captum_embed.errors import InputError

FOLDER = "qualitative"
INDEX = "panels.json"
LONGER_SIDE = 288
LEVELS = 64
MOST_METHODS = 6
NUM_WORST = 8

Sides = tuple[float, float, float, float]


@dataclass(frozen=True)
class MapPanel:
    """A method's map of one image.

    Args:
        method (str): its name.
        file (str): a transparent PNG, to be laid over the image.
        predicted (tuple of float, optional): box at the paper's threshold; None for an empty map.
        score (float, optional): of this map, see `image_scores`; None where it was not measured.
    """

    method: str
    file: str
    predicted: Sides | None
    score: float | None = None


@dataclass(frozen=True)
class ImagePanels:
    """One image with the maps of several methods.

    Args:
        key (str): of the image.
        class_name (str): of its class.
        size (tuple of int): width and height; boxes are in these pixels, files are smaller.
        box (tuple of float): ground truth.
        file (str): a PNG.
        maps (tuple of MapPanel): in the order of the columns.
    """

    key: str
    class_name: str
    size: tuple[int, int]
    box: Sides
    file: str
    maps: tuple[MapPanel, ...]


@dataclass(frozen=True)
class Panels:
    """All images of the report.

    Args:
        protocol (str): how they are shown.
        chosen (tuple of ImagePanels): drawn at random.
        worst (tuple of ImagePanels): where the main method does worst.
    """

    protocol: str
    chosen: tuple[ImagePanels, ...]
    worst: tuple[ImagePanels, ...]


def compared_methods(results: Mapping[str, Any], protocol: str) -> list[str]:
    """The methods whose maps are shown: the main one, and the best fast ones of each family.

    Args:
        results (Mapping): content of results.json.
        protocol (str): that says which are the best.
    """
    of_protocol = [figure for figure in results["figures"] if figure["protocol"] == protocol]
    leading = sorted(of_protocol, key=lambda figure: not figure.get("lead"))[:1]
    main = results["main_method"]

    def loss(method: Mapping[str, Any]) -> float:
        found = figure_of(results, method["name"], leading[0]) if leading else None
        if found is None:
            return float("inf")
        value: float = found["value"]
        return -value if leading[0]["better"] == "higher" else value

    fast = (m for m in results["methods"]
            if m.get("cost") == "fast" and m["name"] in results["summary"])  # fmt: skip
    ranked = sorted(fast, key=loss)
    best: dict[str, str] = {}
    for method in ranked:
        if method["name"] != main:
            best.setdefault(method["family"], method["name"])
    chosen = [name for name in (main, *best.values()) if name is not None]
    return chosen[:MOST_METHODS]


def worst_images(
    images: ImageTable, protocol: str, main: str | None, count: int = NUM_WORST
) -> list[str]:
    """Keys of the images on which the main method does worst, the worst first.

    Args:
        images (ImageTable): of the run.
        protocol (str): IoU at the paper's threshold for ``"boxes"``, else the value of `lead`.
        main (str, optional): the method.
        count (int): at most so many.
    """
    scores = image_scores(images, protocol, main)
    return sorted(scores, key=lambda key: (scores[key], key))[:count]


def image_scores(images: ImageTable, protocol: str, method: str | None) -> dict[str, float]:
    """What a method reaches on each image, by key: IoU at the paper's threshold, or the score."""
    rows = [] if method is None else images.rows(protocol, method)
    if protocol == "boxes":
        return {row["key"]: row["iou"][AT_PAPER] / IOU_UNIT for row in rows}
    values = {row["key"]: lead(protocol).of(row) for row in rows}
    return {
        key: float(np.mean(np.asarray(value))) for key, value in values.items() if value is not None
    }


def lead(protocol: str) -> Figure:
    """The figure of merit that a protocol is summed up by; its first where none is said to be."""
    figures = PROTOCOLS[protocol].figures
    return next((figure for figure in figures if figure.lead), figures[0])


def small_size(width: int, height: int) -> tuple[int, int]:
    """Width and height of the files of an image.

    Example:
        >>> small_size(500, 375), small_size(100, 90)
        ((288, 216), (100, 90))
    """
    scale = min(1.0, LONGER_SIDE / max(width, height))
    return max(1, round(scale * width)), max(1, round(scale * height))


def write_photo(pixels: np.ndarray, path: Path) -> Path:
    """A smaller copy of an image (H, W, 3) uint8."""
    small = Image.fromarray(pixels).resize(small_size(*pixels.shape[1::-1]), Image.Resampling.BOX)
    return _save(small, path)


def write_map(heatmap: np.ndarray, path: Path) -> Path:
    """A smaller copy of a heatmap (H, W), zero or more: the stronger, the redder and less clear.

    Its colours are a palette of 64, so that a map takes a few kilobytes.
    """
    strength = heatmap / heatmap.max() if heatmap.max() > 0 else heatmap
    size = small_size(*heatmap.shape[::-1])
    small = Image.fromarray(strength.astype(np.float32)).resize(size, Image.Resampling.BOX)
    levels = np.clip(np.asarray(small), 0, 1) * (LEVELS - 1)
    indexed = Image.fromarray(levels.round().astype(np.uint8), mode="P")
    steps = np.linspace(0, 1, LEVELS)
    colours = (255 * mpl.colormaps["turbo"](steps)[:, :3]).round().astype(np.uint8)
    indexed.putpalette(colours.tobytes())
    opacity = (255 * (0.25 + 0.4 * np.sqrt(steps))).round().astype(np.uint8)
    return _save(indexed, path, transparency=opacity.tobytes())


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
        found = json.loads(path.read_text(encoding="utf-8"))
        return Panels(
            found["protocol"], *(tuple(map(_image, found[part])) for part in ("chosen", "worst"))
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not an index of images ({error!r})") from error


def _image(found: Mapping[str, Any]) -> ImagePanels:
    maps = tuple(
        MapPanel(one["method"], _plain(one["file"]), _sides(one["predicted"]), one.get("score"))
        for one in found["maps"]
    )
    width, height = (int(side) for side in found["size"])
    box = _sides(found["box"])
    if box is None:
        raise ValueError(f"{found['key']} has no box")
    file = _plain(found["file"])
    return ImagePanels(found["key"], found["class_name"], (width, height), box, file, maps)


def _sides(box: Sequence[float] | None) -> Sides | None:
    if box is None:
        return None
    x0, y0, x1, y1 = (float(side) for side in box)
    return x0, y0, x1, y1


def _plain(name: str) -> str:
    if Path(name).name != name or "\\" in name or name in ("", ".", ".."):
        raise ValueError(f"{name!r} is not the name of a file in this folder")
    return name
