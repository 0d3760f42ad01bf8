"""Every chart of a run, defined once for the page and for the PNG and SVG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import altair as alt

from benchmarks.metrics.localization import PAPER_THRESHOLD
from benchmarks.report.chart_parts import (
    HEIGHT,
    LINE_WIDTH,
    LIT,
    ROW,
    SHOWN,
    STRENGTH,
    WIDTH,
    by_method,
    chart,
    colour,
    free_name,
    names,
    padded,
    parameters,
    points,
    row_of,
    rule,
    save_charts,
    value_axis,
    with_field,
    zoom,
)
from benchmarks.report.looks import (
    FLOOR,
    GREY,
    Look,
    figure_of,
    leading_figures,
    looks_of_run,
)
from benchmarks.results.tables import images_of, number_text

__all__ = ["charts_of", "save_charts"]

Looks = Mapping[str, Look]
# Curves that are known by name; any other is drawn over its own x.
COSINE = "cosine similarity to the whole image"
CURVES: dict[str, dict[str, Any]] = {
    "accuracy": {"title": "Accuracy over the threshold", "x": "threshold τ", "share": True,
                 "y": "images with IoU ≥ 0.5", "at": PAPER_THRESHOLD, "band": (0.15, 0.25)},
    "deletion": {"title": "Deletion: lower is better", "x": "share of the pixels blurred",
                 "y": COSINE},
    "insertion": {"title": "Insertion: higher is better", "x": "share of the pixels put back",
                  "y": COSINE},
}  # fmt: skip


def charts_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """All charts that a run has numbers for, by the name of their file.

    Args:
        results (Mapping): content of results.json.
    """
    looks = looks_of_run(results)
    charts: dict[str, Any] = {}

    def add(name: str, made: Any | None) -> None:
        if made is not None:
            made.title = alt.Title(made.title.text, subtitle=images_of(results))
            charts[free_name(charts, name)] = made

    curves = {(protocol, name): None for protocols in results["summary"].values()
              for protocol, numbers in protocols.items()
              for name in numbers.get("curves", {})}  # fmt: skip
    for protocol, name in curves:
        add(f"curve_{name}", curve_chart(results, protocol, name, looks))
    leading = leading_figures(results)
    if leading:
        add("cost", cost_chart(results, leading[0], looks))
    for figure in leading[1:]:
        if figure["protocol"] != leading[0]["protocol"]:
            add(f"against_{figure['key']}", plane_chart(results, leading[0], figure, looks))
    for figure in leading:
        add(f"intervals_{figure['key']}", intervals_chart(results, figure, looks))
    return charts


def curve_chart(results: Mapping[str, Any], protocol: str, name: str, looks: Looks) -> Any:
    """One line per method, with a band where the run has one."""
    about = {"title": name.replace("_", " "), "x": None, "y": None, **CURVES.get(name, {})}
    rows = []
    for method, look in looks.items():
        curve = results["summary"][method].get(protocol, {}).get("curves", {}).get(name)
        if curve:
            ends = {end: curve.get(end) or curve["y"] for end in ("low", "high")}
            steps = list(range(len(curve["x"])))
            rows.append({**asdict(look), "x": curve["x"], "y": curve["y"], **ends, "step": steps})
    present = [looks[row["method"]] for row in rows]
    # Drawn in this order: what matters lies on top.
    rows.sort(key=lambda row: (row["main"], row["named"], not row["fewer"]))
    share = about.get("share", False)
    up = [0, 1] if share else [y for row in rows for key in ("low", "high") for y in row[key]]
    across = [0, 1] if share else [x for row in rows for x in row["x"]]
    axis = alt.Axis(tickCount=6, grid=False)
    x = alt.X("x:Q", title=about["x"], axis=axis, scale=padded(across, 0))
    axis = alt.Axis(format=".0%" if share else "~g", tickCount=6)
    y = alt.Y("y:Q", title=about["y"], axis=axis, scale=padded(up, 0 if share else 0.02))
    hue, each = colour(present), alt.Detail("method:N")
    tips = [alt.Tooltip("label:N", title="method"), alt.Tooltip("family:N")]
    base = alt.Chart(alt.NamedData("curves")).transform_filter(SHOWN)
    flat = base.transform_flatten(["x", "y", "low", "high", "step"])
    strength = f"datum.main ? 0.2 : {LIT} ? 0.25 : datum.named && lit === '' ? 0.06 : 0"
    band = flat.mark_area(opacity=alt.expr(strength), clip=True, tooltip=False)
    width, opacity = alt.expr(LINE_WIDTH), alt.expr(STRENGTH)
    line = flat.mark_line(clip=True, strokeWidth=width, opacity=opacity)
    hollow = flat.transform_filter("datum.fewer && datum.step % 7 === 0").mark_point(
        filled=False, fill="transparent", size=24, strokeWidth=1.2, clip=True,
        opacity=alt.expr(f"datum.named || {LIT} ? ({STRENGTH}) : 0"),
    )  # fmt: skip
    single = alt.Chart(alt.Data(values=[{}]))
    reading = single.mark_rule(
        color=GREY, clip=True, tooltip=False, opacity=alt.expr("isNumber(at) ? 1 : 0")
    )
    layers = [
        band.encode(x, with_field(y, "low:Q"), alt.Y2("high:Q"), hue, each),
        line.encode(
            x, y, hue, by_method(alt.StrokeDash, present, "dash"), each, tooltip=tips
        ).add_params(zoom("x", "y")),
        hollow.encode(x, y, hue, tooltip=tips),
        reading.encode(alt.X(datum=alt.expr("at"), type="quantitative")),
    ]
    if "band" in about:
        low, high = about["band"]
        shade = single.mark_rect(color=GREY, opacity=0.12, clip=True, tooltip=False)
        layers.insert(0, shade.encode(alt.X(datum=low), alt.X2(datum=high)))
        text = f"Shaded: thresholds from {low} to {high}."
    made = chart(layers, present, about["title"], text if "band" in about else "",
                 at=about.get("at"), usermeta={"share": share})  # fmt: skip
    made.datasets = {"curves": rows}
    return made


def cost_chart(results: Mapping[str, Any], figure: Mapping[str, Any], looks: Looks) -> Any | None:
    """A figure of merit over the time per image; None where nothing was timed."""
    rows = cost_rows(results, figure, looks)
    if not rows:
        return None
    present = [looks[row["method"]] for row in rows]
    best = frontier(rows, figure["better"])
    forward = (results.get("forward") or {}).get(figure["protocol"], {}).get("median_seconds")
    seconds = [row["seconds"] for row in rows] + ([forward] if forward else [])
    low, high = min(seconds) / 1.4, max(seconds) * 1.6
    ticks = [digit * 10.0**power for power in range(-5, 5) for digit in (1, 2, 5)]
    axis = alt.Axis(
        values=[tick for tick in ticks if low <= tick <= high], labelOverlap=True, grid=False,
        labelExpr="datum.value < 1 ? 1000 * datum.value + ' ms' : datum.value + ' s'",
    )  # fmt: skip
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    x = alt.X("seconds:Q", title="time per image", axis=axis, scale=scale)
    y = value_axis(alt.Y, rows, figure)
    steps = alt.Chart(alt.Data(values=best))
    layers = [steps.mark_line(color=GREY, strokeWidth=1.2, tooltip=False).encode(x, y)]
    if forward:
        layers.append(rule(alt.X(datum=forward), "plain forward pass", vertical=True))
    floors = [name for name, look in looks.items() if look.family == FLOOR]
    # Looks are ordered from the best on.
    if floor := next((name for name in floors if figure_of(results, name, figure)), None):
        value = (figure_of(results, floor, figure) or {})["value"]
        layers.append(rule(alt.Y(datum=value), looks[floor].label, vertical=False))
    tips = [alt.Tooltip("seconds:Q", format=".3g", title="seconds per image"),
            alt.Tooltip("times:Q", format=".1f", title="times the forward pass")]  # fmt: skip
    layers += points(rows, present, x, y, {"y": ""}, tips)
    layers += names(rows, present, x, y)
    named = "; ".join(
        f"{row['label']} ({1000 * row['seconds']:.0f} ms, "
        f"{number_text(row['value'], figure['unit'])}{figure['unit']})"
        for row in best
    )
    about = (
        f"Median time per image on {results['device']}, {results['threads']} "
        f"thread{'' if results['threads'] == 1 else 's'}. The line joins the methods that no "
        f"cheaper one equals, of those measured on all images: {named}."
    )
    return chart(layers, present, f"{figure['heading']} against cost", about)


def cost_rows(
    results: Mapping[str, Any], figure: Mapping[str, Any], looks: Looks
) -> list[dict[str, Any]]:
    """Each timed method's value and time."""
    rows = []
    for name, look in looks.items():
        numbers = results["summary"][name].get(figure["protocol"], {})
        value = figure_of(results, name, figure)
        if value and numbers.get("median_seconds"):
            times = {"seconds": numbers["median_seconds"], "times": numbers.get("times_forward")}
            rows.append({**row_of(look, figure, value), **times})
    return rows


