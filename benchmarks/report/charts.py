"""The charts of the HTML report, drawn as SVG that follows the page's colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.metrics.localization import PAPER_BAND, PAPER_THRESHOLD
from benchmarks.report.cost import CostPlot, CostPoint, frontier
from benchmarks.report.figures import FLOOR
from benchmarks.report.markup import Markup, join, tag

WIDTH, HEIGHT = 640.0, 400.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 16.0, 14.0, 50.0
NUM_COLOURS = 8
MOST_HIGHLIGHTED = 7
CHARACTER = 6.0  # width of a label's letter


@dataclass(frozen=True)
class Style:
    """How a method looks in every chart and in the table.

    Args:
        colour (int): of the page's palette; None: the floors' grey.
        dash (int): of the page's line styles.
        highlighted (bool): shown at first.
    """

    colour: int | None
    dash: int
    highlighted: bool

    @property
    def classes(self) -> str:
        colour = "floor" if self.colour is None else f"c{self.colour}"
        return f"{colour} d{self.dash}" + (" on" if self.highlighted else "")


def rank(results: Mapping[str, Any]) -> list[str]:
    """Methods and floors by the first figure of the table, the best first."""

    def figure(name: str) -> float:
        numbers = results["summary"][name]
        if "boxes" in numbers:
            return float(numbers["boxes"]["accuracy_at_0.2"])
        return float(numbers.get("attention", {}).get("score", 0)) - 1

    return sorted(results["summary"], key=figure, reverse=True)


def styles(results: Mapping[str, Any]) -> dict[str, Style]:
    """A style for each method and floor; the highlighted ones share no colour.

    Highlighted are the main method, the best of each family, then the best of all, and the
    floors.
    """
    families = {method["name"]: method["family"] for method in results["methods"]}
    ranked = [name for name in rank(results) if families[name] != FLOOR]
    first: dict[str, str] = {}
    for name in ranked:
        first.setdefault(families[name], name)
    wanted = [results["main_method"], *first.values(), *ranked]
    highlighted = [name for name in dict.fromkeys(wanted) if name is not None][:MOST_HIGHLIGHTED]
    order = [*highlighted, *(name for name in ranked if name not in highlighted)]
    found = {
        name: Style(index % NUM_COLOURS, index // NUM_COLOURS, name in highlighted)
        for index, name in enumerate(order)
    }
    floors = (name for name in results["summary"] if families[name] == FLOOR)
    return found | {name: Style(None, index, True) for index, name in enumerate(floors)}


def curves(results: Mapping[str, Any], looks: Mapping[str, Style]) -> Markup:
    """Accuracy over the threshold with 95% bands, every method a group that can be switched off."""
    thresholds = results["thresholds"]
    low, high = (_x(end) for end in PAPER_BAND)
    groups = []
    for name in reversed(rank(results)):
        numbers = results["summary"][name].get("boxes")
        if numbers is not None:
            curve = numbers["accuracy_curve"]
            bottom, top = numbers["intervals"]["accuracy_curve"]
            main = " main" if name == results["main_method"] else ""
            groups.append(
                tag(
                    "g",
                    tag("path", d=_area(thresholds, bottom, top), class_="band"),
                    tag("path", d=_path(thresholds, curve), class_="curve"),
                    class_=f"series {looks[name].classes}{main}",
                    data_method=name,
                )
            )
    return tag(
        "svg",
        tag("rect", x=low, y=TOP, width=_r(high - low), height=_plot_height(), class_="paper-band"),
        _grid_y(),
        *(_tick_x(_x(step / 10), f"{step / 10:g}") for step in range(0, 11, 2)),
        tag("text", "threshold τ", x=WIDTH - RIGHT, y=HEIGHT - 6, class_="axis end"),
        *groups,
        tag("line", x1=_x(PAPER_THRESHOLD), x2=_x(PAPER_THRESHOLD), y1=TOP, y2=HEIGHT - BOTTOM,
            class_="crosshair"),
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
        role="img",
        aria_label="Localization accuracy over the threshold; the table has the numbers",
        data_left=LEFT,
        data_right=WIDTH - RIGHT,
        id="curves",
    )  # fmt: skip


def costs(
    plot: CostPlot, looks: Mapping[str, Style], main: str | None, forward: float | None
) -> Markup:
    """Accuracy over time per image, with 95% intervals."""
    seconds = [point.seconds for point in plot.points] + ([forward] if forward else [])
    low, high = min(seconds) / 1.3, max(seconds) * 1.5

    def x(value: float) -> float:
        share = math.log(value / low) / math.log(high / low)
        return _r(LEFT + share * (WIDTH - LEFT - RIGHT))

    lines = []
    if forward:
        lines.append(_marked_line(x(forward)))
    if plot.floor is not None:
        y = _y(plot.floor)
        lines.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="floor-line"))
        lines.append(tag("text", "centre box", x=WIDTH - RIGHT, y=_r(y - 5), class_="remark end"))
    best = frontier(plot.points)
    steps = " ".join(f"{x(point.seconds)},{_y(point.accuracy)}" for point in best)
    lines.append(tag("polyline", points=steps, class_="frontier"))
    # The highlighted ones on top of the others, the main one on top of all.
    order = sorted(plot.points, key=lambda p: (p.name == main, looks[p.name].highlighted))
    return tag(
        "svg",
        _grid_y(),
        *(_tick_x(x(value), label) for value, label in _decades(low, high)),
        tag("text", "time per image", x=WIDTH - RIGHT, y=HEIGHT - 6, class_="axis end"),
        *lines,
        *(_point(point, x(point.seconds), looks[point.name], point.name == main)
          for point in order),
        *_labels(plot.points, x, looks, main),
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
        role="img",
        aria_label="Accuracy against time per image; the table has the numbers",
        id="costs",
    )  # fmt: skip


def shape(family: str, size: float = 5.0) -> Markup:
    """The marker of a family, around the origin."""
    s = size
    paths = {
        "captum: layer": f"M{-s},{-s}H{s}V{s}H{-s}Z",
        "captum: input": f"M0,{-1.2 * s}L{1.15 * s},{s}H{-1.15 * s}Z",
        "rival": f"M0,{-1.35 * s}L{1.35 * s},0L0,{1.35 * s}L{-1.35 * s},0Z",
        "control": f"M{-1.15 * s},{-s}H{1.15 * s}L0,{1.2 * s}Z",
    }
    if family in paths:
        return tag("path", d=paths[family], class_="marker")
    return tag("circle", r=_r(1.1 * s), class_="marker")


def _point(point: CostPoint, x: float, look: Style, main: bool) -> Markup:
    y = _y(point.accuracy)
    return tag(
        "g",
        tag("line", x1=0, x2=0, y1=_r(_y(point.low) - y), y2=_r(_y(point.high) - y),
            class_="whisker"),
        shape(point.family),
        tag("circle", r=12, class_="target"),
        class_=f"point {look.classes}" + (" main" if main else ""),
        transform=f"translate({x},{y})",
        data_method=point.name,
    )  # fmt: skip


def _labels(
    points: Sequence[CostPoint], x: Any, looks: Mapping[str, Style], main: str | None
) -> list[Markup]:
    """Names beside the highlighted points, where there is room for them."""
    taken = [(x(p.seconds) - 6, _y(p.accuracy) - 6, x(p.seconds) + 6, _y(p.accuracy) + 6)
             for p in points if looks[p.name].highlighted]  # fmt: skip
    labels = []
    highlighted = [point for point in points if looks[point.name].highlighted]
    for point in sorted(highlighted, key=lambda p: (p.name != main, -p.accuracy)):
        left, centre = x(point.seconds), _y(point.accuracy)
        width = CHARACTER * len(point.title)
        for anchor, dx, dy in PLACES:
            start = left + dx - {"start": 0, "end": width, "middle": width / 2}[anchor]
            box = (start, centre + dy - 10, start + width, centre + dy + 3)
            inside = box[0] > LEFT and box[2] < WIDTH - 2 and box[1] > TOP and box[3] < _y(0) - 2
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                labels.append(
                    tag("text", point.title, x=_r(left + dx), y=_r(centre + dy),
                        class_=f"label {anchor}" + (" main" if point.name == main else ""),
                        data_method=point.name)
                )  # fmt: skip
                break
    return labels


PLACES = (
    ("start", 10, 4), ("end", -10, 4), ("middle", 0, -11), ("middle", 0, 19),
    ("start", 10, -10), ("start", 10, 18), ("end", -10, -10), ("end", -10, 18),
)  # fmt: skip


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _marked_line(x: float) -> Markup:
    return join(
        tag("line", x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM, class_="forward-line"),
        tag("text", "plain forward pass", x=_r(x + 5), y=TOP + 10, class_="remark"),
    )


def _decades(low: float, high: float) -> list[tuple[float, str]]:
    """Round times within a range, with their units: 1, 2 and 5 of each decade, or 1 of many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    digits = (1, 2, 5) if math.log10(high / low) < 2.2 else (1,)
    times = [digit * 10.0**power for power in range(first, last + 1) for digit in digits]
    return [
        (time, f"{time:g} s" if time >= 1 else f"{1000 * time:g} ms")
        for time in times
        if low <= time <= high
    ]


