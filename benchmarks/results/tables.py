"""The table of a run: its columns, and the table as text and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Numbers = Mapping[str, Any]
Summary = Mapping[str, Mapping[str, Numbers]]
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
    """

    text: str = MISSING
    value: float | None = None
    ends: tuple[str, str] | None = None
    half_width: str | None = None
    note: str = ""

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


def percent(key: str, note: Callable[[Numbers], str] | None = None) -> Callable[[Numbers], Cell]:
    """A share, in percent, with its interval."""

    def cell(numbers: Numbers) -> Cell:
        value = numbers.get(key)
        if value is None:
            return Cell()
        found = Cell(f"{100 * value:.1f}", value, note=note(numbers) if note else "")
        ends = numbers.get("intervals", {}).get(key)
        return _with_interval(found, ends, "{:.1f}") if ends else found

    return cell


def difference(key: str) -> Callable[[Numbers], Cell]:
    """The same minus that of the main method, in percentage points."""

    def cell(numbers: Numbers) -> Cell:
        found = numbers.get("difference", {}).get(key)
        if found is None:
            return Cell()
        value, *ends = found
        return _with_interval(Cell(f"{100 * value:+.1f}", value), ends, "{:+.1f}")

    return cell


def _with_interval(cell: Cell, ends: Sequence[float], form: str) -> Cell:
    low, high = (100 * end for end in ends)
    shown = (form.format(low), form.format(high))
    return Cell(cell.text, cell.value, shown, f"{(high - low) / 2:.1f}", cell.note)


def misses(numbers: Numbers) -> Cell:
    """How many maps were empty, of how many."""
    if "num_empty" not in numbers:
        return Cell()
    note = f"of {numbers['num_images']}" if "num_images" in numbers else ""
    return Cell(str(numbers["num_empty"]), numbers["num_empty"], note=note)


def measure(key: str, scale: float, form: str) -> Callable[[Numbers], Cell]:
    """A time or a size, in other units."""

    def cell(numbers: Numbers) -> Cell:
        value = numbers.get(key)
        return Cell() if value is None else Cell(form.format(scale * value), value)

    return cell


def _threshold(numbers: Numbers) -> str:
    curve = numbers["accuracy_curve"]
    return "" if min(curve) == max(curve) else f"{numbers['max_box_acc_threshold']:.2f}"


COLUMNS = (
    Column(
        "IoU≥0.5 at τ=0.2", "boxes", percent("accuracy_at_0.2"),
        "Images whose box at the paper's threshold overlaps the true one by IoU 0.5 or more, %",
        "higher",
    ),
    Column(
        "minus main", "boxes", difference("accuracy_at_0.2"),
        "The same minus that of the main method on the same images, percentage points",
        "higher", in_terminal=False,
    ),
    Column(
        "mean τ 0.15-0.25", "boxes", percent("mean_accuracy_0.15_to_0.25"),
        "Accuracy averaged over the thresholds from 0.15 to 0.25, %", "higher",
    ),
    Column(
        "MaxBoxAcc (τ)", "boxes", percent("max_box_acc", _threshold),
        "Accuracy at the threshold that is best for the whole data set, %", "higher",
    ),
    Column(
        "MaxBoxAccV2", "boxes", percent("max_box_acc_v2"),
        "The same with the best of all components, mean over IoU 0.3, 0.5 and 0.7, %", "higher",
    ),
    Column(
        "PxAP", "boxes", percent("pxap"),
        "Average precision of the full-size maps' pixels against the masks, %", "higher",
    ),
    Column(
        "pointing, box", "boxes", percent("pointing"),
        "Full-size maps whose maximum lies in the box, %", "higher",
    ),
    Column(
        "pointing, mask", "boxes", percent("mask_pointing"),
        "Full-size maps whose maximum lies on the mask, %", "higher", in_terminal=False,
    ),
    Column(
        "empty", "boxes", misses,
        "Maps of full-size images without a positive pixel: misses", "lower",
    ),
    Column(
        "attention, box", "attention", percent("score"),
        "Share of the map inside the box on the 224 crop, %", "higher",
    ),
    Column(
        "attention, minus main", "attention", difference("score"),
        "The same minus that of the main method on the same images, percentage points",
        "higher", in_terminal=False,
    ),
    Column(
        "attention, mask", "attention", percent("mask_score"),
        "Share of the map inside the mask on the 224 crop (relevance-mass accuracy), %", "higher",
    ),
    Column(
        "deletion", "faithfulness", percent("deletion"),
        "Area under the embedding's cosine similarity to that of the unchanged crop while the "
        "most highlighted pixels are blurred, times 100", "lower",
    ),
    Column(
        "insertion", "faithfulness", percent("insertion"),
        "The same while the least highlighted pixels are blurred", "higher",
    ),
    Column(
        "empty crops", "attention", misses,
        "Maps of cropped images without a positive pixel: score 0", "lower", in_terminal=False,
    ),
    Column(
        "ms/image", None, measure("median_seconds", 1000, "{:.0f}"),
        "Time per image, median, milliseconds", "lower",
    ),
    Column(
        "times forward", None, measure("times_forward", 1, "{:.1f}"),
        "Time over that of the plain forward pass on the same image, median", "lower",
    ),
    Column(
        "peak MB", None, measure("peak_memory_bytes", 1e-6, "{:.0f}"),
        "Memory taken at most on the largest image, megabytes", "lower", in_terminal=False,
    ),
)  # fmt: skip


