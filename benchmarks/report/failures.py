"""Tables and figure of how boxes miss, from the content of failures.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import altair as alt

from benchmarks.metrics.outcomes import OUTCOMES
from benchmarks.report.chart_parts import ROW, lines
from benchmarks.report.looks import FLOOR, Look, looks_of
from benchmarks.results.tables import MISSING
from benchmarks.results.tables import as_markdown as markdown_table
from benchmarks.results.tables import as_text as text_table

LEGEND = {
    "correct": "correct (IoU ≥ 0.5)",
    "part": "part of the object only",
    "too big": "the object and much more",
    "aside": "off to one side",
    "background": "background",
    "empty": "empty map",
}
# Of Okabe and Ito's colours, and a grey for what is not there; of two a number is read in white.
COLOURS = ("#009E73", "#E69F00", "#0072B2", "#CC79A7", "#7A5195", "#BBBBBB")
WHITE_ON = ("too big", "background")
DEFINITIONS = (
    "Each image counts once: **correct**, IoU of 0.5 or more; else **part**, at least 90% of the "
    "predicted box lies in the object's, and it is too small; **too big**, at least 90% of the "
    "object's box lies in the predicted one; **background**, less than 10% of the predicted box "
    "lies in the object's; **aside**, in between; **empty**, a map without a positive pixel."
)
SMALLEST_LABEL = 0.06
MOST_LINES = 6
NUM_CLASSES = 3

Rows = list[list[str]]


def outcome_rows(misses: Mapping[str, Any], *, compact: bool = False) -> Rows:
    """A row per method: the share of each outcome, in percent, with its interval."""
    rows = [["method", *OUTCOMES, "images"]]
    for one in misses["methods"].values():
        shares = [_percent(one["outcomes"][kind]["share"], compact) for kind in OUTCOMES]
        rows.append([one["title"], *shares, str(one["num_images"])])
    return rows


def size_rows(misses: Mapping[str, Any], *, compact: bool = False) -> Rows:
    """A row per method: accuracy by the object's share of the image, and the number of images."""
    sizes = list(next(iter(misses["methods"].values()))["sizes"])
    rows = [["method", *(f"object {size}" for size in sizes)]]
    for one in misses["methods"].values():
        groups = one["sizes"].values()
        rows.append([one["title"], *(f"{_percent(group['accuracy'], compact)} ({group['count']})"
                                     for group in groups)])  # fmt: skip
    return rows


