"""What a method costs, beside one plain forward pass of the same network in the same run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.report.figures import COLOURS, FLOOR_GREY, STYLE

# What accuracy is plotted against cost: protocol, figure, and its name; the first that a run has.
PLOTTED = (
    ("boxes", "accuracy_at_0.2", "images with IoU ≥ 0.5 at τ = 0.2 (%)"),
    ("attention", "score", "visual attention score, box (%)"),
)
FAMILY_COLOURS = dict(
    zip(("ours", "captum: layer", "captum: input", "rival", "control"), COLOURS, strict=False)
)
MARKERS = {"ours": "o", "captum: layer": "s", "captum: input": "^", "rival": "D", "control": "P"}


@dataclass(frozen=True)
class CostPoint:
    """A method in the cost figure.

    Args:
        name (str): of the method.
        title (str): of the method.
        family (str): of the method.
        seconds (float): per image, median.
        times_forward (float, optional): see `benchmarks.results.summary.summarize`.
        accuracy (float): in [0, 1].
        low (float): lower end of its interval.
        high (float): upper end of its interval.
    """

    name: str
    title: str
    family: str
    seconds: float
    times_forward: float | None
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class CostPlot:
    """Accuracy against cost: the points, and what is on the vertical axis."""

    points: tuple[CostPoint, ...]
    label: str
    protocol: str
    floor: float | None


def cost_plot(results: Mapping[str, Any]) -> CostPlot | None:
    """The points of a run's cost figure; None where nothing was timed.

    Args:
        results (Mapping): content of results.json.
    """
    about = {method["name"]: method for method in results["methods"]}
    for protocol, figure, label in PLOTTED:
        numbers = {n: p[protocol] for n, p in results["summary"].items() if protocol in p}
        points = tuple(
            CostPoint(
                name,
                about[name]["title"],
                about[name]["family"],
                found["median_seconds"],
                found["times_forward"],
                found[figure],
                *found["intervals"][figure],
            )
            for name, found in numbers.items()
            if found["median_seconds"] is not None
        )
        if points:
            floor = numbers.get("centre_box", {}).get(figure)
            return CostPlot(points, label, protocol, floor)
    return None


def frontier(points: Sequence[CostPoint]) -> list[CostPoint]:
    """Points that no cheaper point equals or beats, from cheap to expensive.

    Example:
        >>> cheap, good, bad = (
        ...     CostPoint(n, n, "ours", seconds, None, accuracy, 0, 1)
        ...     for n, seconds, accuracy in (("a", 1, 0.5), ("b", 2, 0.7), ("c", 3, 0.6))
        ... )
        >>> [point.name for point in frontier([bad, good, cheap])]
        ['a', 'b']
    """
    best: list[CostPoint] = []
    for point in sorted(points, key=lambda p: (p.seconds, -p.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


def _labelled(points: Sequence[CostPoint]) -> list[CostPoint]:
    """The best points, without those whose labels would lie on a better one's."""
    kept: list[CostPoint] = []
    for point in sorted(points, key=lambda p: -p.accuracy):
        if all(
            better.accuracy - point.accuracy > 0.05 or better.seconds > 10 * point.seconds
            for better in kept
        ):
            kept.append(point)
    return kept


def draw_costs(plot: CostPlot, subtitle: str) -> Figure:
    """Accuracy over time per image, with 95% intervals, one marker per family."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 4.4), layout="constrained")
        axes = figure.subplots()
        if plot.floor is not None:
            axes.axhline(100 * plot.floor, color=FLOOR_GREY, linestyle=(0, (1, 1)), lw=1.2)
        for family, colour in FAMILY_COLOURS.items():
            points = [point for point in plot.points if point.family == family]
            if points:
                accuracy = np.array([point.accuracy for point in points])
                ends = np.array([[point.low, point.high] for point in points]).T
                axes.errorbar(
                    [point.seconds for point in points],
                    100 * accuracy,
                    yerr=100 * np.abs(ends - accuracy),
                    fmt=MARKERS[family],
                    color=colour,
                    ecolor=mpl.colors.to_rgba(colour, 0.35),
                    markersize=6,
                    label=family,
                )
        for point in _labelled(frontier(plot.points)):
            axes.annotate(
                point.title,
                (point.seconds, 100 * point.accuracy),
                xytext=(6, 4),
                textcoords="offset points",
                fontsize=7,
            )
        axes.set(xscale="log", ylim=(0, 100), xlabel="seconds per image", ylabel=plot.label)
        figure.suptitle(f"Accuracy against cost\n{subtitle}", x=0.02, ha="left")
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
        return figure
