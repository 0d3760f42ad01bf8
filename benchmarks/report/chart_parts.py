"""What all charts share: scales by method, points with intervals, names, and how they are saved.

Names and titles come from files, so they are data in a chart and never part of an expression. The
page and the charts share three parameters: ``shown``, the methods that are drawn; ``lit``, the
method pointed at; ``at``, where the curves are read off.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import altair as alt
import vl_convert

from benchmarks.core.files import write_atomically
from benchmarks.report.looks import FLOOR, GREY, Look, as_text, figure_of

WIDTH, HEIGHT, ROW = 560, 360, 17
FONT = "Liberation Sans, Arial, sans-serif"
SHOWN = "indexof(shown, datum.method) >= 0"
LIT = "lit === datum.method"
STRENGTH = f"{LIT} ? 1 : lit !== '' ? 0.15 : datum.named ? 1 : 0.45"
LINE_WIDTH = f"{LIT} || datum.main ? 3 : datum.named ? 1.7 : 1"
CONFIG: dict[str, Any] = {
    "font": FONT, "background": "white", "padding": 12, "view": {"stroke": None},
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
        spec = {**chart.to_dict(), "config": CONFIG}
        drawn = {
            "png": vl_convert.vegalite_to_png(spec, scale=2),
            "svg": _numbered_from_1(vl_convert.vegalite_to_svg(spec)).encode("utf-8"),
        }
        for kind, content in drawn.items():
            paths.append(_write(folder / f"{name}.{kind}", content))
    return paths


def _numbered_from_1(svg: str) -> str:
    """Clip paths numbered within the file; Vega counts them from the start of the process."""
    numbers: dict[str, int] = {}

    def renumbered(match: re.Match[str]) -> str:
        return f"{match[1]}clip{numbers.setdefault(match[2], len(numbers) + 1)}"

    return re.sub(r'(<clipPath id="|url\(#)clip(\d+)', renumbered, svg)


def _write(path: Path, content: bytes) -> Path:
    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    return write_atomically(path, write)


def free_name(taken: Mapping[str, Any], wanted: str) -> str:
    """A name for a file that no other chart has, whatever a figure of merit is called.

    Example:
        >>> free_name({"a_b": 1}, "a/b"), free_name({}, "../../x")
        ('a_b_2', 'x')
    """
    plain = re.sub(r"[^A-Za-z0-9.-]+", "_", wanted).strip("._") or "chart"
    number, name = 1, plain
    while name in taken:
        number += 1
        name = f"{plain}_{number}"
    return name


def chart(layers: Sequence[Any], looks: Sequence[Look], title: str, at: float | None = None) -> Any:
    """Layers in one frame, with the parameters that the page sets."""
    return (
        alt.layer(*layers)
        .properties(width=WIDTH, height=HEIGHT, title=alt.Title(title))
        .add_params(*parameters(looks, at))
    )


def parameters(looks: Sequence[Look], at: float | None = None) -> list[Any]:
    """What the page sets: the methods shown, the one pointed at, and where curves are read off."""
    shown = [look.method for look in looks]
    return [
        alt.param(name="shown", value=shown),
        alt.param(name="lit", value=""),
        alt.param(name="at", value=at),
    ]


def zoom(axes: Sequence[Literal["x", "y"]] = ("x", "y")) -> Any:
    """Shift and the wheel zoom, shift and the pointer move; the wheel alone scrolls the page."""
    return alt.selection_interval(
        bind="scales",
        encodings=list(axes),
        zoom="wheel![event.shiftKey]",
        translate="[pointerdown[event.shiftKey], window:pointerup] > window:pointermove!",
    )


def colour(
    looks: Sequence[Look], *, symbol: str = "stroke", legend: bool = True, **options: Any
) -> Any:
    """A colour for each method; in the legend, which takes `options`, those told apart."""
    named = [look.label for look in looks if look.named]
    more = len(looks) - len(named)
    return (
        alt.Color("label:N")
        .scale(domain=[look.label for look in looks], range=[look.colour for look in looks])
        .legend(alt.Legend(title=f"{more} more in grey" if more else None, values=named,
                           symbolType=symbol, symbolOpacity=1, symbolStrokeWidth=2, **options)
                if legend else None)
    )  # fmt: skip


def dash(looks: Sequence[Look]) -> Any:
    """The line style of each method's family."""
    domain = [look.label for look in looks]
    return alt.StrokeDash("label:N", legend=None).scale(
        domain=domain, range=[look.dash for look in looks]
    )


