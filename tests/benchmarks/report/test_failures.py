from itertools import pairwise
from typing import Any

import pytest

from benchmarks.metrics.outcomes import OUTCOMES, size_names
from benchmarks.report.failures import (
    OUTCOME_COLOURS,
    as_markdown,
    as_text,
    class_rows,
    draw_failures,
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
def found() -> dict[str, Any]:
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


def test_tables_have_shares_with_intervals_and_counts(found: dict[str, Any]) -> None:
    heading, first, *_ = outcome_rows(found)
    assert heading == ["method", *OUTCOMES, "images"]
    assert first[:2] == ["ours_localize", "90.0 [85.0, 93.0]"]
    assert first[-1] == "30"
    assert outcome_rows(found, compact=True)[1][1] == "90.0 ±4.0"
    assert size_rows(found)[1][1:3] == ["- (0)", "90.0 [80.0, 100.0] (5)"]


def test_no_class_is_among_the_worst_and_the_best(found: dict[str, Any]) -> None:
    assert class_rows(found)[1][1:] == ["c0 0 (10)", "c2 20 (10)"]
    found["methods"]["eigen_cam"]["classes"] = found["methods"]["eigen_cam"]["classes"][:1]
    assert class_rows(found)[2][1:] == ["", ""]


def test_the_text_says_what_it_was_made_from(found: dict[str, Any]) -> None:
    for text in (as_text(found), as_markdown(found)):
        assert "birds, 30 images of classes 1-3" in text
    for part in (found["command"], found["run"], *(f"**{kind}**" for kind in OUTCOMES)):
        assert part in as_markdown(found)


def test_the_main_method_leads_the_best_of_each_family(found: dict[str, Any]) -> None:
    assert leading_methods(found) == [
        "ours_localize", "eigen_cam", "ours_paper", "saliency", "centre_box"
    ]  # fmt: skip
    found["main_method"] = None
    assert leading_methods(found)[0] == "ours_localize"


def test_each_bar_is_the_whole_of_a_methods_images(found: dict[str, Any]) -> None:
    bars, lines = draw_failures(found).axes
    assert len(bars.containers) == len(OUTCOMES)
    for row, one in enumerate(found["methods"].values()):
        patches = [container[row] for container in bars.containers]
        assert sum(patch.get_width() for patch in patches) == pytest.approx(100)
        for left, right in pairwise(patches):
            assert left.get_x() + left.get_width() == pytest.approx(right.get_x())
        assert patches[0].get_width() == pytest.approx(100 * one["outcomes"]["correct"]["share"][0])
        assert bars.get_yticklabels()[row].get_text() == one["title"]
    top, bottom = bars.get_ylim()[1], bars.get_ylim()[0]
    assert top < 0 < bottom, "the best method is at the top"
    (entries,) = [bars.get_legend().get_texts()]
    assert len(entries) == len(set(OUTCOME_COLOURS.values())) == len(OUTCOMES)
    assert [text.get_text().split("\n")[0] for text in lines.get_xticklabels()] == [*size_names()]


def test_a_size_without_images_has_no_point(found: dict[str, Any]) -> None:
    _, lines = draw_failures(found).axes
    for container in lines.containers:
        assert len(container[0].get_xdata()) == len(size_names()) - 1
    assert len(lines.containers) == len(leading_methods(found))
