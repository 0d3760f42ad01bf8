"""Figures of a run: accuracy over the threshold, and maps beside their training images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from benchmarks.core.files import write_atomically
from benchmarks.results.summary import FLOORS
from captum_embed.errors import InputError

STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "svg.hashsalt": "captum_embed",
}
FLOOR = "floor"
DASHES: dict[str, Any] = {
    "ours": "-",
    "control": (0, (5, 1)),
    "captum: layer": "--",
    "captum: input": ":",
    "rival": "-.",
    FLOOR: (0, (1, 1)),
}
MOST_LABELLED = 16
# Okabe and Ito's colours: told apart by everyone.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C6D31")
FLOOR_GREY = "#888888"


@dataclass(frozen=True)
class Line:
    """One method in the curve figure.

    Args:
        title (str): in the legend.
        family (str): decides on the line style; `FLOOR` for those without a network.
        accuracy (sequence of float): in [0, 1], one per threshold.
        band (pair of sequences of float, optional): ends of its interval, drawn as a band.
    """

    title: str
    family: str
    accuracy: Sequence[float]
    band: tuple[Sequence[float], Sequence[float]] | None = None


def curve_lines(
    summary: Mapping[str, Mapping[str, Any]],
    methods: Sequence[Mapping[str, Any]],
    banded: str | None = None,
) -> list[Line]:
    """The lines of a run's curve figure, floors last.

    Args:
        summary (Mapping): of the run.
        methods (sequence of Mapping): of the run.
        banded (str, optional): the method that has its 95% band drawn.
    """
    about = {method["name"]: (method["title"], method["family"]) for method in methods}
    about |= {name: (title, FLOOR) for name, title in FLOORS.items()}
    return [
        Line(
            *about[name],
            numbers["boxes"]["accuracy_curve"],
            tuple(numbers["boxes"]["intervals"]["accuracy_curve"]) if name == banded else None,
        )
        for name, numbers in summary.items()
        if "boxes" in numbers
    ]


def draw_curves(lines: Sequence[Line], thresholds: np.ndarray, subtitle: str) -> Figure:
    """Share of the images whose box is right (IoU of 0.5 or more) over the threshold.

    As figure 1 of the paper's supplement: Chen et al., WACV 2020. Of very many methods the best
    at the fixed threshold are told apart, and the others are grey.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.4, 4.8), layout="constrained")
        axes = figure.subplots()
        axes.axvspan(0.15, 0.25, color="black", alpha=0.05, lw=0)
        axes.axvline(0.2, color="black", alpha=0.35, lw=0.8)
        ranked = sorted(lines, key=_at_fixed_threshold, reverse=True)
        methods = [line for line in ranked if line.family != FLOOR]
        for line in methods[MOST_LABELLED:]:
            axes.plot(thresholds, 100 * np.asarray(line.accuracy), color="#D0D0D0", lw=0.8)
        used: Counter[str] = Counter()
        for line in methods[:MOST_LABELLED]:
            # Within a family, whose line style is one, colours tell the methods apart.
            _draw_line(axes, line, thresholds, COLOURS[used[line.family] % len(COLOURS)])
            used[line.family] += 1
        for line in ranked:
            if line.family == FLOOR:
                _draw_line(axes, line, thresholds, FLOOR_GREY)
        axes.set(
            xlim=(0, 1), ylim=(0, 100), xlabel="threshold τ", ylabel="images with IoU ≥ 0.5 (%)"
        )
        figure.suptitle(f"Localization accuracy over the threshold\n{subtitle}", x=0.02, ha="left")
        figure.legend(**_legend(len(methods) - MOST_LABELLED))
        return figure


def _legend(unlabelled: int) -> dict[str, Any]:
    title = "at τ = 0.2" + (f"; {unlabelled} more in grey" if unlabelled > 0 else "")
    return {
        "loc": "outside right upper",
        "frameon": False,
        "fontsize": 8,
        "title": title,
        "alignment": "left",
    }


def _at_fixed_threshold(line: Line) -> float:
    return line.accuracy[round(0.2 * (len(line.accuracy) + 1)) - 1]


