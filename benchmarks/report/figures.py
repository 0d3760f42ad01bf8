"""Image grids: maps beside their training images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from benchmarks.core.files import write_atomically
from captum_embed.errors import InputError

STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "svg.hashsalt": "captum_embed",
    # Names come from data files, and a $ in one is no formula.
    "text.parse_math": False,
}
METADATA: dict[str, dict[str, Any]] = {".png": {"Software": None}, ".svg": {"Date": None}}

Box = tuple[float, float, float, float]


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
    box: Box | None
    predicted: Box | None
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
        for row, panels in zip(grid, rows, strict=True):
            for axes, panel in zip((row[:2], row[2:]), panels, strict=True):
                _draw(axes[0], panel.image, panel.box, None)
                _draw(axes[1], overlay(panel.image, panel.heatmap), panel.box, panel.predicted)
                axes[0].set_xlabel(panel.caption, fontsize=7)
        for axes, heading in zip(grid[0], headings, strict=True):
            axes.set_title(heading, fontsize=9)
        figure.suptitle(title, fontsize=9, x=0.02, ha="left")
        return figure


def _draw(axes: Axes, pixels: np.ndarray, box: Box | None, predicted: Box | None) -> None:
    axes.imshow(pixels)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    for sides, colour, style in ((box, "white", "-"), (predicted, "#00E5FF", "--")):
        for edge, width in (("black", 2.6), (colour, 1.3)) if sides is not None else ():
            x0, y0, x1, y1 = (side - 0.5 for side in sides or ())
            outline = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=edge, lw=width, ls=style)
            axes.add_patch(outline)


def save_figure(figure: Figure, path: Path, dpi: int = 130) -> Path:
    """A PNG or SVG, by the suffix; the same bytes for the same figure.

    Raises:
        InputError: another suffix.
    """
    if path.suffix not in METADATA:
        raise InputError(f"{path}: a figure is a .png or .svg file")
    options: dict[str, Any] = {"dpi": dpi, "metadata": METADATA[path.suffix]}
    with mpl.rc_context(STYLE):
        return write_atomically(path, lambda temporary: figure.savefig(temporary, **options))