def frontier(rows: Sequence[Mapping[str, Any]], better: str) -> list[Mapping[str, Any]]:
    """Those that no cheaper one equals, from cheap to expensive; of those with all images.

    Example:
        >>> rows = [{"seconds": s, "value": v, "fewer": s == 4}
        ...         for s, v in ((3, 0.6), (2, 0.7), (1, 0.5), (4, 0.9))]
        >>> [row["seconds"] for row in frontier(rows, "higher")]
        [1, 2]
    """
    sign = 1 if better == "higher" else -1
    best: list[Mapping[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row["seconds"], -sign * row["value"])):
        if not row["fewer"] and (not best or sign * row["value"] > sign * best[-1]["value"]):
            best.append(row)
    return best


def plane_chart(
    results: Mapping[str, Any], across: Mapping[str, Any], up: Mapping[str, Any], looks: Looks
) -> Any | None:
    """Every method by two figures of merit, with both intervals; None where none has both."""
    rows, present = _plane_rows(results, across, up, looks)
    if not rows:
        return None
    about = "With the 95% intervals of both: what does well by one need not by the other."
    title = f"{across['heading']} and {up['heading']}"
    return chart(_plane(rows, present, across, up), present, title, about)


def planes_chart(planes: Sequence[tuple[str, Mapping[str, Any], str, str]]) -> Any:
    """Several runs one above the other, each as in `plane_chart`.

    A method looks in all of them as in the first that has it.

    Args:
        planes (sequence of tuple): title, content of results.json, and the keys of the figures on
            the horizontal and the vertical axis, of which the run has both.
    """
    shown: dict[str, Look] = {}
    parts: list[tuple[str, list[dict[str, Any]], Mapping[str, Any], Mapping[str, Any]]] = []
    for title, results, *keys in planes:
        across, up = ({f["key"]: f for f in results["figures"]}[key] for key in keys)
        rows, present = _plane_rows(results, across, up, {**looks_of_run(results), **shown})
        if rows:
            shown |= {look.method: look for look in present}
            parts.append((title, rows, across, up))
    panels: list[Any] = []
    for title, rows, across, up in parts:
        # One scale of colours serves all panels, so each names all methods.
        layers = _plane(rows, list(shown.values()), across, up)
        # It is made for a file, in which nobody zooms.
        for layer in layers:
            layer.params = alt.Undefined
        panels.append(alt.layer(*layers).properties(width=WIDTH, height=HEIGHT, title=title))
    return alt.vconcat(*panels, spacing=30).add_params(*parameters(shown.values()))


