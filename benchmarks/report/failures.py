"""Tables and figure of how boxes miss, from the content of failures.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from benchmarks.metrics.outcomes import OUTCOMES
from benchmarks.report.chart_parts import HEIGHT, ROW, colour, dash
from benchmarks.report.looks import FLOOR, Look, looks_of
from benchmarks.results.tables import MISSING
from benchmarks.results.tables import as_markdown as markdown_table
from benchmarks.results.tables import as_text as text_table

# Of Okabe and Ito's colours, and a grey for what is not there.
OUTCOME_COLOURS = dict(
    zip(OUTCOMES, ("#009E73", "#E69F00", "#0072B2", "#CC79A7", "#7A5195", "#BBBBBB"), strict=True)
)
LEGEND = {
    "correct": "correct (IoU ≥ 0.5)",
    "part": "part of the object only",
    "too big": "the object and much more",
    "aside": "off to one side",
    "background": "background",
    "empty": "empty map",
}
DEFINITIONS = (
    "Each image counts once: **correct**, IoU of 0.5 or more; else **part**, at least 90% of the "
    "predicted box lies in the object's, and it is too small; **too big**, at least 90% of the "
    "object's box lies in the predicted one; **background**, less than 10% of the predicted box "
    "lies in the object's; **aside**, in between; **empty**, a map without a positive pixel."
)
SMALLEST_LABEL = 0.06
# Of these a white number is read more easily than a black one.
WHITE_ON = ("#0072B2", "#7A5195")
MOST_LINES = 6
NUM_CLASSES = 3


def outcome_rows(found: Mapping[str, Any], *, compact: bool = False) -> list[list[str]]:
    """A row per method: the share of each outcome, in percent, with its interval."""
    rows = [["method", *OUTCOMES, "images"]]
    for one in found["methods"].values():
        shares = [_percent(one["outcomes"][kind]["share"], compact) for kind in OUTCOMES]
        rows.append([one["title"], *shares, str(one["num_images"])])
    return rows


def size_rows(found: Mapping[str, Any], *, compact: bool = False) -> list[list[str]]:
    """A row per method: accuracy by the object's share of the image, and the number of images."""
    sizes = list(next(iter(found["methods"].values()))["sizes"])
    rows = [["method", *(f"object {size}" for size in sizes)]]
    for one in found["methods"].values():
        cells = [
            f"{_percent(group['accuracy'], compact)} ({group['count']})"
            for group in one["sizes"].values()
        ]
        rows.append([one["title"], *cells])
    return rows


