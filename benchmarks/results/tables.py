"""The table of a run: its columns, and the table as text and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

Numbers = Mapping[str, Any]
MISSING = "-"


@dataclass(frozen=True)
class Cell:
    """One number of the table.

    Args:
        text (str): as it is shown.
        value (float, optional): to sort by.
        ends (tuple of str, optional): of its 95% interval, as they are shown.
        half_width (str, optional): of the interval.
        note (str): what else belongs to the number, such as its threshold.
        verdict (str): ``"above"`` or ``"below"``, of a difference whose interval leaves out zero:
            the method is better than the main one, or worse.
    """

    text: str = MISSING
    value: float | None = None
    ends: tuple[str, str] | None = None
    half_width: str | None = None
    note: str = ""
    verdict: Literal["above", "below", ""] = ""

    def full(self) -> str:
        """With the ends of the interval."""
        interval = f" [{self.ends[0]}, {self.ends[1]}]" if self.ends else ""
        return self.text + interval + (f" ({self.note})" if self.note else "")

    def compact(self) -> str:
        """With half the width of the interval."""
        interval = f" ±{self.half_width}" if self.half_width else ""
        return self.text + interval + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        heading (str): short.
        protocol (str, optional): whose numbers it shows; None: of the full-size images, or of
            what else there is.
        cell (Callable): a method's numbers in that protocol to its cell.
        about (str): what it is, in a sentence.
        better (str, optional): which end is the good one.
        in_terminal (bool): also in the table that a run prints.
    """

    heading: str
    protocol: str | None
    cell: Callable[[Numbers], Cell]
    about: str
    better: Literal["higher", "lower"] | None = None
    in_terminal: bool = True


