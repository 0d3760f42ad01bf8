"""Deletion and insertion in the HTML report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.metrics.removal import SHARES
from benchmarks.report.charts import Style
from benchmarks.report.faithfulness import (
    KINDS,
    RANDOM_ORDER,
    RemovalLine,
    faithfulness_lines,
    lowest_similarity,
)
from benchmarks.report.html_curves import choices, entry
from benchmarks.report.markup import Markup, join, tag

WIDTH, HEIGHT = 440.0, 360.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 20.0, 30.0, 46.0


def faithfulness_section(results: Mapping[str, Any], looks: Mapping[str, Style]) -> Markup | None:
    """Heading, both charts and their legend; None for a run without."""
    lines = faithfulness_lines(results["summary"], results["methods"])
    if not lines:
        return None
    random = " A uniform heatmap takes the pixels in random order, and is the floor."
    return join(
        tag("h2", "Deletion and insertion"),
        tag(
            "p",
            "Cosine similarity of a changed crop's embedding to that of the crop itself, mean over "
            "images. Deletion blurs the most highlighted pixels first, and the similarity should "
            "fall early: lower is better. Insertion puts the most highlighted pixels back into "
            "the blurred crop first, and it should rise early: higher is better."
            f"{random if any(line.name == RANDOM_ORDER for line in lines) else ''} "
            "Beside the names stand the areas under both curves, the widest gap between them "
            "first. Point at a chart to read both at a share of the pixels; click on a name to "
            "switch its lines on or off.",
        ),
        tag(
            "div",
            *(_chart(kind, lines, looks, results["main_method"]) for kind in KINDS),
            _legend(lines, looks),
            class_="chart removal",
        ),
    )


def removal_data(results: Mapping[str, Any]) -> dict[str, Any]:
    """The curves that the page's script reads off; none for a run without."""
    lines = faithfulness_lines(results["summary"], results["methods"])
    curves = {kind: {line.name: list(line.curves[kind]) for line in lines} for kind in KINDS}
    return {"shares": list(SHARES), **curves} if lines else {}


def _legend(lines: Sequence[RemovalLine], looks: Mapping[str, Style]) -> Markup:
    def value(line: RemovalLine, kind: str) -> Markup:
        return tag("span", f"{line.areas[kind]:.3f}", class_="value", data_kind=kind)

    items = [
        entry(line.name, line.title, looks[line.name], *(value(line, kind) for kind in KINDS))
        for line in lines
    ]
    return tag(
        "div",
        tag("div", tag("output", "area under the curve", id="share"), choices(),
            class_="legend-head"),
        tag("div", tag("span", "method"), tag("span", "deletion ↓ insertion ↑"), class_="columns"),
        tag("ul", *items),
        class_="legend",
    )  # fmt: skip


def _chart(
    kind: str, lines: Sequence[RemovalLine], looks: Mapping[str, Style], main: str | None
) -> Markup:
    heading, horizontal = KINDS[kind]
    low = lowest_similarity(lines)

    def y(similarity: float) -> float:
        return round(TOP + (1 - similarity) / (1 - low) * (HEIGHT - TOP - BOTTOM), 1)

    groups = []
    # The best on top of the others, the main one on top of all.
    for line in sorted(lines, key=lambda line: (line.name == main, line.gap)):
        points = (f"{_x(share)},{y(value)}"
                  for share, value in zip(SHARES, line.curves[kind], strict=True))  # fmt: skip
        classes = f"series {looks[line.name].classes}" + (" main" if line.name == main else "")
        path = tag("path", d="M" + "L".join(points), class_="curve")
        groups.append(tag("g", path, class_=classes, data_method=line.name))
    crosshair = {"x1": LEFT, "x2": LEFT, "y1": TOP, "y2": HEIGHT - BOTTOM}
    return tag(
        "svg",
        tag("text", heading, x=LEFT, y=16, class_="heading"),
        *(_tick_y(y(tenth / 10), tenth / 10) for tenth in _tenths(low)),
        *(_tick_x(percent) for percent in range(0, 101, 20)),
        tag("text", horizontal, x=WIDTH - RIGHT, y=HEIGHT - 6, class_="axis end"),
        *groups,
        tag("line", class_="crosshair", visibility="hidden", **crosshair),
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
        role="img",
        aria_label=f"{heading}; the legend has the areas",
        data_left=LEFT,
        data_right=WIDTH - RIGHT,
        data_kind=kind,
    )


def _tenths(low: float) -> list[int]:
    """Every tenth of the vertical axis, or every second one of a long axis, 1 among them."""
    step = 1 if low >= 0.5 else 2
    return list(range(10, round(10 * low) - 1, -step))


def _tick_y(y: float, similarity: float) -> Markup:
    return join(
        tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"),
        tag("text", f"{similarity:.1f}", x=LEFT - 6, y=y + 4, class_="tick end"),
    )


def _tick_x(percent: int) -> Markup:
    x, y = _x(percent / 100), HEIGHT - BOTTOM
    return join(
        tag("line", x1=x, x2=x, y1=y, y2=y + 4, class_="grid"),
        tag("text", f"{percent}%", x=x, y=y + 18, class_="tick middle"),
    )


def _x(share: float) -> float:
    return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)