def filled_columns(summary: Summary, columns: Sequence[Column] = COLUMNS) -> list[Column]:
    """The columns in which some method has a number."""
    return [
        column
        for column in columns
        if any(cell_of(column, numbers).text != MISSING for numbers in summary.values())
    ]


def cell_of(column: Column, numbers: Mapping[str, Numbers]) -> Cell:
    """The cell of one method, empty where it has no number in that protocol."""
    protocol = column.protocol
    if protocol is None:
        protocol = "boxes" if "boxes" in numbers else next(iter(numbers), "boxes")
    return column.cell(numbers[protocol]) if protocol in numbers else Cell()


def table_rows(
    summary: Summary, titles: Mapping[str, str], *, compact: bool = False
) -> list[list[str]]:
    """Heading row, then a row per method; columns that nobody fills are left out.

    Args:
        summary (Mapping): of the run.
        titles (Mapping): of the methods and floors, by name.
        compact (bool): as for a terminal: fewer columns, and intervals as ±.
    """
    columns = filled_columns(summary, [c for c in COLUMNS if c.in_terminal or not compact])
    rows = [["method", *(column.heading for column in columns)]]
    for name, numbers in summary.items():
        cells = [cell_of(column, numbers) for column in columns]
        texts = [cell.compact() if compact else cell.full() for cell in cells]
        rows.append([titles[name], *texts])
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
    """A GitHub table, numbers to the right."""
    heading, *body = ("| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in rows)
    rule = "|---|" + "---:|" * (len(rows[0]) - 1)
    return "\n".join([heading, rule, *body])


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def images_of(results: Mapping[str, Any]) -> str:
    """The test images of a run, for the title of a figure."""
    data, num_images = results["data"], results["counts"]["images"]
    fewer = fewer_images(results)
    return f"{data['name']}, {num_images} images of classes {data['test']['classes']}" + (
        f"; {fewer[0]} methods on {fewer[1]} of them" if fewer else ""
    )


def fewer_images(results: Mapping[str, Any]) -> tuple[int, str] | None:
    """How many methods were measured on fewer images than the others, and on how many images.

    Example:
        >>> numbers = {name: {"boxes": {"num_images": n}} for name, n in (("a", 9), ("b", 2))}
        >>> fewer_images({"summary": numbers})
        (1, '2')
    """
    summary: Mapping[str, Mapping[str, Any]] = results["summary"]
    fewer: dict[str, int] = {}
    for protocol in {protocol for protocols in summary.values() for protocol in protocols}:
        counts = {n: p[protocol]["num_images"] for n, p in summary.items() if protocol in p}
        most = max(counts.values())
        fewer |= {name: count for name, count in counts.items() if count < most}
    if not fewer:
        return None
    least, most = min(fewer.values()), max(fewer.values())
    return len(fewer), f"{least}" if least == most else f"{least} to {most}"


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


def forward_text(forward: Mapping[str, Mapping[str, Any]]) -> str:
    """What the plain forward pass costs, beside which the methods' costs stand; or nothing."""
    parts = []
    for protocol, costs in forward.items():
        found = []
        if costs["median_seconds"] is not None:
            found.append(f"{1000 * costs['median_seconds']:.0f} ms per image")
        if costs["peak_memory_bytes"] is not None:
            found.append(f"{costs['peak_memory_bytes'] / 1e6:.0f} MB")
        if found:
            parts.append(f"{', '.join(found)} ({protocol})")
    return f"plain forward pass: {'; '.join(parts)}" if parts else ""
