"""The figure of the shortcut example: queries, what is retrieved for them, maps, and numbers."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks.core.files import write_atomically
from benchmarks.report.figures import STYLE, overlay
from captum_embed.visualization import heatmap
from docs.examples.shortcut.summary import MODELS

COLOURS = {"start": "#888888", "shortcut": "#D55E00", "fixed": "#0072B2"}
_RIGHT, _WRONG = "#009E73", "#D00000"
_HEADINGS = ("retrieved", "LOCALIZE", "signed map")
_ROW, _TITLES, _KEY, _NUMBERS = 1.5, 0.55, 0.2, 1.6
"""Heights in inches."""

_KEY_TEXT = (
    "Frame: green, the right class; red, another. Outline: the object. Signed map, colours by "
    "square root: red draws the query to its neighbours, blue away."
)


@dataclass(frozen=True)
class Retrieved:
    """What one model retrieves for a query, and its maps of the query.

    Args:
        pixels (np.ndarray): the nearest image, (S, S, 3) uint8.
        caption (str): under it.
        right (bool): it shows the query's class.
        localize (Tensor): map (1, h, w).
        signed (Tensor): map (1, h, w).
    """

    pixels: NDArray[np.uint8]
    caption: str
    right: bool
    localize: Tensor
    signed: Tensor


@dataclass(frozen=True)
class Row:
    """One query with the answers of the two models.

    Args:
        pixels (np.ndarray): (S, S, 3) uint8.
        mask (np.ndarray): (S, S) bool, its object.
        caption (str): under it.
        shortcut (Retrieved): by the model trained with the shortcut.
        fixed (Retrieved): by the model trained without.
    """

    pixels: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    caption: str
    shortcut: Retrieved
    fixed: Retrieved


def draw(rows: Sequence[Row], results: Mapping[str, Any]) -> Figure:
    """Pictures above, where there are any, and numbers below.

    Args:
        rows (sequence of Row): from the top.
        results (Mapping): the content of shortcut.json.
    """
    pictures = _TITLES + _ROW * len(rows) + _KEY if rows else 0.0
    with mpl.rc_context({**STYLE, "axes.grid": False, "font.size": 8}):
        figure = Figure(figsize=(9.6, pictures + _NUMBERS), layout="constrained")
        if rows:
            parts: Any = figure.subfigures(2, 1, height_ratios=(pictures, _NUMBERS))
            _draw_pictures(parts[0], rows)
        below: Any = parts[1] if rows else figure
        _draw_numbers(below.subplots(1, 5), results)
        return figure


def _draw_pictures(figure: SubFigure, rows: Sequence[Row]) -> None:
    parts: Any = figure.subfigures(1, 3, width_ratios=(1, 3, 3))
    queries, planted, fixed = parts
    columns = [
        queries.subplots(len(rows), 1, squeeze=False),
        planted.subplots(len(rows), 3, squeeze=False),
        fixed.subplots(len(rows), 3, squeeze=False),
    ]
    for index, row in enumerate(rows):
        _show(columns[0][index, 0], row.pixels, row.caption)
        _draw_answer(columns[1][index], row, row.shortcut)
        _draw_answer(columns[2][index], row, row.fixed)
    for grid, headings in zip(columns, (("query",), _HEADINGS, _HEADINGS), strict=True):
        for axes, heading in zip(grid[0], headings, strict=True):
            axes.set_title(heading, fontsize=8)
    # Equally high titles keep the rows of the three parts level.
    queries.suptitle(" ", fontsize=9)
    planted.suptitle("planted: each class trained on a background of its own", fontsize=9)
    fixed.suptitle("fixed: trained on any background", fontsize=9)
    figure.supxlabel(_KEY_TEXT, fontsize=7)


def _draw_answer(axes: NDArray[Any], row: Row, answer: Retrieved) -> None:
    _show(axes[0], answer.pixels, answer.caption, _RIGHT if answer.right else _WRONG)
    _show(axes[1], overlay(row.pixels, heatmap(answer.localize, row.mask.shape)))
    _show(axes[2], signed_overlay(row.pixels, answer.signed))
    for map_axes, colour in zip(axes[1:], ("white", "black"), strict=True):
        map_axes.contour(row.mask, levels=(0.5,), colors=colour, linewidths=0.7)


def signed_overlay(image: NDArray[np.uint8], signed: Tensor) -> NDArray[np.floating[Any]]:
    """The image in grey under a signed map: red above zero, blue below.

    Colours follow the square root: a signed map sums to about zero, so what is spread over much
    of the image would be too faint beside a small object.
    """
    size = (image.shape[0], image.shape[1])
    values = F.interpolate(signed[None].float(), size=size, mode="bilinear")[0, 0].numpy()
    largest = np.abs(values).max() or 1.0
    strength = np.sign(values) * np.sqrt(np.abs(values) / largest)
    colours = mpl.colormaps["RdBu_r"](0.5 + 0.5 * strength)[..., :3]
    grey = image.mean(axis=2, keepdims=True) / 255
    blended: NDArray[np.floating[Any]] = 0.45 * grey + 0.55 * colours
    return blended


def _show(axes: Axes, pixels: NDArray[Any], caption: str = "", edge: str | None = None) -> None:
    axes.imshow(pixels)
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(caption, fontsize=7, labelpad=2)
    axes.spines[:].set_visible(edge is not None)
    if edge is not None:
        axes.spines[:].set(color=edge, linewidth=2.5)


def _draw_numbers(panels: Sequence[Axes], results: Mapping[str, Any]) -> None:
    retrieval, swaps, maps = results["retrieval"], results["swaps"], results["maps"]
    recall = {model: retrieval[model]["test"]["recall_at_1"] for model in MODELS}
    _bars(panels[0], "recall@1 (%)\non new photographs", recall)
    background = {model: swaps[model]["share_of_the_background"] for model in MODELS}
    _bars(panels[1], "background's share (%) of\nwhat moves the embedding", background)
    for axes, name, title in (
        (panels[2], "localize", "LOCALIZE:\n% on the object"),
        (panels[3], "signed", "signed map, from the\nbank: % on the object"),
        (panels[4], "pair", "likeness to the nearest:\n% on the object"),
    ):
        of_map = {model: maps[name][model] for model in MODELS if model in maps[name]}
        on_object = {model: numbers["on_object"] for model, numbers in of_map.items()}
        _bars(axes, title, on_object, [numbers["by_chance"] for numbers in of_map.values()])
        axes.set(xlim=(0, 55), xticks=(0, 25, 50))
        axes.set_xlabel("dotted: by chance", fontsize=7)


def _bars(
    axes: Axes,
    title: str,
    bars: Mapping[str, Sequence[float]],
    by_chance: Sequence[float] | None = None,
) -> None:
    for place, (model, estimate) in enumerate(bars.items()):
        value, low, high = (100 * number for number in estimate)
        axes.barh(place, value, color=COLOURS[model], height=0.7)
        axes.plot([low, high], [place, place], color="black", lw=1)
        end = high
        if by_chance is not None:
            chance = 100 * by_chance[place]
            axes.plot([chance] * 2, [place - 0.4, place + 0.4], "k:", lw=1.2)
            end = max(high, chance)
        axes.text(end, place, f" {value:.1f}", va="center", fontsize=7)
    axes.set_yticks(range(len(bars)), [MODELS[model] for model in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 125)
    axes.set_xticks([0, 50, 100])
    axes.set_title(title, fontsize=8)


def save_with_palette(figure: Figure, path: Path, dpi: int = 120) -> Path:
    """A PNG of 256 colours: photographs in full colour would make it four times as large."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, dpi=dpi, format="png")
    image = Image.open(buffer).convert("RGB")
    small = image.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    return write_atomically(path, lambda temporary: small.save(temporary, optimize=True))
