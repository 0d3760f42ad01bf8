"""The table and figure of an ablation, from the content of its ablation.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.report.figures import COLOURS, STYLE

HEADINGS = (
    "axis",
    "setting",
    "IoU≥0.5 at τ=0.2 [95%]",
    "least, τ 0.15-0.25",
    "best (τ)",
    "against recommended [95%]",
)


def as_markdown(results: Mapping[str, Any]) -> str:
    """Both tables, with what they were made from."""
    counts = results["num_images"]
    parts = [
        f"Chosen on {counts['validation']} images of the training classes; {results['choice']}: "
        f"**{results['chosen']}**.",
        _table(results["validation"]),
    ]
    if results["test"]:
        parts += [f"Reported once on {counts['test']} test images:", _table(results["test"])]
    parts.append(f"```\n{results['command']}\n```")
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [HEADINGS, ("---",) * len(HEADINGS)]
    lines += [tuple(_cells(row)) for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cells(row: Mapping[str, Any]) -> list[str]:
    accuracy, low, high = (100 * share for share in row["accuracy_at_0.2"])
    difference, least, most = (100 * share for share in row["difference_at_0.2"])
    forwards = f" ({row['forwards']} forwards)" if row["forwards"] > 1 else ""
    return [
        row["axis"],
        row["name"] + forwards,
        f"{accuracy:.1f} [{low:.1f}, {high:.1f}]",
        f"{100 * row['least_accuracy_0.15_to_0.25']:.1f}",
        f"{100 * row['max_box_acc'][0]:.1f} ({row['max_box_acc_threshold']:.2f})",
        f"{difference:+.1f} [{least:+.1f}, {most:+.1f}]",
    ]


def draw_ablation(results: Mapping[str, Any]) -> Figure:
    """Accuracy at 0.2 with its interval, and at the best threshold, a line per setting."""
    rows = list(results["validation"])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 1.2 + 0.2 * len(rows)), layout="constrained")
        axes = figure.subplots()
        height = 0.0
        ticks: list[float] = []
        labels: list[str] = []
        for number, (axis, group) in enumerate(groupby(rows, key=lambda row: row["axis"])):
            colour = COLOURS[number % len(COLOURS)]
            for row in group:
                _draw_row(axes, row, height, colour)
                ticks.append(height)
                labels.append(f"{axis}: {row['name']}")
                height -= 1
            height -= 0.6
        base = 100 * rows[0]["accuracy_at_0.2"][0]
        axes.axvline(base, color="black", alpha=0.35, lw=0.8)
        axes.set_yticks(ticks, labels, fontsize=7)
        axes.set(
            xlim=(0, 100),
            ylim=(height, 1),
            xlabel="images with IoU ≥ 0.5 (%)   ● at τ = 0.2, 95% interval   ◇ at the best τ",
        )
        figure.suptitle(
            f"{results['num_images']['validation']} images of the training classes", fontsize=9
        )
        return figure


def _draw_row(axes: Any, row: Mapping[str, Any], height: float, colour: str) -> None:
    accuracy, low, high = (100 * share for share in row["accuracy_at_0.2"])
    axes.plot([low, high], [height, height], color=colour, lw=1.4)
    axes.plot(accuracy, height, "o", color=colour, ms=4.5)
    axes.plot(100 * row["max_box_acc"][0], height, "D", mfc="none", color=colour, ms=4)
