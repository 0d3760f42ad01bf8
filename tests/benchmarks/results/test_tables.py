from typing import Any

from benchmarks.results.summary import declared
from benchmarks.results.tables import (
    as_markdown,
    as_text,
    counts_text,
    fewer_images,
    images_of,
    table_rows,
)


def numbers(**figures: float) -> dict[str, Any]:
    numbers = {key: {"value": v, "low": v - 0.05, "high": v + 0.05} for key, v in figures.items()}
    return {"figures": numbers, "num_empty": 2, "num_images": 9, "median_seconds": 0.0125}


BOXES = numbers(**{"accuracy_at_0.2": 0.797, "max_box_acc": 0.8125})
BOXES["figures"]["max_box_acc"]["threshold"] = 0.18
FLOOR = {**numbers(**{"accuracy_at_0.2": 0.6}), "median_seconds": None}
RESULTS: dict[str, Any] = {
    "figures": declared(["attention", "boxes"]),
    "methods": [{"name": "a", "title": "Method A"}, {"name": "floor", "title": "Centre box"}],
    "summary": {
        "a": {"boxes": BOXES, "attention": numbers(score=0.9)},
        "floor": {"boxes": FLOOR},
    },
}


def cell(heading: str, row: int) -> str:
    rows = table_rows(RESULTS)
    return next(v for h, v in zip(rows[0], rows[row], strict=True) if h.startswith(heading))


def test_shares_are_in_percent_and_times_in_milliseconds() -> None:
    assert cell("IoU", 1) == "79.7 [74.7, 84.7]"
    assert cell("MaxBoxAcc (", 1) == "81.2 [76.2, 86.2] (0.18)"
    assert cell("empty", 1) == "2 (of 9)"
    assert cell("ms", 1) == "12"
    assert cell("attention, box", 1) == "90.0 [85.0, 95.0]"


def test_what_rounds_to_zero_has_no_minus() -> None:
    near = {"value": 0.5, "low": -0.0001, "high": 0.6, "difference": -0.0001,
            "difference_low": -0.0002, "difference_high": 0.3}  # fmt: skip
    summary = {"a": {"attention": {**numbers(), "figures": {"score": near}}}}
    heading, row = table_rows({**RESULTS, "summary": summary})
    assert row[heading.index("attention, box")] == "50.0 [0.0, 60.0]"
    assert row[heading.index("minus main")] == "+0.0 [+0.0, +30.0]"


def test_a_terminal_has_half_the_width_of_the_interval() -> None:
    assert "79.7 ±5.0" in table_rows(RESULTS, compact=True)[1]


def test_what_a_method_has_no_number_for_is_a_dash() -> None:
    assert cell("attention, box", 2) == "-"
    assert cell("ms", 2) == "-"


def test_a_column_that_nobody_fills_is_left_out() -> None:
    assert "attention, mask" not in table_rows(RESULTS)[0]
    summary = {"a": {"attention": numbers(score=0.9, mask_score=0.8)}}
    assert "attention, mask" in table_rows({**RESULTS, "summary": summary})[0]


def test_text_is_aligned() -> None:
    lines = as_text(table_rows(RESULTS)).splitlines()
    assert len(lines) == 4
    assert set(lines[1]) == {"-"}
    ends = [line.rindex("12") + 2 for line in lines if line.startswith("Method")]
    assert ends == [len(lines[0])]


def test_markdown_has_a_rule_and_as_many_cells_in_each_row() -> None:
    lines = as_markdown(table_rows(RESULTS)).splitlines()
    assert lines[1].startswith("|---|---:|")
    assert len({line.count("|") for line in lines}) == 1


def test_markdown_has_words_on_the_left_and_numbers_on_the_right() -> None:
    rows = [["method", "reduction", "empty", "best"], ["A", "-", "0 (of 90)", "33.Jay_Bird 1 (9)"]]
    rows.append(["B", "sum, smoothed 0.04", "-", "-"])
    assert as_markdown(rows).splitlines()[1] == "|---|---|---:|---|"
    assert as_markdown(rows[:1]).splitlines()[1] == "|---|---:|---:|---:|"


def test_all_images_are_accounted_for() -> None:
    counts = {
        "images": 8,
        "unreadable": 1,
        "measured": {"attention": 6, "boxes": 7},
        "left_out": {"attention": 1, "boxes": 0},
    }
    data = {"train": {"absent": 2}, "test": {"absent": 3}}
    assert counts_text(counts, data) == (
        "8 test images, 6 measured (attention), 7 measured (boxes), 1 left out (attention: box "
        "outside the frame), 1 unreadable, 5 listed but absent"
    )


def test_titles_say_that_some_methods_saw_fewer_images() -> None:
    def counted(*counts: int) -> dict[str, dict[str, int]]:
        return {p: {"num_images": n} for p, n in zip(("boxes", "attention"), counts, strict=False)}

    results = {
        "data": {"name": "Birds", "test": {"classes": "3-4"}},
        "counts": {"images": 10},
        "summary": {"a": counted(10, 9), "b": counted(10)},
    }
    # One image has no crop; nothing was left out on purpose.
    assert images_of(results) == "Birds, 10 images of classes 3-4"
    results["summary"] |= {"c": counted(2, 2), "d": counted(4, 4)}
    assert fewer_images(results) == "2 methods on 2 to 4 of them"
    assert images_of(results) == "Birds, 10 images of classes 3-4; 2 methods on 2 to 4 of them"
