"""The page's table of results: its columns follow from the declared figures of merit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.report.looks import Look, as_text, figure_of, leading_figures, measured_figures

MINUS, MISSING = "\N{MINUS SIGN}", "\N{EN DASH}"
# What a method costs: key, heading, what it is, factor, digits.
COSTS = (
    ("median_seconds", "ms/image", "Time per image, median, milliseconds", 1000, 0),
    ("times_forward", "times forward",
     "Time over that of the plain forward pass on the same image, median", 1, 1),
    ("peak_memory_bytes", "peak MB",
     "Memory taken at most on the largest image, megabytes", 1e-6, 0),
)  # fmt: skip

Column = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One number of the table.

    Args:
        value (float): to sort by.
        text (str): as it is shown.
        note (str): what else belongs to it, such as its interval.
        verdict (str, optional): ``"above"`` or ``"below"``, of a difference that leaves out zero.
    """

    value: float
    text: str
    note: str = ""
    verdict: str | None = None


def table_of(results: Mapping[str, Any], looks: Mapping[str, Look]) -> dict[str, Any]:
    """Groups of columns, and a row of cells per method, as the template takes them."""
    columns = columns_of(results)
    groups: dict[str, int] = {}
    for column in columns:
        groups[column["group"]] = groups.get(column["group"], 0) + 1
        column["first"] = groups[column["group"]] == 1
    rows = [
        {"look": look, "cells": [_cell(results, name, column) for column in columns]}
        for name, look in looks.items()
    ]
    return {"groups": groups, "columns": columns, "rows": rows}


def columns_of(results: Mapping[str, Any]) -> list[Column]:
    """The figures of merit protocol by protocol, empty maps, and cost; those nobody has are out."""
    figures, leading = measured_figures(results), leading_figures(results)
    titles = {one["name"]: one["title"] for one in results.get("protocols", [])}
    columns: list[Column] = []
    for protocol in dict.fromkeys(figure["protocol"] for figure in figures):
        shared = {"protocol": protocol, "group": titles.get(protocol, protocol.replace("_", " "))}
        for figure in figures:
            if figure["protocol"] != protocol:
                continue
            about = figure.get("about") or f"{figure['heading']}; {figure['better']} is better"
            columns.append({**shared, "kind": "figure", "figure": figure, "about": about,
                            "heading": figure["heading"], "better": figure["better"]})  # fmt: skip
            if figure in leading and results["main_method"] is not None:
                columns.append({
                    **shared, "kind": "difference", "figure": figure, "heading": "minus main",
                    "about": f"{figure['heading']} minus that of the main method on the same "
                    "images", "better": figure["better"],
                })  # fmt: skip
        columns.append({**shared, "kind": "empty", "heading": "empty", "better": "lower",
                        "about": "Maps without a positive pixel"})  # fmt: skip
    for key, heading, about, factor, digits in COSTS:
        column = {
            "group": "cost", "protocol": None, "kind": "cost", "key": key, "about": about,
            "heading": heading, "better": "lower", "factor": factor, "digits": digits,
        }  # fmt: skip
        if any(_cost(protocols, key) is not None for protocols in results["summary"].values()):
            columns.append(column)
    return columns


def _cell(results: Mapping[str, Any], name: str, column: Column) -> Cell | None:
    protocols = results["summary"][name]
    if column["kind"] == "cost":
        cost = _cost(protocols, column["key"])
        return (
            None if cost is None else Cell(cost, f"{column['factor'] * cost:.{column['digits']}f}")
        )
    numbers = protocols.get(column["protocol"])
    if numbers is None:
        return None
    if column["kind"] == "empty":
        empty = numbers["num_empty"]
        return Cell(empty, str(empty), f"(of {numbers['num_images']})")
    found = figure_of(results, name, column["figure"])
    if found is None:
        return None
    unit = column["figure"]["unit"]
    if column["kind"] == "figure":
        return _shown(found["value"], found.get("low"), found.get("high"), unit)
    if found.get("difference") is None:
        return None
    low, high = found["difference_low"], found["difference_high"]
    cell = _shown(found["difference"], low, high, unit, signed=True)
    worst, best = (low, high) if column["better"] == "higher" else (-high, -low)
    return replace(cell, verdict="above" if worst > 0 else "below" if best < 0 else None)


def _shown(
    value: float, low: float | None, high: float | None, unit: str, *, signed: bool = False
) -> Cell:
    def text(number: float) -> str:
        return as_text(number, unit, signed=signed).replace("-", MINUS)

    ends = "" if low is None or high is None else f"[{text(low)}, {text(high)}]"
    return Cell(value, text(value), ends)


def _cost(protocols: Mapping[str, Any], key: str) -> float | None:
    """In the first protocol in which it was measured."""
    found = (numbers.get(key) for numbers in protocols.values())
    return next((value for value in found if value is not None), None)
