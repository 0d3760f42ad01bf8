"""The sortable table of the HTML report."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from benchmarks.report.charts import Style, rank
from benchmarks.report.markup import Markup, join, tag
from benchmarks.results.tables import MISSING, Cell, Column, cell_of, counts_text, filled_columns

GROUPS = {
    "boxes": "localization on the full-size image",
    "attention": "attention on the 224 crop",
    "faithfulness": "deletion and insertion on the 224 crop",
    None: "cost",
}


def table_section(results: Mapping[str, Any], looks: Mapping[str, Style]) -> Markup:
    """Heading, table and how to read it; the rows by the first column, the best first."""
    columns = _grouped(filled_columns(results))
    about = {method["name"]: method for method in results["methods"]}
    rows = [_row(name, about[name], results, columns, looks[name]) for name in rank(results)]
    table = tag(
        "table",
        tag("thead", _group_row(columns), _heading_row(columns)),
        tag("tbody", *rows),
        id="results",
    )
    return join(
        tag("h2", "Results"),
        tag("p", _introduction(results, about)),
        tag("div", table, class_="scroll", tabindex=0, role="region", aria_label="Results"),
        tag("p", counts_text(results["counts"], results["data"]), ".", class_="counts"),
        _glossary(columns),
    )


def _grouped(columns: list[Column]) -> list[Column]:
    """Columns of one protocol beside each other, protocols in the order in which they come up."""
    protocols = list(dict.fromkeys(column.protocol for column in columns))
    return sorted(columns, key=lambda column: protocols.index(column.protocol))


def _introduction(results: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    text = (
        "In percent, with 95% bootstrap intervals over images. Every method explains the same "
        "loss of the same network. Click on a heading to sort."
    )
    main = results["main_method"]
    if main is None:
        return text
    return (
        f"{text} Minus main: the difference to {about[main]['title']} on the same images, in "
        "percentage points; in colour where its interval leaves out zero."
    )


def _group_row(columns: list[Column]) -> Markup:
    groups = [(key, len(list(found))) for key, found in groupby(columns, lambda c: c.protocol)]
    cells = [
        tag("th", GROUPS.get(key, key), colspan=size, scope="colgroup", class_="first")
        for key, size in groups
    ]
    return tag("tr", tag("td"), *cells, class_="groups")


def _heading_row(columns: list[Column]) -> Markup:
    first = tag("th", tag("button", "method", type="button"), scope="col", aria_sort="none",
                class_="method", data_first="ascending")  # fmt: skip
    cells = [
        tag(
            "th",
            tag("button", column.heading, type="button", title=column.about),
            scope="col",
            aria_sort="descending" if index == 0 else "none",
            class_=f"figure {_edge(columns, index) or ''}".rstrip(),
            data_first="ascending" if column.better == "lower" else "descending",
        )
        for index, column in enumerate(columns)
    ]
    return tag("tr", first, *cells)


def _edge(columns: list[Column], index: int) -> str | None:
    """The first column of each group has a line to its left."""
    starts = index == 0 or columns[index - 1].protocol != columns[index].protocol
    return "first" if starts else None


def _row(
    name: str,
    about: Mapping[str, Any],
    results: Mapping[str, Any],
    columns: list[Column],
    look: Style,
) -> Markup:
    numbers = results["summary"][name]
    classes = [about["family"].replace(": ", "-")]
    classes += ["main"] if name == results["main_method"] else []
    line = tag("line", x1=1, x2=15, y1=6, y2=6, class_="curve")
    title = tag(
        "div",
        tag("svg", line, viewBox="0 0 16 12", class_=f"swatch {look.classes}", aria_hidden="true"),
        tag("span", tag("span", about["title"], class_="name"), tag("small", about["family"])),
    )
    cells = [
        _cell(cell_of(column, numbers), _edge(columns, index))
        for index, column in enumerate(columns)
    ]
    return tag(
        "tr", tag("th", title, scope="row"), *cells, class_=" ".join(classes), data_method=name
    )


def _cell(cell: Cell, edge: str | None) -> Markup:
    if cell.text == MISSING:
        return tag("td", "–", class_=" ".join(filter(None, (edge, "missing"))))  # noqa: RUF001
    parts: list[Markup | str] = [tag("span", _minus(cell.text), class_="number")]
    verdict = None
    if cell.ends:
        parts.append(tag("small", _minus(f"[{cell.ends[0]}, {cell.ends[1]}]")))
        if cell.text[0] in "+-":
            low, high = (float(end) for end in cell.ends)
            verdict = "above" if low > 0 else "below" if high < 0 else None
    if cell.note:
        parts.append(tag("small", f"({cell.note})"))
    classes = " ".join(filter(None, (edge, verdict))) or None
    return tag("td", *parts, class_=classes, data_value=cell.value)


def _minus(text: str) -> str:
    return text.replace("-", "−")  # noqa: RUF001 - a minus sign, as wide as the plus


def _glossary(columns: list[Column]) -> Markup:
    terms = [tag("div", tag("dt", column.heading), tag("dd", column.about)) for column in columns]
    return tag("details", tag("summary", "What the columns mean"), tag("dl", *terms))
