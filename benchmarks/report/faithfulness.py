"""Deletion and insertion in figures: the mean curves of a run, and how they are drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.metrics.removal import SHARES
from benchmarks.report.figures import COLOURS, DASHES, FLOOR, FLOOR_GREY, MOST_LABELLED, STYLE

PROTOCOL = "faithfulness"
# What is drawn: heading, horizontal axis.
KINDS = {
    "deletion": ("Deletion: lower is better", "most highlighted pixels blurred"),
    "insertion": ("Insertion: higher is better", "most highlighted pixels put back"),
}
MARKERS = ("", "o")
# The uniform heatmap has no order of its own.
RANDOM_ORDER = "uniform_heatmap"


@dataclass(frozen=True)
class RemovalLine:
    """One method's mean curves.

    Args:
        name (str): of the method.
        title (str): of the method.
        family (str): of the method.
        curves (Mapping): of ``"deletion"`` and ``"insertion"``, cosine similarity at each of
            `SHARES`.
        areas (Mapping): under them, means over images.
    """

    name: str
    title: str
    family: str
    curves: Mapping[str, Sequence[float]]
    areas: Mapping[str, float]

    @property
    def gap(self) -> float:
        """Area of insertion minus that of deletion: both in one figure, to sort by."""
        return self.areas["insertion"] - self.areas["deletion"]


def faithfulness_lines(
    summary: Mapping[str, Mapping[str, Any]], methods: Sequence[Mapping[str, Any]]
) -> list[RemovalLine]:
    """The methods and floors that were measured, the widest gap first.

    Args:
        summary (Mapping): of the run.
        methods (sequence of Mapping): of the run, floors among them.
    """
    about = {method["name"]: (method["title"], method["family"]) for method in methods}
    lines = []
    for name, numbers in summary.items():
        if (found := numbers.get(PROTOCOL)) is not None:
            title, family = about[name]
            if name == RANDOM_ORDER:
                title = f"{title} (random order)"
            curves = {kind: found[f"{kind}_curve"] for kind in KINDS}
            areas = {kind: found[kind] for kind in KINDS}
            lines.append(RemovalLine(name, title, family, curves, areas))
    return sorted(lines, key=lambda line: -line.gap)


def lowest_similarity(lines: Sequence[RemovalLine]) -> float:
    """Where the vertical axis begins: a whole tenth below all curves."""
    lowest = min(min(curve) for line in lines for curve in line.curves.values())
    # Not below a curve's own tenth for the sake of a rounding error.
    return min(0.9, math.floor(10 * lowest + 1e-9) / 10)


def draw_faithfulness(lines: Sequence[RemovalLine], subtitle: str) -> Figure:
    """Both curves side by side, with the areas under them in the legend.

    As figures 5 and 6 of RISE: Petsiuk et al., BMVC 2018. Of very many methods those with the
    widest gap are told apart, and the others are grey.
    """
    looks = _looks(lines)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12.4, 4.8), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (kind, (heading, horizontal)) in zip(panels, KINDS.items(), strict=True):
            _draw_panel(axes, lines, looks, kind)
            axes.set_title(heading, fontsize=10, loc="left")
            axes.set(xlim=(0, 100), xlabel=f"{horizontal} (% of all pixels)")
        panels[0].set_ylim(lowest_similarity(lines), 1.005)
        panels[0].set_ylabel("cosine similarity to the whole image's embedding")
        figure.suptitle(
            f"Does the embedding depend on what maps highlight?\n{subtitle}", x=0.01, ha="left"
        )
        unlabelled = len(lines) - len(looks)
        more = f"\n{unlabelled} more in grey" if unlabelled else ""
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside right upper",
            frameon=False,
            fontsize=8,
            title=f"area under: deletion, insertion{more}",
            title_fontsize=8,
            alignment="left",
        )
        return figure


def _looks(lines: Sequence[RemovalLine]) -> dict[str, dict[str, Any]]:
    """Colour and line style of those that are told apart."""
    looks: dict[str, dict[str, Any]] = {}
    labelled = [line for line in lines if line.family != FLOOR][:MOST_LABELLED]
    for index, line in enumerate(labelled):
        # Once all colours are used, they come again with a marker.
        looks[line.name] = {
            "color": COLOURS[index % len(COLOURS)],
            "marker": MARKERS[index // len(COLOURS)],
            "ms": 4,
            "ls": DASHES[line.family],
            "lw": 2.2 if line.family == "ours" else 1.3,
        }
    for line in lines:
        if line.family == FLOOR:
            dash = DASHES[FLOOR] if line.name == RANDOM_ORDER else (0, (5, 2))
            looks[line.name] = {"color": FLOOR_GREY, "ls": dash, "lw": 1.8}
    return looks


def _draw_panel(
    axes: Axes, lines: Sequence[RemovalLine], looks: Mapping[str, Mapping[str, Any]], kind: str
) -> None:
    percent = 100 * np.asarray(SHARES)
    for line in lines:
        if line.name not in looks:
            axes.plot(percent, line.curves[kind], color="#D0D0D0", lw=0.8, zorder=1)
    for line in lines:
        if line.name in looks:
            areas = "  ".join(f"{line.areas[kind]:.3f}" for kind in KINDS)
            label = f"{areas}  {line.title}"
            axes.plot(percent, line.curves[kind], label=label, **looks[line.name])