def shape(looks: Sequence[Look], *, legend: bool = True) -> Any:
    """The marker of each method's family."""
    families = {look.family: look.shape for look in looks}
    return alt.Shape("family:N", legend=alt.Legend(title="family") if legend else None).scale(
        domain=list(families), range=list(families.values())
    )


def row_of(look: Look, figure: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """One method's value of one figure of merit, as the charts' data have it."""
    value, unit = found["value"], figure["unit"]
    low, high = (value if found.get(end) is None else found[end] for end in ("low", "high"))
    ends = ", ".join(as_text(end, unit) for end in (low, high))
    return {
        **look.row(), "value": value, "low": low, "high": high,
        "text": f"{as_text(value, unit)} [{ends}]",
    }  # fmt: skip


def value_axis(
    channel: Any, rows: Sequence[Mapping[str, Any]], figure: Mapping[str, Any], suffix: str = ""
) -> Any:
    """A figure of merit on an axis; shares go up to 100%."""
    share = figure["unit"] == "%"
    title = figure["heading"] + (" (lower is better)" if figure["better"] == "lower" else "")
    shown = alt.Axis(format=".0%" if share else "~g", tickCount=6)
    ends = [row[f"{end}{suffix}"] for row in rows for end in ("low", "high")]
    domain = padded([0, 1]) if share else padded(ends)
    return channel(f"value{suffix}:Q", title=title, axis=shown, scale=fixed(domain))


def padded(values: Iterable[float]) -> list[float]:
    """An axis that is a little longer than its values.

    Example:
        >>> padded([0, 1, 0.5]), padded([3])
        ([-0.02, 1.02], [2.5, 3.5])
    """
    low, high = min(found := list(values)), max(found)
    return [low - 0.5, high + 0.5] if low == high else [
        low - 0.02 * (high - low), high + 0.02 * (high - low)
    ]  # fmt: skip


def fixed(domain: Sequence[float], **options: Any) -> Any:
    """A scale that stays as it is when methods are switched off."""
    return alt.Scale(domain=list(domain), nice=False, zero=False, **options)


def points(
    rows: Sequence[Mapping[str, Any]],
    looks: Sequence[Look],
    x: Any,
    y: Any,
    ranges: Sequence[tuple[str, str]],
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
        ranges (sequence of tuple): the axis of each interval, and how its two fields end.
        tips (sequence): what else is told of a point.
        legend (bool): the methods in colour are listed.
    """
    ordered = sorted(rows, key=lambda row: (row["main"], row["named"]))
    base = alt.Chart(alt.Data(values=ordered)).transform_filter(SHOWN)
    hue = colour(looks, symbol="circle", legend=legend)
    line = base.mark_rule(strokeWidth=1.4, clip=True, opacity=alt.expr(f"({STRENGTH}) * 0.6"))
    dashed = alt.condition("datum.fewer", alt.value([3, 3]), alt.value([1, 0]))
    layers = []
    for axis, suffix in ranges:
        places: dict[str, Any] = {"x": x, "y": y, f"{axis}2": f"high{suffix}:Q"}
        places[axis] = with_field(places[axis], f"low{suffix}:Q")
        layers.append(line.encode(**places, color=hue, strokeDash=dashed, tooltip=alt.value(None)))
    tooltip = [alt.Tooltip("label:N", title="method"), alt.Tooltip("family:N"),
               alt.Tooltip("text:N", title="value [95% interval]"), *tips]  # fmt: skip
    for which, style in (
        ("!datum.fewer", {"filled": True}),
        ("datum.fewer", {"filled": False, "fill": "transparent"}),
    ):
        mark = base.transform_filter(which).mark_point(
            size=75, strokeWidth=1.6, clip=True, opacity=alt.expr(STRENGTH), **style
        )
        layers.append(
            mark.encode(x=x, y=y, shape=shape(looks, legend=legend), color=hue, tooltip=tooltip)
        )
    along: dict[Literal["x", "y"], Any] = {"x": x, "y": y}
    zoomed = [axis for axis, channel in along.items() if not channel.shorthand.endswith(":N")]
    layers[-1] = layers[-1].add_params(zoom(zoomed))
    return layers


def with_field(channel: Any, field: str) -> Any:
    """The same axis for another field."""
    other = channel.copy()
    other.shorthand = field
    return other


def rule(where: Any, text: str, *, vertical: bool) -> Any:
    """A dashed line with its name, such as a floor or the plain forward pass."""
    base = alt.Chart(alt.Data(values=[{"text": text}]))
    name: dict[str, Any] = {"y": alt.value(4)} if vertical else {"x": alt.value("width")}
    aside: dict[str, Any] = (
        {"align": "left", "dx": 5, "baseline": "top"} if vertical
        else {"align": "right", "dy": -6, "baseline": "bottom"}
    )  # fmt: skip
    return alt.layer(
        base.mark_rule(strokeDash=[3, 4], color=GREY, tooltip=False, clip=True).encode(where),
        base.mark_text(color=GREY, tooltip=False, **aside).encode(
            where, alt.Text("text:N"), **name
        ),
    )


def floor_rules(
    results: Mapping[str, Any], figure: Mapping[str, Any], looks: Mapping[str, Look]
) -> list[Any]:
    """A horizontal line for the best floor."""
    found = [
        (of["value"], look.label)
        for name, look in looks.items()
        if look.family == FLOOR and (of := figure_of(results, name, figure))
    ]
    if not found:
        return []
    value, label = max(found) if figure["better"] == "higher" else min(found)
    return [rule(alt.Y(datum=value), label, vertical=False)]


def names(
    rows: Sequence[Mapping[str, Any]],
    looks: Sequence[Look],
    x: Any,
    y: Any,
    at: Sequence[tuple[float, float]],
    *,
    beside: bool = True,
) -> list[Any]:
    """Names beside the points in colour, where there is room for them.

    Args:
        rows (sequence of Mapping): of the points, the most important first.
        looks (sequence of Look): of the methods.
        x (Any): the points' horizontal encoding.
        y (Any): the points' vertical encoding.
        at (sequence of tuple): where each point lies, as shares of the width and of the height.
        beside (bool): also to the left and to the right, where no interval lies.
    """
    spots = [(WIDTH * across, HEIGHT * (1 - up)) for across, up in at]
    taken = [(px - 6, py - 6, px + 6, py + 6)
             for (px, py), row in zip(spots, rows, strict=True) if row["named"]]  # fmt: skip
    placed: dict[tuple[str, int, int], list[Mapping[str, Any]]] = {}
    chosen = [(row, spot) for row, spot in zip(rows, spots, strict=True) if row["named"]]
    for row, (px, py) in sorted(chosen, key=lambda pair: not pair[0]["main"]):
        width = CHARACTER * len(row["label"])
        for place in PLACES if beside else PLACES[2:]:
            align, dx, dy = place
            start = px + dx - {"left": 0.0, "right": width, "center": width / 2}[align]
            box = (start, py + dy - 7, start + width, py + dy + 7)
            inside = box[0] > 0 and box[2] < WIDTH and box[1] > 0 and box[3] < HEIGHT
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                placed.setdefault(place, []).append(row)
                break
    return [
        alt.Chart(alt.Data(values=of)).transform_filter(SHOWN)
        # On a phone there is no room for names: pointing and the table tell them.
        .mark_text(align=align, dx=dx, dy=dy, baseline="middle", clip=True, tooltip=False,
                   opacity=alt.expr(f"width < 400 ? 0 : {STRENGTH}"))
        .encode(x, y, alt.Text("label:N"), colour(looks, symbol="circle"))
        for (align, dx, dy), of in placed.items()
    ]  # fmt: skip


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def decades(low: float, high: float) -> list[float]:
    """Round numbers within a range: 1, 2 and 5 of each decade, or 1 of many.

    Example:
        >>> decades(0.4, 6), decades(0.02, 30)
        ([0.5, 1.0, 2.0, 5.0], [0.1, 1.0, 10.0])
    """
    digits = (1, 2, 5) if math.log10(high / low) < 2.2 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [n * 10.0**power for power in powers for n in digits if low <= n * 10.0**power <= high]