def _grid_y() -> Markup:
    lines = []
    for percent in range(0, 101, 20):
        y = _y(percent / 100)
        lines.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        lines.append(tag("text", f"{percent}%", x=LEFT - 6, y=_r(y + 4), class_="tick end"))
    return join(*lines)


def _tick_x(x: float, label: str) -> Markup:
    return join(
        tag("line", x1=x, x2=x, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM + 4, class_="grid"),
        tag("text", label, x=x, y=HEIGHT - BOTTOM + 20, class_="tick middle"),
    )


def _path(thresholds: Sequence[float], curve: Sequence[float]) -> str:
    points = [f"{_x(tau)},{_y(share)}" for tau, share in zip(thresholds, curve, strict=True)]
    return "M" + "L".join(points)


def _area(thresholds: Sequence[float], low: Sequence[float], high: Sequence[float]) -> str:
    upper = _path(thresholds, high)
    lower = _path(list(reversed(thresholds)), list(reversed(low)))
    return upper + "L" + lower[1:] + "Z"


def _x(share: float) -> float:
    return _r(LEFT + share * (WIDTH - LEFT - RIGHT))


def _y(share: float) -> float:
    return _r(TOP + (1 - share) * _plot_height())


def _plot_height() -> float:
    return HEIGHT - TOP - BOTTOM


def _r(value: float) -> float:
    return round(value, 1)