def _plane_rows(
    results: Mapping[str, Any], across: Mapping[str, Any], up: Mapping[str, Any], looks: Looks
) -> tuple[list[dict[str, Any]], list[Look]]:
    """The methods that have both figures, and their looks."""
    rows = []
    for name, look in looks.items():
        first, second = (figure_of(results, name, figure) for figure in (across, up))
        if first and second:
            upright = row_of(look, up, second)
            both = {f"{key}_up": upright[key] for key in ("value", "low", "high", "text")}
            rows.append({**row_of(look, across, first), **both})
    return rows, [looks[row["method"]] for row in rows]


def _plane(
    rows: Sequence[Mapping[str, Any]],
    present: Sequence[Look],
    across: Mapping[str, Any],
    up: Mapping[str, Any],
) -> list[Any]:
    """Layers of `plane_chart`."""
    x, y = value_axis(alt.X, rows, across), value_axis(alt.Y, rows, up, "_up")
    tips = [alt.Tooltip("text_up:N", title="vertical")]
    layers = points(rows, present, x, y, {"x": "", "y": "_up"}, tips)
    return layers + names(rows, present, x, y, beside=False)


def intervals_chart(results: Mapping[str, Any], figure: Mapping[str, Any], looks: Looks) -> Any:
    """A figure of merit of every method with its interval, the best on top."""
    rows = [
        row_of(look, figure, value)
        for name, look in looks.items()
        if (value := figure_of(results, name, figure))
    ]
    rows.sort(key=lambda row: row["value"], reverse=figure["better"] == "higher")
    present = [looks[row["method"]] for row in rows]
    axis = alt.Axis(grid=False, ticks=False)
    y = alt.Y("label:N", sort=[look.label for look in present], title=None, axis=axis)
    # Each row has its name already, and the chart's title is that of the axis.
    x = value_axis(alt.X, rows, figure).title(None)
    layers = points(rows, present, x, y, {"x": ""}, legend=False)
    lower = " Lower is better." if figure["better"] == "lower" else ""
    about = f"With its 95% bootstrap interval over images.{lower}"
    return chart(layers, present, figure["heading"], about, height=ROW * max(4, len(rows)))