def _draw_line(axes: Axes, line: Line, thresholds: np.ndarray, colour: str) -> None:
    if line.band is not None:
        low, high = (100 * np.asarray(end) for end in line.band)
        axes.fill_between(thresholds, low, high, color=colour, alpha=0.15, lw=0)
    axes.plot(
        thresholds,
        100 * np.asarray(line.accuracy),
        color=colour,
        linestyle=DASHES[line.family],
        linewidth=2.2 if line.family == "ours" else 1.3,
        label=f"{100 * _at_fixed_threshold(line):4.1f}  {line.title}",
    )


@dataclass(frozen=True)
class Panel:
    """An image and its heatmap.

    Args:
        image (np.ndarray): (H, W, 3) uint8.
        heatmap (np.ndarray): (H, W), zero or more.
        box (tuple of float, optional): ground truth, x0, y0, x1, y1 in pixels.
        predicted (tuple of float, optional): box drawn from the heatmap.
        caption (str): under the image.
    """

    image: np.ndarray
    heatmap: np.ndarray
    box: tuple[float, float, float, float] | None
    predicted: tuple[float, float, float, float] | None
    caption: str


def overlay(image: np.ndarray, heatmap: np.ndarray) -> np.ndarray:
    """The image under its heatmap, (H, W, 3) in [0, 1]: the redder, the stronger."""
    strength = heatmap / heatmap.max() if heatmap.max() > 0 else heatmap
    colours = mpl.colormaps["turbo"](strength)[..., :3]
    opacity = 0.25 + 0.4 * np.sqrt(strength)[..., None]
    blended: np.ndarray = (1 - opacity) * image / 255 + opacity * colours
    return blended


def draw_rows(rows: Sequence[tuple[Panel, Panel]], title: str) -> Figure:
    """Rows of: training image, its map, test image, its map with the transferred weights.

    As figure 2 of the paper's supplement: Chen et al., WACV 2020.
    """
    headings = ("training image", "its map", "test image", "its map, transferred weights")
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        # Rows as high as their highest image; columns are 2.3 inches wide.
        heights = [max(panel.image.shape[0] / panel.image.shape[1] for panel in r) for r in rows]
        size = (9.2, 0.7 + sum(2.3 * height + 0.3 for height in heights))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(rows), 4, squeeze=False, gridspec_kw={"height_ratios": heights})
        for row, (training, test) in zip(grid, rows, strict=True):
            _draw_panel(row[0], row[1], training)
            _draw_panel(row[2], row[3], test)
        for axes, heading in zip(grid[0], headings, strict=True):
            axes.set_title(heading, fontsize=9)
        figure.suptitle(title, fontsize=9, x=0.02, ha="left")
        return figure


def _draw_panel(left: Axes, right: Axes, panel: Panel) -> None:
    left.imshow(panel.image)
    right.imshow(overlay(panel.image, panel.heatmap))
    for axes in (left, right):
        if panel.box is not None:
            _outline(axes, panel.box, "white")
    if panel.predicted is not None:
        _outline(right, panel.predicted, "#00E5FF", "--")
    left.set_xlabel(panel.caption, fontsize=7)
    for axes in (left, right):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)


def _outline(
    axes: Axes, box: tuple[float, float, float, float], colour: str, style: str = "-"
) -> None:
    x0, y0, x1, y1 = (side - 0.5 for side in box)
    for edge, width in (("black", 2.6), (colour, 1.3)):
        axes.add_patch(
            Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=edge, lw=width, ls=style)
        )


def save_figure(figure: Figure, path: Path, dpi: int = 130) -> Path:
    """A PNG or SVG, by the suffix; the same bytes for the same figure.

    Raises:
        InputError: another suffix.
    """
    if path.suffix == ".png":
        metadata: dict[str, Any] = {"Software": None}
    elif path.suffix == ".svg":
        metadata = {"Date": None}
    else:
        raise InputError(f"{path}: a figure is a .png or .svg file")
    with mpl.rc_context(STYLE):
        return write_atomically(
            path, lambda temporary: figure.savefig(temporary, dpi=dpi, metadata=metadata)
        )