def class_rows(found: Mapping[str, Any], number: int = NUM_CLASSES) -> list[list[str]]:
    """A row per method: the classes in which it does worst and best; none is in both."""
    rows = [["method", "worst classes", "best classes"]]
    for one in found["methods"].values():
        classes = one["classes"]
        kept = min(number, len(classes) // 2)
        worst, best = classes[:kept], classes[::-1][:kept]
        rows.append([one["title"], *("; ".join(map(_class, part)) for part in (worst, best))])
    return rows


def _class(one: Mapping[str, Any]) -> str:
    return f"{one['name']} {100 * one['accuracy']:.0f} ({one['count']})"


def _percent(interval: Sequence[float] | None, compact: bool) -> str:
    if interval is None:
        return MISSING
    share, low, high = (100 * value for value in interval)
    return (
        f"{share:.1f} ±{(high - low) / 2:.1f}"
        if compact
        else f"{share:.1f} [{low:.1f}, {high:.1f}]"
    )


def as_text(found: Mapping[str, Any]) -> str:
    """The tables for a terminal."""
    return "\n\n".join(
        [
            _heading(found) + " In percent:",
            text_table(outcome_rows(found, compact=True)),
            "Correct by the object's share of the image, in percent (images):",
            text_table(size_rows(found, compact=True)),
            "Correct by class, in percent (images):",
            text_table(class_rows(found, number=1)),
            "±: half of the 95% bootstrap interval over images",
        ]
    )


def as_markdown(found: Mapping[str, Any]) -> str:
    """The tables with what the outcomes mean and what they were made from."""
    parts = [
        f"{_heading(found)} {DEFINITIONS}",
        markdown_table(outcome_rows(found)),
        "In percent, with 95% bootstrap intervals over images.",
        "Correct, by the share of the image that the object's box takes (number of images):",
        markdown_table(size_rows(found)),
        "Correct in the worst and the best classes (number of images):",
        markdown_table(class_rows(found)),
        f"```\n{found['command']}\n```",
        "The run:",
        f"```\n{found['run']}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _heading(found: Mapping[str, Any]) -> str:
    return (
        f"How boxes at τ = {found['threshold']:g} miss: {found['data']}, {found['num_images']} "
        f"images of classes {found['test_classes']}."
    )


def leading_methods(found: Mapping[str, Any]) -> list[str]:
    """The main method, the best of each other family, and the centre box: at most six.

    Methods measured on fewer images are not among them.
    """
    main = found["main_method"]
    most = max((one["num_images"] for one in found["methods"].values()), default=0)
    best: dict[str, str] = {}
    for name, one in found["methods"].items():
        if name != main and one["family"] != FLOOR and one["num_images"] == most:
            best.setdefault(one["family"], name)
    names = [name for name in (main, *best.values()) if name in found["methods"]]
    floors = [name for name in ("centre_box",) if name in found["methods"]]
    return [*names[: MOST_LINES - len(floors)], *floors]


def failures_chart(found: Mapping[str, Any]) -> Any:
    """Stacked bars of every method's outcomes; accuracy by the object's size for the main ones."""
    images = {
        name: one["num_images"] for name, one in found["methods"].items() if one["family"] != FLOOR
    }
    methods = [{"name": name, **one} for name, one in found["methods"].items()]
    looks = looks_of(methods, found["main_method"], images)
    title = alt.Title(
        f"How boxes at τ = {found['threshold']:g} miss",
        subtitle=f"{found['data']}, {found['num_images']} images of classes "
        f"{found['test_classes']}",
    )
    sides = [_bars(found, looks), _sizes(found, looks)]
    return (
        alt.hconcat(*sides, spacing=40, title=title)
        .resolve_scale(color="independent")
        .resolve_legend(color="independent")
    )


def _bars(found: Mapping[str, Any], looks: Mapping[str, Look]) -> Any:
    rows: list[dict[str, Any]] = []
    for name, one in found["methods"].items():
        start = 0.0
        for kind in OUTCOMES:
            share = one["outcomes"][kind]["share"][0]
            place = {"start": start, "middle": start + share / 2, "end": start + share}
            rows.append(
                {"label": looks[name].label, "outcome": LEGEND[kind], "share": share, **place}
            )
            start += share
    axis = alt.Axis(labelLimit=0, domain=False, ticks=False)
    y = alt.Y("label:N", sort=[looks[name].label for name in found["methods"]], title=None,
              axis=axis)  # fmt: skip
    outcomes = list(LEGEND.values())
    legend = alt.Legend(title=None, orient="bottom", columns=3, labelLimit=0, symbolType="square")
    hue = alt.Color("outcome:N", legend=legend).scale(
        domain=outcomes, range=list(OUTCOME_COLOURS.values())
    )
    x = alt.X("start:Q", title="images", axis=alt.Axis(format=".0%", grid=False))
    base = alt.Chart(alt.Data(values=rows))
    bars = base.mark_bar(height=ROW - 3).encode(
        x.scale(domain=[0, 1]), alt.X2("end:Q"), y, hue,
        [alt.Tooltip("label:N"), alt.Tooltip("outcome:N"), alt.Tooltip("share:Q", format=".1%")],
    )  # fmt: skip
    dark = [LEGEND[kind] for kind, hue in OUTCOME_COLOURS.items() if hue in WHITE_ON]
    texts = (
        base.transform_filter(alt.datum.share >= SMALLEST_LABEL)
        .mark_text(fontSize=10)
        .encode(
            alt.X("middle:Q", title="images"),
            y,
            alt.Text("label_:N"),
            color=alt.condition(
                alt.FieldOneOfPredicate("outcome", dark), alt.value("white"), alt.value("black")
            ),
        )
        .transform_calculate(label_="format(100 * datum.share, '.0f')")
    )
    return alt.layer(bars, texts).properties(width=480, height=ROW * len(found["methods"]))


def _sizes(found: Mapping[str, Any], looks: Mapping[str, Look]) -> Any:
    names = leading_methods(found)
    shown = [found["methods"][name] for name in names]
    sizes = list(shown[0]["sizes"])
    counts = {size: max(one["sizes"][size]["count"] for one in shown) for size in sizes}
    ticks = {size: f"{size} (n = {counts[size]})" for size in sizes}
    rows = [
        {"label": looks[name].label, "size": ticks[size],
         **dict(zip(("value", "low", "high"), of["accuracy"], strict=True))}
        for name, one in zip(names, shown, strict=True)
        for size, of in one["sizes"].items() if of["count"]
    ]  # fmt: skip
    present = [looks[name] for name in names]
    order = list(ticks.values())
    x = alt.X("size:N", sort=order, title="object's share of the image",
              axis=alt.Axis(labelAngle=0, labelExpr="split(datum.label, ' (')", grid=False,
                            labelLimit=0),
              scale=alt.Scale(domain=order))  # fmt: skip
    # Side by side, so that intervals do not hide each other.
    aside = alt.XOffset("label:N", sort=[look.label for look in present])
    y = alt.Y("value:Q", title="correct", axis=alt.Axis(format=".0%"))
    y = y.scale(domain=[0, 1])
    base = alt.Chart(alt.Data(values=rows))
    hue = colour(present, columns=1, orient="bottom")
    lines = base.mark_line(strokeWidth=1.6).encode(x, y, aside, hue, dash(present))
    ends = base.mark_rule().encode(x, alt.Y("low:Q", title="correct"), alt.Y2("high:Q"), aside, hue)
    dots = base.mark_point(filled=True, size=40, opacity=1).encode(x, y, aside, hue)
    return alt.layer(lines, ends, dots).properties(width=380, height=HEIGHT)
