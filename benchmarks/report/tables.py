"""The table of a run, as text and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Summary = Mapping[str, Mapping[str, Any]]
MISSING = "-"


@dataclass(frozen=True)
class Column:
    """One column: its heading, and the cell of a method's summary."""

    heading: str
    protocol: str
    cell: Callable[[Mapping[str, Any]], str]


def percent(key: str) -> Callable[[Mapping[str, Any]], str]:
    def cell(numbers: Mapping[str, Any]) -> str:
        value = numbers.get(key)
        return MISSING if value is None else f"{100 * value:.1f}"

    return cell


def _best(numbers: Mapping[str, Any]) -> str:
    curve = numbers["accuracy_curve"]
    if min(curve) == max(curve):
        return f"{100 * max(curve):.1f}"
    return f"{100 * numbers['max_box_acc']:.1f} ({numbers['max_box_acc_threshold']:.2f})"


def _misses(numbers: Mapping[str, Any]) -> str:
    return str(numbers["num_empty"])


def _milliseconds(numbers: Mapping[str, Any]) -> str:
    seconds = numbers["median_seconds"]
    return MISSING if seconds is None else f"{1000 * seconds:.0f}"


COLUMNS = (
    Column("IoU≥0.5 at τ=0.2", "boxes", percent("accuracy_at_0.2")),
    Column("mean τ 0.15-0.25", "boxes", percent("mean_accuracy_0.15_to_0.25")),
    Column("MaxBoxAcc (τ)", "boxes", _best),
    Column("MaxBoxAccV2", "boxes", percent("max_box_acc_v2")),
    Column("empty", "boxes", _misses),
    Column("attention, box", "attention", percent("score")),
    Column("attention, mask", "attention", percent("mask_score")),
    Column("ms/image", "boxes", _milliseconds),
)


def table_rows(summary: Summary, titles: Mapping[str, str]) -> list[list[str]]:
    """Heading row, then a row per method; columns that nobody fills are left out."""
    rows = [
        [titles[name], *(_cell(column, numbers) for column in COLUMNS)]
        for name, numbers in summary.items()
    ]
    filled = [
        index
        for index in range(len(COLUMNS) + 1)
        if index == 0 or any(row[index] != MISSING for row in rows)
    ]
    heading = ["method", *(column.heading for column in COLUMNS)]
    return [[row[index] for index in filled] for row in [heading, *rows]]


def _cell(column: Column, numbers: Mapping[str, Any]) -> str:
    return column.cell(numbers[column.protocol]) if column.protocol in numbers else MISSING


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned for a terminal."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *others = (
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *others]).rstrip())
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join(lines)


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """A GitHub table, numbers to the right."""
    heading, *body = (["| " + " | ".join(row) + " |"][0] for row in rows)
    rule = "|---|" + "---:|" * (len(rows[0]) - 1)
    return "\n".join([heading, rule, *body])


def counts_text(counts: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """The images behind the table, and those that are not in it."""
    parts = [f"{counts['images']} test images"]
    parts += [f"{number} measured ({name})" for name, number in counts["measured"].items()]
    parts += [
        f"{number} left out ({name}: box outside the frame)"
        for name, number in counts["left_out"].items()
        if number
    ]
    if counts["unreadable"]:
        parts.append(f"{counts['unreadable']} unreadable")
    absent = data["train"]["absent"] + data["test"]["absent"]
    if absent:
        parts.append(f"{absent} listed but absent")
    return ", ".join(parts)
