import re
from typing import Any

import numpy as np
import pytest

from benchmarks.metrics.removal import SHARES
from benchmarks.report.charts import styles
from benchmarks.report.faithfulness import (
    RemovalLine,
    draw_faithfulness,
    faithfulness_lines,
    lowest_similarity,
)
from benchmarks.report.figures import MOST_LABELLED
from benchmarks.report.html import render
from benchmarks.report.html_faithfulness import faithfulness_section, removal_data


def line(name: str, deletion: float, insertion: float, family: str = "rival") -> RemovalLine:
    curves = {
        "deletion": np.linspace(1, deletion, len(SHARES)).tolist(),
        "insertion": np.linspace(insertion, 1, len(SHARES)).tolist(),
    }
    return RemovalLine(name, name, family, curves, {"deletion": deletion, "insertion": insertion})


def of(results: dict[str, Any]) -> list[RemovalLine]:
    return faithfulness_lines(results["summary"], results["methods"])


def test_a_run_without_the_protocol_has_neither_lines_nor_section(results: dict[str, Any]) -> None:
    assert of(results) == []
    assert faithfulness_section(results, styles(results)) is None
    assert removal_data(results) == {}
    assert "section-faithfulness" not in render(results)


def test_all_methods_and_floors_are_lines_with_the_widest_gap_first(
    faithful_results: dict[str, Any],
) -> None:
    lines = of(faithful_results)
    assert {each.name for each in lines} == set(faithful_results["summary"]) - {"whole_image"}
    gaps = [each.areas["insertion"] - each.areas["deletion"] for each in lines]
    assert gaps == sorted(gaps, reverse=True)
    summary = faithful_results["summary"]
    for each in lines:
        found = summary[each.name]["faithfulness"]
        assert each.curves["deletion"] == found["deletion_curve"]
        assert each.curves["insertion"] == found["insertion_curve"]
        assert each.areas == {kind: found[kind] for kind in ("deletion", "insertion")}
    (random,) = [each for each in lines if each.name == "uniform_heatmap"]
    assert random.title == "Uniform heatmap (random order)"


def test_both_panels_show_the_curves_over_percent_of_the_pixels(
    faithful_results: dict[str, Any],
) -> None:
    lines = of(faithful_results)
    figure = draw_faithfulness(lines, "12 images")
    for axes, kind in zip(figure.axes, ("deletion", "insertion"), strict=True):
        assert axes.get_title("left").lower().startswith(kind)
        drawn = {one.get_label().split("  ")[2]: one for one in axes.lines}
        for each in lines:
            np.testing.assert_allclose(drawn[each.title].get_xdata(), 100 * np.array(SHARES))
            np.testing.assert_allclose(drawn[each.title].get_ydata(), each.curves[kind])
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert [text.split("  ")[2] for text in texts] == [each.title for each in lines]
    assert texts[0].startswith(
        f"{lines[0].areas['deletion']:.3f}  {lines[0].areas['insertion']:.3f}"
    )


def test_lower_is_said_to_be_better_for_deletion_and_higher_for_insertion() -> None:
    deletion, insertion = draw_faithfulness([line("a", 0.2, 0.3)], "").axes
    assert "lower is better" in deletion.get_title("left")
    assert "higher is better" in insertion.get_title("left")


def test_of_many_methods_only_the_best_are_told_apart_and_all_floors() -> None:
    many = [line(f"m{i}", 0.2, 0.9 - i / 100) for i in range(30)]
    floors = [line("uniform_heatmap", 0.5, 0.1, "floor"), line("centre_box", 0.5, 0.1, "floor")]
    figure = draw_faithfulness([*many, *floors], "")
    (legend,) = figure.legends
    names = [text.get_text().split("  ")[2] for text in legend.get_texts()]
    assert names == [f"m{i}" for i in range(MOST_LABELLED)] + ["uniform_heatmap", "centre_box"]
    assert len(figure.axes[0].lines) == 32
    drawn = [one for one in figure.axes[0].lines if not one.get_label().startswith("_")]
    looks = {(one.get_color(), one.get_linestyle(), one.get_marker(), one._unscaled_dash_pattern)
             for one in drawn}  # fmt: skip
    assert len(looks) == len(drawn), "two look alike"


@pytest.mark.parametrize(
    ("lowest", "expected"), [(0.31, 0.3), (0.3, 0.3), (0.29999, 0.2), (-0.04, -0.1), (1.0, 0.9)]
)
def test_the_axis_begins_at_a_tenth_below_all_curves(lowest: float, expected: float) -> None:
    assert lowest_similarity([line("a", lowest, 1.0)]) == pytest.approx(expected)


def test_every_curve_of_the_page_lies_inside_its_chart(faithful_results: dict[str, Any]) -> None:
    html = faithfulness_section(faithful_results, styles(faithful_results))
    assert html is not None
    paths = re.findall(r'<path d="M([^"]+)" class="curve">', html)
    assert len(paths) == 2 * len(of(faithful_results))
    for path in paths:
        points = np.array([point.split(",") for point in path.split("L")], dtype=float)
        assert len(points) == len(SHARES)
        assert (np.diff(points[:, 0]) > 0).all()
        assert (points > 0).all()
        assert (points < [440, 360]).all()
    # A falling curve goes down the page, and a rising one up.
    first, last = (np.array(path.split("L")[0].split(",") + path.split("L")[-1].split(","), float)
                   for path in (paths[0], paths[-1]))  # fmt: skip
    assert first[1] < first[3]
    assert last[1] > last[3]


def test_the_section_escapes_titles_and_loads_nothing(faithful_results: dict[str, Any]) -> None:
    html = render(faithful_results)
    assert "<script>window.hacked" not in html
    assert "http:" not in html
    assert "https:" not in html
    assert html.count('id="share"') == 1
    assert 'href="#section-faithfulness"' in html