def class_rows(misses: Mapping[str, Any], number: int = NUM_CLASSES) -> Rows:
    """A row per method: the classes in which it does worst and best; none is in both."""
    rows = [["method", "worst classes", "best classes"]]
    for one in misses["methods"].values():
        texts = [f"{of['name']} {100 * of['accuracy']:.0f} ({of['count']})"
                 for of in one["classes"]]  # fmt: skip
        kept = min(number, len(texts) // 2)
        rows.append([one["title"], "; ".join(texts[:kept]), "; ".join(texts[::-1][:kept])])
    return rows


def _percent(interval: Sequence[float] | None, compact: bool) -> str:
    if interval is None:
        return MISSING
    share, low, high = (100 * value for value in interval)
    ends = f"±{(high - low) / 2:.1f}" if compact else f"[{low:.1f}, {high:.1f}]"
    return f"{share:.1f} {ends}"


def as_text(misses: Mapping[str, Any]) -> str:
    """The tables for a terminal."""
    return "\n\n".join(
        [
            _heading(misses) + " In percent:",
            text_table(outcome_rows(misses, compact=True)),
            "Correct by the object's share of the image, in percent (images):",
            text_table(size_rows(misses, compact=True)),
            "Correct by class, in percent (images):",
            text_table(class_rows(misses, number=1)),
            "±: half of the 95% bootstrap interval over images",
        ]
    )


def as_markdown(misses: Mapping[str, Any]) -> str:
    """The tables with what the outcomes mean and what they were made from."""
    parts = [
        f"{_heading(misses)} {DEFINITIONS}",
        markdown_table(outcome_rows(misses)),
        "In percent, with 95% bootstrap intervals over images.",
        "Correct, by the share of the image that the object's box takes (number of images):",
        markdown_table(size_rows(misses)),
        "Correct in the worst and the best classes (number of images):",
        markdown_table(class_rows(misses)),
        f"```\n{misses['command']}\n```",
        "The run:",
        f"```\n{misses['run']}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _heading(misses: Mapping[str, Any]) -> str:
    return (
        f"How boxes at τ = {misses['threshold']:g} miss: {misses['data']}, "
        f"{misses['num_images']} images of classes {misses['test_classes']}."
    )


def leading_methods(misses: Mapping[str, Any]) -> list[str]:
    """The main method, the best of each other family, and the centre box: at most six.

    Methods measured on fewer images are not among them.
    """
    main, methods = misses["main_method"], misses["methods"]
    most = max((one["num_images"] for one in methods.values()), default=0)
    best: dict[str, str] = {}
    for name, one in methods.items():
        if name != main and one["family"] != FLOOR and one["num_images"] == most:
            best.setdefault(one["family"], name)
    floors = [name for name in ("centre_box",) if name in methods]
    names = [name for name in (main, *best.values()) if name in methods]
    return [*names[: MOST_LINES - len(floors)], *floors]


def failures_chart(misses: Mapping[str, Any]) -> Any:
    """Stacked bars of every method's outcomes; accuracy by the object's size for the main ones."""
    images = {
        name: one["num_images"] for name, one in misses["methods"].items() if one["family"] != FLOOR
    }
    methods = [{"name": name, **one} for name, one in misses["methods"].items()]
    looks = looks_of(methods, misses["main_method"], images)
    title, _, subtitle = _heading(misses).removesuffix(".").partition(": ")
    return (
        alt.hconcat(_bars(misses, looks), _sizes(misses, looks), spacing=40)
        .properties(title=alt.Title(title, subtitle=subtitle))
        .resolve_scale(color="independent")
        .resolve_legend(color="independent")
    )


def _bars(misses: Mapping[str, Any], looks: Mapping[str, Look]) -> Any:
    rows = [
        {"label": looks[name].label, "outcome": LEGEND[kind], "order": order,
         "share": one["outcomes"][kind]["share"][0]}
        for name, one in misses["methods"].items()
        for order, kind in enumerate(OUTCOMES)
    ]  # fmt: skip
    labels = [looks[name].label for name in misses["methods"]]
    legend = alt.Legend(title=None, orient="bottom", columns=3, symbolType="square")
    axis = alt.Axis(format=".0%", grid=False)
    x = alt.X("share:Q", title="images", axis=axis).stack("zero").scale(domain=[0, 1])
    y = alt.Y("label:N", sort=labels, title=None, axis=alt.Axis(domain=False, ticks=False))
    base = alt.Chart(alt.Data(values=rows)).encode(y, alt.Order("order:Q"))
    hue = alt.Color("outcome:N", legend=legend).scale(domain=list(LEGEND.values()), range=COLOURS)
    tips = [alt.Tooltip("label:N"), alt.Tooltip("outcome:N"), alt.Tooltip("share:Q", format=".1%")]
    white = alt.FieldOneOfPredicate("outcome", [LEGEND[kind] for kind in WHITE_ON])
    numbers = base.mark_text(fontSize=10).encode(
        x.bandPosition(0.5),
        alt.Text("percent:N"),
        alt.Detail("outcome:N"),
        color=alt.condition(white, alt.value("white"), alt.value("black")),
    )
    large = f"datum.share >= {SMALLEST_LABEL} ? format(100 * datum.share, '.0f') : ''"
    bars = base.mark_bar(height=ROW - 3).encode(x, hue, tooltip=tips)
    return alt.layer(bars, numbers.transform_calculate(percent=large)).properties(
        width=480, height=ROW * len(labels)
    )


def _sizes(misses: Mapping[str, Any], looks: Mapping[str, Look]) -> Any:
    shown = {name: misses["methods"][name] for name in leading_methods(misses)}
    counts: dict[str, int] = {}
    for one in shown.values():
        counts |= {size: max(of["count"], counts.get(size, 0)) for size, of in one["sizes"].items()}
    ticks = {size: f"{size}; n = {count}" for size, count in counts.items()}
    rows = [
        {**asdict(looks[name]), "size": ticks[size],
         **dict(zip(("value", "low", "high"), of["accuracy"], strict=True))}
        for name, one in shown.items()
        for size, of in one["sizes"].items() if of["count"]
    ]  # fmt: skip
    axis = alt.Axis(labelAngle=0, labelExpr="split(datum.label, '; ')", grid=False)
    x = alt.X("size:N", sort=list(ticks.values()), title="object's share of the image", axis=axis)
    x = x.scale(domain=list(ticks.values()))
    y = alt.Y("value:Q", title="correct", axis=alt.Axis(format=".0%")).scale(domain=[0, 1])
    return lines(rows, [looks[name] for name in shown], x, y).properties(width=380)