def columns(figures: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The columns of a run: those of its figures, and what maps cost.

    Args:
        figures (sequence of Mapping): as results.json echoes them, see
            `benchmarks.results.summary.declared`.
    """
    columns = []
    for protocol, declared in groupby(figures, lambda figure: figure["protocol"]):
        for figure in declared:
            columns.append(_figure_column(figure))
            if figure["lead"]:
                columns.append(_difference_column(figure))
        about = "Maps without a positive pixel: misses"
        # Where images are measured in full size and as crops, the first is enough for a terminal.
        first = protocol == figures[0]["protocol"]
        columns.append(Column("empty", protocol, _misses, about, "lower", in_terminal=first))
    return [*columns, *COSTS]


def _figure_column(figure: Mapping[str, Any]) -> Column:
    return Column(
        figure["heading"],
        figure["protocol"],
        lambda numbers: _figure_cell(numbers, figure),
        figure["about"],
        figure["better"],
        figure["in_terminal"],
    )


def _difference_column(figure: Mapping[str, Any]) -> Column:
    return Column(
        "minus main",
        figure["protocol"],
        lambda numbers: _difference_cell(numbers, figure),
        f"{figure['heading']} minus that of the main method on the same images",
        figure["better"],
        in_terminal=False,
    )


def _figure_cell(numbers: Numbers, figure: Mapping[str, Any]) -> Cell:
    """A figure with its interval; a share is in percent."""
    values = numbers.get("figures", {}).get(figure["key"])
    if values is None:
        return Cell()
    at = values.get(figure["at"])
    note = "" if at is None else f"{at:.2f}"
    return _with_interval(values["value"], (values["low"], values["high"]), figure["unit"], note)


def _difference_cell(numbers: Numbers, figure: Mapping[str, Any]) -> Cell:
    """The same minus that of the main method; of shares, in percentage points."""
    values = numbers.get("figures", {}).get(figure["key"], {})
    if "difference" not in values:
        return Cell()
    low, high = values["difference_low"], values["difference_high"]
    worst, best = (low, high) if figure["better"] == "higher" else (-high, -low)
    cell = _with_interval(values["difference"], (low, high), figure["unit"], signed=True)
    return replace(cell, verdict="above" if worst > 0 else "below" if best < 0 else "")


def _with_interval(
    value: float, ends: tuple[float, float], unit: str, note: str = "", *, signed: bool = False
) -> Cell:
    text, low, high = (number_text(number, unit, signed=signed) for number in (value, *ends))
    return Cell(text, value, (low, high), number_text((ends[1] - ends[0]) / 2, unit), note)


def number_text(value: float, unit: str, *, signed: bool = False) -> str:
    """A figure of merit as it is read: a share in percent, anything else with three decimals.

    Example:
        >>> number_text(0.5, "%"), number_text(-0.25, ""), number_text(-0.00001, "%", signed=True)
        ('50.0', '-0.250', '+0.0')
    """
    scaled, digits = (100 * value, 1) if unit == "%" else (value, 3)
    return f"{round(scaled, digits) + 0.0:{'+' if signed else ''}.{digits}f}"


def _misses(numbers: Numbers) -> Cell:
    """How many maps were empty, of how many."""
    if "num_empty" not in numbers:
        return Cell()
    note = f"of {numbers['num_images']}" if "num_images" in numbers else ""
    return Cell(str(numbers["num_empty"]), numbers["num_empty"], note=note)


def _cost(key: str, scale: float, form: str) -> Callable[[Numbers], Cell]:
    """A time or a size, in other units."""

    def cell(numbers: Numbers) -> Cell:
        value = numbers.get(key)
        return Cell() if value is None else Cell(form.format(scale * value), value)

    return cell


COSTS = (
    Column(
        "ms/image", None, _cost("median_seconds", 1000, "{:.0f}"),
        "Time per image, median, milliseconds", "lower",
    ),
    Column(
        "times forward", None, _cost("times_forward", 1, "{:.1f}"),
        "Time over that of the plain forward pass on the same image, median", "lower",
    ),
    Column(
        "peak MB", None, _cost("peak_memory_bytes", 1e-6, "{:.0f}"),
        "Memory taken at most on the largest image, megabytes", "lower", in_terminal=False,
    ),
)  # fmt: skip


def filled_columns(results: Mapping[str, Any], *, compact: bool = False) -> list[Column]:
    """The columns in which some method has a number; fewer for a terminal."""
    return [
        column
        for column in columns(results["figures"])
        if (column.in_terminal or not compact)
        and any(cell_of(column, numbers).text != MISSING for numbers in results["summary"].values())
    ]


def cell_of(column: Column, numbers: Mapping[str, Numbers]) -> Cell:
    """The cell of one method, empty where it has no number in that protocol."""
    protocol = column.protocol
    if protocol is None:
        protocol = "boxes" if "boxes" in numbers else next(iter(numbers), "boxes")
    return column.cell(numbers[protocol]) if protocol in numbers else Cell()


def table_rows(results: Mapping[str, Any], *, compact: bool = False) -> list[list[str]]:
    """Heading row, then a row per method; columns that nobody fills are left out.

    Args:
        results (Mapping): of a run: ``figures``, ``methods``, with the reductions of their
            channels where they are stated, and ``summary``.
        compact (bool): as for a terminal: fewer columns, and intervals as ±.
    """
    about = {method["name"]: method for method in results["methods"]}
    stated = not compact and any("reduction" in method for method in about.values())
    shown = filled_columns(results, compact=compact)
    headings = ["method", *(["reduction"] if stated else [])]
    rows = [[*headings, *(column.heading for column in shown)]]
    for name, numbers in results["summary"].items():
        cells = [cell_of(column, numbers) for column in shown]
        texts = [cell.compact() if compact else cell.full() for cell in cells]
        reduction = [about[name].get("reduction", MISSING)] if stated else []
        rows.append([about[name]["title"], *reduction, *texts])
    return rows


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
    """A GitHub table, words to the left and numbers to the right."""
    heading, *body = ("| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in rows)
    _, *others = zip(*rows, strict=True)
    rule = ["---", *("---" if any(map(_holds_words, each[1:])) else "---:" for each in others)]
    return "\n".join([heading, f"|{'|'.join(rule)}|", *body])


def _holds_words(cell: str) -> bool:
    return sum(map(str.isalpha, cell)) > sum(map(str.isdigit, cell))


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def images_of(results: Mapping[str, Any]) -> str:
    """The test images of a run, for the title of a figure."""
    data, num_images = results["data"], results["counts"]["images"]
    fewer = fewer_images(results)
    return f"{data['name']}, {num_images} images of classes {data['test']['classes']}" + (
        f"; {fewer}" if fewer else ""
    )


def fewer_images(results: Mapping[str, Any]) -> str:
    """How many methods were measured on fewer images than the others, and on how many of them.

    Example:
        >>> numbers = {name: {"boxes": {"num_images": n}} for name, n in (("a", 9), ("b", 2))}
        >>> fewer_images({"summary": numbers})
        '1 method on 2 of them'
    """
    summary: Mapping[str, Mapping[str, Any]] = results["summary"]
    fewer: dict[str, int] = {}
    for protocol in {protocol for protocols in summary.values() for protocol in protocols}:
        counts = {n: p[protocol]["num_images"] for n, p in summary.items() if protocol in p}
        most = max(counts.values())
        fewer |= {name: count for name, count in counts.items() if count < most}
    if not fewer:
        return ""
    least, most = min(fewer.values()), max(fewer.values())
    count = f"{least}" if least == most else f"{least} to {most}"
    return f"{len(fewer)} method{'s' if len(fewer) > 1 else ''} on {count} of them"


def counts_text(counts: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """The images behind the table, and those that are not in it."""
    parts = [f"{counts['images']} test images"]
    tried = {name: f", of {number} tried" for name, number in counts.get("tried", {}).items()}
    parts += [
        f"{number} measured ({name}{tried.get(name, '')})"
        for name, number in counts["measured"].items()
    ]
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


def retrieval_text(retrieval: Mapping[str, Mapping[str, float]]) -> str:
    """By what the networks of the mark protocol retrieve.

    Example:
        >>> retrieval_text({"tied": {"mark": 0.9, "class": 0.05}})
        'retrieval of marked images; marks in training tied: by the mark 90.0%, by the class 5.0%'
    """
    shares_of = (
        f"{name}: by the mark {shares['mark']:.1%}, by the class {shares['class']:.1%}"
        for name, shares in retrieval.items()
    )
    return "retrieval of marked images; marks in training " + "; ".join(shares_of)


def forward_text(forward: Mapping[str, Mapping[str, Any]]) -> str:
    """What the plain forward pass costs, beside which the methods' costs stand; or nothing."""
    parts = []
    for protocol, costs in forward.items():
        costs_of = []
        if costs["median_seconds"] is not None:
            costs_of.append(f"{1000 * costs['median_seconds']:.0f} ms per image")
        if costs["peak_memory_bytes"] is not None:
            costs_of.append(f"{costs['peak_memory_bytes'] / 1e6:.0f} MB")
        if costs_of:
            parts.append(f"{', '.join(costs_of)} ({protocol})")
    return f"plain forward pass: {'; '.join(parts)}" if parts else ""
