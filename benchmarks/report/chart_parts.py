"""Parts of charts: scales by method, points with intervals, saving as PNG and SVG.

Names and titles come from files, so they are data in a chart and never part of an expression. The
page and the charts share three parameters: ``shown``, the methods that are drawn; ``lit``, the
method pointed at; ``at``, where the curves are read off.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any, Literal

import altair as alt
import vl_convert

from benchmarks.core.files import write_bytes, write_text
from benchmarks.report.looks import GREY, Look
from benchmarks.results.tables import number_text

WIDTH, HEIGHT, ROW = 560, 360, 17
SHOWN = "indexof(shown, datum.method) >= 0"
LIT = "lit === datum.method"
STRENGTH = f"{LIT} ? 1 : lit !== '' ? 0.15 : datum.named ? 1 : 0.45"
LINE_WIDTH = f"{LIT} || datum.main ? 3 : datum.named ? 1.7 : 1"
CONFIG: dict[str, Any] = {
    "font": "Liberation Sans, Arial, sans-serif", "background": "white", "padding": 12,
    "view": {"stroke": None},
    "title": {"anchor": "start", "fontSize": 15, "subtitleFontSize": 12, "offset": 14,
              "subtitleColor": "#5c636b", "subtitlePadding": 5},
    "axis": {"gridColor": "#e2e3e0", "domain": False, "tickColor": "#b9bdc2", "labelLimit": 0,
             "labelColor": "#5c636b", "titleColor": "#5c636b", "titleFontWeight": "normal",
             "labelFontSize": 11, "titleFontSize": 12, "titlePadding": 9},
    "legend": {"labelLimit": 0, "labelFontSize": 11, "titleFontSize": 11, "symbolSize": 90,
               "titleColor": "#5c636b", "titleFontWeight": "normal", "titleLimit": 0},
}  # fmt: skip
CHARACTER = 6.2  # width of a letter in a point's name
# Where a name may stand beside its point: alignment, and pixels to the right and down.
PLACES = (
    ("left", 10, 0), ("right", -10, 0), ("center", 0, -13), ("center", 0, 14),
    ("left", 10, -13), ("left", 10, 13), ("right", -10, -13), ("right", -10, 13),
)  # fmt: skip


def save_charts(folder: Path, charts: Mapping[str, Any]) -> list[Path]:
    """Each chart as PNG and SVG; the same bytes for the same chart."""
    paths = []
    for name, chart in charts.items():
        # Parts are checked as they are made; a check of the whole takes longer than the drawing.
        spec = {**chart.to_dict(validate=False), "config": CONFIG}
        svg = _numbered_from_1(vl_convert.vegalite_to_svg(spec))
        paths.append(write_bytes(folder / f"{name}.png", vl_convert.svg_to_png(svg, scale=2)))
        paths.append(write_text(folder / f"{name}.svg", svg))
    return paths


def _numbered_from_1(svg: str) -> str:
    """Clip paths numbered within the file; Vega counts them from the start of the process."""
    numbers: dict[str, int] = {}

    def renumbered(match: re.Match[str]) -> str:
        return f"{match[1]}clip{numbers.setdefault(match[2], len(numbers) + 1)}"

    return re.sub(r'(<clipPath id="|url\(#)clip(\d+)', renumbered, svg)


def free_name(taken: Mapping[str, Any], wanted: str) -> str:
    """A name for a file that no other chart has, whatever a figure of merit is called.

    Example:
        >>> free_name({"a_b": 1}, "a/b"), free_name({}, "../../x")
        ('a_b_2', 'x')
    """
    plain = re.sub(r"[^A-Za-z0-9.-]+", "_", wanted).strip("._") or "chart"
    names = (plain if number == 1 else f"{plain}_{number}" for number in count(1))
    return next(name for name in names if name not in taken)


def chart(
    layers: Sequence[Any], looks: Iterable[Look], title: str, about: str, **options: Any
) -> Any:
    """Layers in one frame, with the parameters that the page sets."""
    size = {"width": WIDTH, "height": HEIGHT, **options}
    at = size.pop("at", None)
    return (
        alt.layer(*layers)
        .properties(title=alt.Title(title), description=about, **size)
        .add_params(*parameters(looks, at))
    )


def parameters(looks: Iterable[Look], at: float | None = None) -> list[Any]:
    """What the page sets: the methods shown, the one pointed at, and where curves are read off."""
    values = {"shown": [look.method for look in looks], "lit": "", "at": at}
    return [alt.param(name=name, value=value) for name, value in values.items()]


def zoom(*axes: Any) -> Any:
    """Shift and the wheel zoom, shift and the pointer move; the wheel alone scrolls the page."""
    return alt.selection_interval(
        bind="scales",
        encodings=list(axes),
        zoom="wheel![event.shiftKey]",
        translate="[pointerdown[event.shiftKey], window:pointerup] > window:pointermove!",
    )


def by_method(channel: Any, looks: Sequence[Look], what: str, legend: Any = None) -> Any:
    """A channel that shows each method by its ``"colour"`` or ``"dash"``."""
    domain, values = [look.label for look in looks], [getattr(look, what) for look in looks]
    return channel("label:N", legend=legend).scale(domain=domain, range=values)


def colour(looks: Sequence[Look], symbol: str = "stroke", **options: Any) -> Any:
    """A colour for each method; in the legend, which takes `options`, those told apart."""
    named = [look.label for look in looks if look.named]
    more = len(looks) - len(named)
    options = {"title": f"{more} more in grey" if more else None, **options}
    legend = alt.Legend(
        values=named, symbolType=symbol, symbolOpacity=1, symbolStrokeWidth=2, **options
    )
    return by_method(alt.Color, looks, "colour", legend)


def row_of(look: Look, figure: Mapping[str, Any], numbers: Mapping[str, Any]) -> dict[str, Any]:
    """One method's value of one figure of merit, as the charts' data have it."""
    value, unit = numbers["value"], figure["unit"]
    low, high = (value if numbers.get(end) is None else numbers[end] for end in ("low", "high"))
    ends = ", ".join(number_text(end, unit) for end in (low, high))
    text = f"{number_text(value, unit)} [{ends}]"
    return {**asdict(look), "value": value, "low": low, "high": high, "text": text}


def value_axis(
    channel: Any, rows: Sequence[Mapping[str, Any]], figure: Mapping[str, Any], suffix: str = ""
) -> Any:
    """A figure of merit on an axis; shares go up to 100%."""
    share = figure["unit"] == "%"
    title = figure["heading"] + (" (lower is better)" if figure["better"] == "lower" else "")
    ends = [0, 1] if share else [row[f"{end}{suffix}"] for row in rows for end in ("low", "high")]
    axis = alt.Axis(format=".0%" if share else "~g", tickCount=6)
    return channel(f"value{suffix}:Q", title=title, axis=axis, scale=padded(ends))


def padded(values: Iterable[float], share: float = 0.04) -> Any:
    """A scale a little longer than its values, which stays when methods are switched off.

    Example:
        >>> padded([0, 1, 0.5]).domain, padded([3]).domain
        ([-0.04, 1.04], [2.5, 3.5])
    """
    numbers = list(values)
    low, high = min(numbers), max(numbers)
    more = share * (high - low) if high > low else 0.5
    return alt.Scale(domain=[low - more, high + more], nice=False, zero=False)


def with_field(channel: Any, field: str) -> Any:
    """The same axis for another field."""
    other = channel.copy()
    other.shorthand = field
    return other


def points(
    rows: Sequence[Mapping[str, Any]],
    looks: Sequence[Look],
    x: Any,
    y: Any,
    ranges: Mapping[Literal["x", "y"], str],
    tips: Sequence[Any] = (),
    *,
    legend: bool = True,
) -> list[Any]:
    """A point per method with its intervals; hollow and dashed where it had fewer images.

    Args:
        rows (sequence of Mapping): see `row_of`.
        looks (sequence of Look): of their methods.
        x (Any): the horizontal encoding.
        y (Any): the vertical encoding.
        ranges (Mapping): the axes that have intervals, and how the fields of each end.
        tips (sequence): what else is told of a point.
        legend (bool): the methods in colour are listed.
    """
    ordered = sorted(rows, key=lambda row: (row["main"], row["named"]))
    base = alt.Chart(alt.Data(values=ordered)).transform_filter(SHOWN)
    hue = colour(looks, "circle") if legend else by_method(alt.Color, looks, "colour")
    families = {look.family: look.shape for look in looks}
    shape = alt.Shape("family:N", legend=alt.Legend() if legend else None).scale(
        domain=list(families), range=list(families.values())
    )
    line = base.mark_rule(strokeWidth=1.4, clip=True, opacity=alt.expr(f"({STRENGTH}) * 0.6"))
    dashed = alt.condition("datum.fewer", alt.value([3, 3]), alt.value([1, 0]))
    layers = []
    for axis, suffix in ranges.items():
        places: dict[str, Any] = {"x": x, "y": y, f"{axis}2": f"high{suffix}:Q"}
        places[axis] = with_field(places[axis], f"low{suffix}:Q")
        layers.append(line.encode(**places, color=hue, strokeDash=dashed, tooltip=alt.value(None)))
    mark = base.mark_point(
        size=85, filled=True, strokeWidth=1.6, clip=True, opacity=alt.expr(STRENGTH)
    ).encode(
        x, y, hue, by_method(alt.Stroke, looks, "colour"), shape,
        fillOpacity=alt.condition("datum.fewer", alt.value(0), alt.value(1)),
        tooltip=[alt.Tooltip("label:N", title="method"), alt.Tooltip("family:N"),
                 alt.Tooltip("text:N", title="value [95% interval]"), *tips],
    )  # fmt: skip
    zoomed = [axis for axis in places if axis in ("x", "y") and ":N" not in places[axis].shorthand]
    return [*layers, mark.add_params(zoom(*zoomed))]


def names(
    rows: Sequence[Mapping[str, Any]], looks: Sequence[Look], x: Any, y: Any, *, beside: bool = True
) -> list[Any]:
    """Names of the points in colour, where there is room; `beside`: also to the left and right."""
    spots = [(WIDTH * _along(x, row), HEIGHT * (1 - _along(y, row)), row)
             for row in rows if row["named"]]  # fmt: skip
    taken = [(px - 6, py - 6, px + 6, py + 6) for px, py, _ in spots]
    placed: dict[Any, list[Any]] = {}
    for px, py, row in sorted(spots, key=lambda spot: not spot[2]["main"]):
        width = CHARACTER * len(row["label"])
        for align, dx, dy in PLACES if beside else PLACES[2:]:
            left = px + dx - {"left": 0.0, "right": width, "center": width / 2}[align]
            top, right, bottom = py + dy - 7, left + width, py + dy + 7
            inside = left > 0 and right < WIDTH and top > 0 and bottom < HEIGHT
            if inside and not any(left < x1 and x0 < right and top < y1 and y0 < bottom
                                  for x0, y0, x1, y1 in taken):  # fmt: skip
                taken.append((left, top, right, bottom))
                placed.setdefault((align, dx, dy), []).append(row)
                break
    # On a phone there is no room for names: the legend and the table tell them.
    strength = alt.expr(f"width < 400 ? 0 : {STRENGTH}")
    style = {"baseline": "middle", "clip": True, "tooltip": False, "opacity": strength}
    return [
        alt.Chart(alt.Data(values=of)).transform_filter(SHOWN)
        .mark_text(align=align, dx=dx, dy=dy, **style)
        .encode(x, y, alt.Text("label:N"), colour(looks, "circle"))
        for (align, dx, dy), of in placed.items()
    ]  # fmt: skip


def _along(channel: Any, row: Mapping[str, Any]) -> float:
    """Where a row lies along an axis, as a share of it."""
    scale = channel["scale"].to_dict()
    ends = [*scale["domain"], row[channel.shorthand.removesuffix(":Q")]]
    low, high, value = map(math.log, ends) if scale.get("type") == "log" else ends
    return float((value - low) / (high - low))


def lines(rows: Sequence[Any], looks: Sequence[Look], x: Any, y: Any, *details: Any) -> Any:
    """A line per method through points with their intervals, side by side; for a few places."""
    aside = alt.XOffset("label:N", sort=[look.label for look in looks])
    strength = alt.expr("datum.named ? 1 : 0.4")
    base = alt.Chart(alt.Data(values=list(rows))).encode(x, y, aside, *details)
    dash = by_method(alt.StrokeDash, looks, "dash")
    hue = colour(looks, columns=1, orient="bottom")
    tips = [alt.Tooltip("label:N"), "value:Q"]
    return alt.layer(
        base.mark_line(strokeWidth=1.5, opacity=strength).encode(hue, dash),
        base.mark_rule(opacity=strength).encode(with_field(y, "low:Q"), alt.Y2("high:Q"), hue),
        base.mark_point(filled=True, size=32, opacity=strength).encode(hue, tooltip=tips),
    ).properties(height=HEIGHT)


def rule(where: Any, text: str, *, vertical: bool) -> Any:
    """A dashed line with its name, such as a floor or the plain forward pass."""
    base = alt.Chart(alt.Data(values=[{"text": text}])).encode(where)
    name = base.mark_text(
        color=GREY, tooltip=False, dx=5 if vertical else 0, dy=0 if vertical else -6,
        align="left" if vertical else "right", baseline="top" if vertical else "bottom",
        opacity=alt.expr("width < 400 ? 0 : 1"),  # on a phone it would lie on the points
    )  # fmt: skip
    place = {"y": alt.value(4)} if vertical else {"x": alt.value("width")}
    return alt.layer(
        base.mark_rule(strokeDash=[3, 4], color=GREY, tooltip=False, clip=True),
        name.encode(text="text:N", **place),
    )
