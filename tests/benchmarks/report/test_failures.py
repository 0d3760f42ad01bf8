from html import escape
from pathlib import Path
from typing import Any

import pytest

from benchmarks.metrics.outcomes import OUTCOMES, size_names
from benchmarks.report.chart_parts import save_charts
from benchmarks.report.failures import (
    LEGEND,
    as_markdown,
    as_text,
    class_rows,
    failures_chart,
    leading_methods,
    outcome_rows,
    size_rows,
)

FAMILIES = {
    "ours_localize": "ours",
    "eigen_cam": "rival",
    "ours_paper": "ours",
    "centre_box": "floor",
    "layer_cam": "rival",
    "saliency": "captum: input",
    "whole_image": "floor",
}


def method(title: str, family: str, correct: float) -> dict[str, Any]:
    shares = [correct, 0.3 * (1 - correct), 0.0, 0.7 * (1 - correct), 0.0, 0.0]
    sizes = {
        size: {"count": 5 * number, "accuracy": [correct, correct - 0.1, correct + 0.1]
               if number else None}
        for number, size in enumerate(size_names())
    }  # fmt: skip
    return {
        "title": title,
        "family": family,
        "num_images": 30,
        "outcomes": {
            kind: {"count": round(30 * share), "share": [share, share - 0.05, share + 0.03]}
            for kind, share in zip(OUTCOMES, shares, strict=True)
        },
        "sizes": sizes,
        "classes": [
            {"label": n, "name": f"c{n}", "count": 10, "accuracy": n / 10} for n in range(3)
        ],
        "misses": {},
    }


@pytest.fixture
def analysis() -> dict[str, Any]:
    return {
        "command": "python -m benchmarks failures --run runs/birds",
        "run": "python -m benchmarks localize --data birds",
        "data": "birds",
        "test_classes": "1-3",
        "threshold": 0.2,
        "num_images": 30,
        "main_method": "ours_localize",
        "methods": {
            name: method(name, family, 0.9 - index / 10)
            for index, (name, family) in enumerate(FAMILIES.items())
        },
    }


def test_tables_have_shares_with_intervals_and_counts(analysis: dict[str, Any]) -> None:
    heading, first, *_ = outcome_rows(analysis)
    assert heading == ["method", *OUTCOMES, "images"]
    assert first[:2] == ["ours_localize", "90.0 [85.0, 93.0]"]
    assert first[-1] == "30"
    assert outcome_rows(analysis, compact=True)[1][1] == "90.0 ±4.0"
    assert size_rows(analysis)[1][1:3] == ["- (0)", "90.0 [80.0, 100.0] (5)"]


def test_no_class_is_among_the_worst_and_the_best(analysis: dict[str, Any]) -> None:
    assert class_rows(analysis)[1][1:] == ["c0 0 (10)", "c2 20 (10)"]
    analysis["methods"]["eigen_cam"]["classes"] = analysis["methods"]["eigen_cam"]["classes"][:1]
    assert class_rows(analysis)[2][1:] == ["", ""]


def test_the_text_says_what_it_was_made_from(analysis: dict[str, Any]) -> None:
    for text in (as_text(analysis), as_markdown(analysis)):
        assert "birds, 30 images of classes 1-3" in text
    for part in (analysis["command"], analysis["run"], *(f"**{kind}**" for kind in OUTCOMES)):
        assert part in as_markdown(analysis)


def test_the_main_method_leads_the_best_of_each_family(analysis: dict[str, Any]) -> None:
    assert leading_methods(analysis) == [
        "ours_localize", "eigen_cam", "ours_paper", "saliency", "centre_box"
    ]  # fmt: skip
    analysis["main_method"] = None
    assert leading_methods(analysis)[0] == "ours_localize"


def chart(analysis: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of the bars, and those of the lines by the object's size."""
    spec = failures_chart(analysis).to_dict()

    def rows(panel: dict[str, Any]) -> list[dict[str, Any]]:
        data: list[dict[str, Any]] = (panel.get("data") or panel["layer"][0]["data"])["values"]
        return data

    bars, lines = spec["hconcat"]
    return rows(bars), rows(lines)


def test_each_bar_is_the_whole_of_a_methods_images(analysis: dict[str, Any]) -> None:
    rows, _ = chart(analysis)
    for one in analysis["methods"].values():
        parts = [row for row in rows if row["label"] == one["title"]]
        assert len(parts) == len(OUTCOMES)
        assert [part["order"] for part in parts] == list(range(len(OUTCOMES)))
        assert sum(part["share"] for part in parts) == pytest.approx(1)
        assert parts[0]["share"] == one["outcomes"]["correct"]["share"][0]


def test_a_size_without_images_has_no_point(analysis: dict[str, Any]) -> None:
    _, rows = chart(analysis)
    assert len(rows) == len(leading_methods(analysis)) * (len(size_names()) - 1)


def test_methods_on_fewer_images_say_so_and_do_not_lead(analysis: dict[str, Any]) -> None:
    analysis["methods"]["saliency"]["num_images"] = 5
    rows, lines = chart(analysis)
    assert "saliency (n = 5)" in {row["label"] for row in rows}
    assert not any(row["label"].startswith("saliency") for row in lines)


def test_the_legends_are_whole(analysis: dict[str, Any], tmp_path: Path) -> None:
    for one in analysis["methods"].values():
        one["title"] += ", a title that is longer than most are, and longer still"
    png, svg = save_charts(tmp_path, {"failures": failures_chart(analysis)})
    text = svg.read_text()
    for label in (*LEGEND.values(), *(one["title"] for one in analysis["methods"].values())):
        assert f">{escape(label)}<" in text, "shortened"
    assert png.stat().st_size > 10_000
