"""Tables and figure of how boxes miss, from the content of failures.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.metrics.outcomes import OUTCOMES
from benchmarks.report.figures import COLOURS, FLOOR, FLOOR_GREY, STYLE
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
    """The main method, the best of each other family, and the centre box: at most six."""
    main = found["main_method"]
    best: dict[str, str] = {}
    for name, one in found["methods"].items():
        if name != main and one["family"] != FLOOR:
            best.setdefault(one["family"], name)
    names = [name for name in (main, *best.values()) if name in found["methods"]]
    floors = [name for name in ("centre_box",) if name in found["methods"]]
    return [*names[: MOST_LINES - len(floors)], *floors]


def draw_failures(found: Mapping[str, Any]) -> Figure:
    """Stacked bars of every method's outcomes; accuracy by the object's size for the main ones."""
    num_methods = len(found["methods"])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12.4, max(4.4, 1.7 + 0.3 * num_methods)), layout="constrained")
        grid = figure.add_gridspec(1, 2, width_ratios=[1.75, 1])
        bars = figure.add_subplot(grid[0])
        # Of very many methods the bars are high, and the lines need no more than so much of it.
        lines = figure.add_subplot(grid[1])
        lines.set_box_aspect(0.95)
        lines.set_anchor("N")
        _draw_bars(bars, found)
        _draw_sizes(lines, found)
        figure.suptitle(
            f"How boxes at τ = {found['threshold']:g} miss\n{found['data']}, "
            f"{found['num_images']} images of classes {found['test_classes']}",
            x=0.01,
            ha="left",
        )
        return figure


def _draw_bars(axes: Axes, found: Mapping[str, Any]) -> None:
    methods = list(found["methods"].values())
    heights = np.arange(len(methods), dtype=np.float64)
    left = np.zeros(len(methods))
    for kind in OUTCOMES:
        shares = np.array([one["outcomes"][kind]["share"][0] for one in methods])
        colour = OUTCOME_COLOURS[kind]
        axes.barh(heights, 100 * shares, 0.78, 100 * left, color=colour, label=LEGEND[kind])
        for height, share, start in zip(heights, shares, left, strict=True):
            if share >= SMALLEST_LABEL:
                axes.text(
                    100 * (start + share / 2),
                    height,
                    f"{100 * share:.0f}",
                    ha="center",
                    va="center_baseline",
                    fontsize=8,
                    color=_readable_on(colour),
                )
        left += shares
    most = max(one["num_images"] for one in methods)
    fewer = (f" (of {n})" if (n := one["num_images"]) < most else "" for one in methods)
    titles = [one["title"] + some for one, some in zip(methods, fewer, strict=True)]
    axes.set_yticks(heights, titles)
    for label, one in zip(axes.get_yticklabels(), methods, strict=True):
        label.set_color(FLOOR_GREY if one["family"] == FLOOR else "black")
    axes.set_ylim(len(methods) - 0.45, -0.55)
    axes.grid(visible=False)
    axes.tick_params(left=False)
    axes.spines["left"].set_visible(False)
    axes.set(xlim=(0, 100), xlabel="images (%)")
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=8, borderpad=0.2
    )


def _readable_on(colour: str) -> str:
    red, green, blue = mpl.colors.to_rgb(colour)
    return "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"


def _draw_sizes(axes: Axes, found: Mapping[str, Any]) -> None:
    names = leading_methods(found)
    shown = [found["methods"][name] for name in names]
    sizes = list(shown[0]["sizes"])
    counts = [max(one["sizes"][size]["count"] for one in shown) for size in sizes]
    for number, (name, one) in enumerate(zip(names, shown, strict=True)):
        # Side by side, so that intervals do not hide each other.
        aside = 0.3 * (number / max(1, len(names) - 1) - 0.5)
        known = [i for i, size in enumerate(sizes) if one["sizes"][size]["count"]]
        values = 100 * np.array([one["sizes"][sizes[i]]["accuracy"] for i in known])
        accuracy, low, high = values.T
        floor = one["family"] == FLOOR
        axes.errorbar(
            np.array(known) + aside,
            accuracy,
            yerr=np.maximum(0, [accuracy - low, high - accuracy]),
            color=FLOOR_GREY if floor else COLOURS[number % len(COLOURS)],
            ls=(0, (1, 1)) if floor else "-",
            lw=2.2 if name == found["main_method"] else 1.3,
            marker="o",
            ms=4,
            elinewidth=0.8,
            label=one["title"],
        )
    axes.set_xticks(
        range(len(sizes)), [f"{size}\nn={count}" for size, count in zip(sizes, counts, strict=True)]
    )
    axes.set(
        xlim=(-0.5, len(sizes) - 0.5),
        ylim=(-3, 103),
        xlabel="object's share of the image",
        ylabel="correct (%)",
    )
    # Below the axis, whose labels are as high in every figure: in units of its own letters.
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=7, frameon=False, fontsize=8
    )
