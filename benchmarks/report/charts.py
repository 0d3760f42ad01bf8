"""Every chart of a run, defined once for the page and for the PNG and SVG files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
    chart,
    colour,
    dash,
    decades,
    fixed,
    floor_rules,
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
from benchmarks.report.looks import GREY, Look, figure_of, leading_figures, looks_of_run
from benchmarks.results.tables import images_of

__all__ = ["charts_of", "save_charts"]

# Curves that are known by name; any other is drawn over its own x.
CURVES: dict[str, dict[str, Any]] = {
    "accuracy": {
        "title": "Accuracy over the threshold", "x": "threshold τ",
        "y": "images with IoU ≥ 0.5", "share": True, "at": PAPER_THRESHOLD,
    },
    "deletion": {
        "title": "Deletion: lower is better", "x": "share of the pixels blurred",
        "y": "cosine similarity to the whole image", "share": False, "at": None,
    },
    "insertion": {
        "title": "Insertion: higher is better", "x": "share of the pixels put back",
        "y": "cosine similarity to the whole image", "share": False, "at": None,
    },
}  # fmt: skip
METHOD_TIPS = [alt.Tooltip("label:N", title="method"), alt.Tooltip("family:N")]


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

    for protocol, name in curves_of(results):
        add(f"curve_{name}", curve_chart(results, protocol, name, looks))
    leading = leading_figures(results)
    if leading:
        add("cost", cost_chart(results, leading[0], looks))
    for figure in leading:
        add(f"intervals_{figure['key']}", intervals_chart(results, figure, looks))
        if figure["protocol"] != leading[0]["protocol"]:
            add(f"against_{figure['key']}", plane_chart(results, leading[0], figure, looks))
    return charts


def curves_of(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Protocol and name of every curve of a run."""
    found: dict[tuple[str, str], None] = {}
    for protocols in results["summary"].values():
        for protocol, numbers in protocols.items():
            found |= {(protocol, name): None for name in numbers.get("curves", {})}
    return list(found)


def about_curve(name: str) -> dict[str, Any]:
    """Titles of a curve, and where it is read off at first."""
    other = {"title": name.replace("_", " "), "x": None, "y": None, "share": False, "at": None}
    return CURVES.get(name, other)


