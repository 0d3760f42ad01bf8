"""Accuracy over the threshold in the HTML report, and the legends of its charts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.report.charts import Style, curves, rank
from benchmarks.report.markup import Markup, join, tag


def swatch(look: Style) -> Markup:
    line = tag("line", x1=1, x2=25, y1=6, y2=6, class_="curve")
    return tag(
        "svg", line, viewBox="0 0 26 12", class_=f"swatch {look.classes}", aria_hidden="true"
    )


def entry(name: str, title: str, look: Style, *values: Markup) -> Markup:
    """One method in a legend: a button that switches its lines on or off, with its numbers."""
    button = tag(
        "button",
        swatch(look),
        tag("span", title, class_="name"),
        *values,
        type="button",
        aria_pressed="true" if look.highlighted else "false",
        data_method=name,
        data_highlighted=look.highlighted,
    )
    return tag("li", button)


def choices() -> Markup:
    """What switches all lines at once."""
    buttons = [
        tag("button", label, type="button", data_show=which)
        for which, label in (("some", "highlights"), ("all", "all"), ("none", "none"))
    ]
    return tag("span", "show ", *buttons, class_="choices")


def _legend(results: Mapping[str, Any], looks: Mapping[str, Style]) -> Markup:
    titles = {method["name"]: method["title"] for method in results["methods"]}
    items = []
    for name in rank(results):
        if "boxes" in results["summary"][name]:
            value = f"{100 * results['summary'][name]['boxes']['accuracy_at_0.2']:.1f}"
            items.append(entry(name, titles[name], looks[name], tag("span", value, class_="value")))
    return tag(
        "div",
        tag("div", tag("span", "accuracy at ", tag("output", "τ = 0.20", id="tau")), choices(),
            class_="legend-head"),
        tag("ul", *items),
        class_="legend",
    )  # fmt: skip


def curves_section(results: Mapping[str, Any], looks: Mapping[str, Style]) -> Markup | None:
    if not any("boxes" in protocols for protocols in results["summary"].values()):
        return None
    return join(
        tag("h2", "Accuracy over the threshold"),
        tag(
            "p",
            "Share of the images in which the box drawn from the map at threshold τ overlaps the "
            "true one by IoU 0.5 or more, with 95% bootstrap bands over images. The paper fixes "
            "τ = 0.2; shaded is 0.15 to 0.25. Point at the chart to read it at another threshold; "
            "click on a name to switch its line on or off.",
        ),
        tag("div", curves(results, looks), _legend(results, looks), class_="chart with-legend"),
    )