def curve_chart(
    results: Mapping[str, Any], protocol: str, name: str, looks: Mapping[str, Look]
) -> Any:
    """One line per method, with a band where the run has one."""
    about = about_curve(name)
    rows, marks = [], []
    for method, look in looks.items():
        numbers = results["summary"][method].get(protocol, {})
        if (curve := numbers.get("curves", {}).get(name)) is None:
            continue
        low, high = curve.get("low") or curve["y"], curve.get("high") or curve["y"]
        rows.append({**look.row(), "x": curve["x"], "y": curve["y"], "low": low, "high": high})
        if look.fewer is not None:
            pairs = list(zip(curve["x"], curve["y"], strict=True))
            pairs = pairs[:: max(1, len(pairs) // 14)]
            marks += [{**look.row(), "x": x, "y": y} for x, y in pairs]
    present = [looks[row["method"]] for row in rows]
    # Drawn in this order: what matters lies on top.
    rows.sort(key=lambda row: (row["main"], row["named"], not row["fewer"]))
    across = [x for row in rows for x in row["x"]]
    up = [y for row in rows for key in ("y", "low", "high") for y in row[key]]
    x = alt.X("x:Q", title=about["x"], axis=alt.Axis(tickCount=6, grid=False),
              scale=fixed([0, 1] if about["share"] else [min(across), max(across)]))  # fmt: skip
    y = alt.Y("y:Q", title=about["y"], scale=fixed([0, 1] if about["share"] else padded(up)),
              axis=alt.Axis(format=".0%" if about["share"] else "~g", tickCount=6))  # fmt: skip
    each = alt.Detail("method:N")
    base = alt.Chart(alt.Data(values=rows)).transform_filter(SHOWN)
    flat = base.transform_flatten(["x", "y", "low", "high"])
    strength = f"datum.main ? 0.2 : {LIT} ? 0.25 : datum.named && lit === '' ? 0.06 : 0"
    band = flat.mark_area(opacity=alt.expr(strength), clip=True, tooltip=False).encode(
        x, with_field(y, "low:Q"), alt.Y2("high:Q"), colour(present), each
    )
    line = flat.mark_line(
        clip=True, strokeWidth=alt.expr(LINE_WIDTH), opacity=alt.expr(STRENGTH)
    ).encode(x, y, colour(present), dash(present), each, tooltip=METHOD_TIPS)
    layers = [band, line.add_params(zoom())]
    if marks:
        hollow = alt.Chart(alt.Data(values=marks)).transform_filter(SHOWN).mark_point(
            filled=False, fill="transparent", size=24, strokeWidth=1.2, clip=True,
            opacity=alt.expr(f"datum.named || {LIT} ? ({STRENGTH}) : 0"),
        )  # fmt: skip
        layers.append(hollow.encode(x, y, colour(present), tooltip=METHOD_TIPS))
    reading = alt.Chart(alt.Data(values=[{"at": 0}])).transform_calculate(at="at")
    layers.append(
        reading.transform_filter("isNumber(datum.at)")
        .mark_rule(color=GREY, clip=True, tooltip=False)
        .encode(with_field(x, "at:Q"))
    )
    return chart(layers, present, about["title"], about["at"])


def cost_chart(
    results: Mapping[str, Any], figure: Mapping[str, Any], looks: Mapping[str, Look]
) -> Any | None:
    """A figure of merit over the time per image; None where nothing was timed."""
    rows = cost_rows(results, figure, looks)
    if not rows:
        return None
    present = [looks[row["method"]] for row in rows]
    forward = (results.get("forward") or {}).get(figure["protocol"], {}).get("median_seconds")
    seconds = [row["seconds"] for row in rows] + ([forward] if forward else [])
    low, high = min(seconds) / 1.4, max(seconds) * 1.6
    label = "datum.value < 1 ? 1000 * datum.value + ' ms' : datum.value + ' s'"
    axis = alt.Axis(values=decades(low, high), grid=False, labelExpr=label)
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    x = alt.X("seconds:Q", title="time per image", axis=axis, scale=scale)
    y = value_axis(alt.Y, rows, figure)
    steps = alt.Chart(alt.Data(values=frontier(rows, figure["better"])))
    layers = [steps.mark_line(color=GREY, strokeWidth=1.2, tooltip=False).encode(x, y)]
    if forward:
        layers.append(rule(alt.X(datum=forward), "plain forward pass", vertical=True))
    layers += floor_rules(results, figure, looks)
    tips = [alt.Tooltip("seconds:Q", format=".3g", title="seconds per image"),
            alt.Tooltip("times:Q", format=".1f", title="times the forward pass")]  # fmt: skip
    layers += points(rows, present, x, y, [("y", "")], tips)
    across = [math.log(row["seconds"] / low) / math.log(high / low) for row in rows]
    layers += names(rows, present, x, y, list(zip(across, _up(rows, y), strict=True)))
    return chart(layers, present, f"{figure['heading']} against cost")


def cost_rows(
    results: Mapping[str, Any], figure: Mapping[str, Any], looks: Mapping[str, Look]
) -> list[dict[str, Any]]:
    """Each timed method's value and time."""
    rows = []
    for name, look in looks.items():
        numbers = results["summary"][name].get(figure["protocol"], {})
        found = figure_of(results, name, figure)
        if found and numbers.get("median_seconds"):
            times = {"seconds": numbers["median_seconds"], "times": numbers.get("times_forward")}
            rows.append({**row_of(look, figure, found), **times})
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
    results: Mapping[str, Any],
    across: Mapping[str, Any],
    up: Mapping[str, Any],
    looks: Mapping[str, Look] | None = None,
    *,
    beside: Mapping[str, Any] | None = None,
) -> Any | None:
    """Every method by two figures of merit, with the intervals of both.

    Args:
        results (Mapping): content of results.json.
        across (Mapping): declaration of the figure on the horizontal axis.
        up (Mapping): declaration of the figure on the vertical axis.
        looks (Mapping, optional): of `benchmarks.report.looks.looks_of_run`.
        beside (Mapping, optional): content of another run's results.json, which has `up`.

    Returns:
        None where no method has both.
    """
    plane = _plane(results, across, up, looks or looks_of_run(results), beside)
    return plane and chart(*plane, f"{across['heading']} and {up['heading']}")


def planes_chart(planes: Sequence[tuple[str, Mapping[str, Any], str, str]]) -> Any:
    """Several runs one above the other, each as in `plane_chart`.

    Args:
        planes (sequence of tuple): title, content of results.json, and the keys of the figures on
            the horizontal and the vertical axis, of which the run has both.
    """
    panels: list[Any] = []
    shown: dict[str, Look] = {}
    for title, results, *keys in planes:
        across, up = ({f["key"]: f for f in results["figures"]}[key] for key in keys)
        plane = _plane(results, across, up, looks_of_run(results), None)
        if plane is not None:
            layers, present = plane
            shown |= {look.method: look for look in present}
            # It is made for a file, in which nobody zooms.
            for layer in layers:
                layer.params = alt.Undefined
            panel = alt.layer(*layers).properties(width=WIDTH, height=HEIGHT, title=title)
            panels.append(panel)
    return alt.vconcat(*panels, spacing=30).add_params(*parameters(list(shown.values())))


def _plane(
    results: Mapping[str, Any],
    across: Mapping[str, Any],
    up: Mapping[str, Any],
    looks: Mapping[str, Look],
    beside: Mapping[str, Any] | None,
) -> tuple[list[Any], list[Look]] | None:
    """Layers and methods of `plane_chart`."""
    rows = []
    for name, look in looks.items():
        first = figure_of(results, name, across)
        second = figure_of(results if beside is None else beside, name, up)
        if first and second:
            upright = row_of(look, up, second)
            both = {f"{key}_up": upright[key] for key in ("value", "low", "high", "text")}
            rows.append({**row_of(look, across, first), **both})
    if not rows:
        return None
    present = [looks[row["method"]] for row in rows]
    x, y = value_axis(alt.X, rows, across), value_axis(alt.Y, rows, up, "_up")
    ranges = [("x", ""), ("y", "_up")]
    layers = points(rows, present, x, y, ranges, [alt.Tooltip("text_up:N", title="vertical")])
    at = list(zip(_up(rows, x), _up(rows, y, "value_up"), strict=True))
    layers += names(rows, present, x, y, at, beside=False)
    return layers, present


def _up(rows: Sequence[Mapping[str, Any]], axis: Any, key: str = "value") -> list[float]:
    """Where values lie along their axis, as shares of it."""
    low, high = axis["scale"]["domain"]
    return [(row[key] - low) / (high - low) for row in rows]


def intervals_chart(
    results: Mapping[str, Any], figure: Mapping[str, Any], looks: Mapping[str, Look]
) -> Any:
    """A figure of merit of every method with its interval, the best on top."""
    rows = [
        row_of(look, figure, found)
        for name, look in looks.items()
        if (found := figure_of(results, name, figure))
    ]
    rows.sort(key=lambda row: row["value"], reverse=figure["better"] == "higher")
    present = [looks[row["method"]] for row in rows]
    axis = alt.Axis(grid=False, ticks=False)
    y = alt.Y("label:N", sort=[look.label for look in present], title=None, axis=axis)
    x = value_axis(alt.X, rows, figure)
    # Each row has its name already.
    layers = points(rows, present, x, y, [("x", "")], legend=False)
    made = chart(layers, present, figure["heading"])
    return made.properties(height=ROW * max(4, len(rows)))
