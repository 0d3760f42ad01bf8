from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.metrics.localization import THRESHOLDS
from benchmarks.report.figures import (
    FLOOR,
    MOST_LABELLED,
    Line,
    Panel,
    curve_lines,
    draw_curves,
    draw_rows,
    overlay,
    save_figure,
)
from captum_embed.errors import InputError


def line(title: str, height: float, family: str = "ours") -> Line:
    return Line(title, family, [height] * 99)


def panel(height: int = 40, width: int = 60) -> Panel:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (height, width, 3)).astype(np.uint8)
    return Panel(image, rng.random((height, width)), (5, 5, 30, 25), (4, 4, 20, 30), "Thing")


def labels(lines: list[Line]) -> list[str]:
    (legend,) = draw_curves(lines, THRESHOLDS, "three images").legends
    return [text.get_text() for text in legend.get_texts()]


def test_the_legend_ranks_methods_by_the_fixed_threshold_and_floors_last() -> None:
    rising = Line("rising", "ours", list(np.linspace(0, 1, 99)))
    found = labels([line("low", 0.1), line("floor", 0.9, FLOOR), rising, line("high", 0.8)])
    assert [entry.split()[-1] for entry in found] == ["high", "rising", "low", "floor"]
    assert found[1].split()[0] == f"{100 * 19 / 98:.1f}", "accuracy at tau = 0.2 is the 20th"


def test_curves_are_drawn_in_percent_over_the_thresholds() -> None:
    figure = draw_curves([line("one", 0.25)], THRESHOLDS, "")
    (axes,) = figure.axes
    drawn = [each for each in axes.lines if each.get_label().endswith("one")]
    np.testing.assert_allclose(drawn[0].get_xdata(), THRESHOLDS)
    np.testing.assert_allclose(drawn[0].get_ydata(), 25.0)


def test_of_many_methods_only_the_best_are_labelled() -> None:
    many = [line(f"m{i}", i / 100, "rival") for i in range(40)]
    found = labels(many)
    assert len(found) == MOST_LABELLED
    assert found[0].endswith("m39")


def test_no_two_labelled_methods_look_alike() -> None:
    lines = [line(f"o{i}", 0.5) for i in range(8)] + [
        line(f"c{i}", 0.4, "captum: layer") for i in range(8)
    ]
    (axes,) = draw_curves(lines, THRESHOLDS, "").axes
    looks = [(each.get_color(), each.get_linestyle()) for each in axes.lines[1:]]
    assert len(set(looks)) == len(lines)


def test_only_what_has_boxes_is_a_line() -> None:
    summary = {
        "a": {"boxes": {"accuracy_curve": [0.5] * 99}},
        "b": {"attention": {"score": 1.0}},
        "whole_image": {"boxes": {"accuracy_curve": [0.1] * 99}},
    }
    methods = [{"name": name, "title": name.upper(), "family": "ours"} for name in "ab"]
    found = [(each.title, each.family) for each in curve_lines(summary, methods)]
    assert found == [("A", "ours"), ("Whole image", FLOOR)]


def test_a_row_shows_each_image_beside_its_map() -> None:
    figure = draw_rows([(panel(), panel(30, 50)), (panel(90, 40), panel())], "title")
    shown = [axes.images[0].get_array().shape for axes in figure.axes]
    assert shown[:4] == [(40, 60, 3), (40, 60, 3), (30, 50, 3), (30, 50, 3)]
    assert figure.axes[0].get_title() == "training image"


def test_the_overlay_is_red_where_the_map_is_strong_and_survives_an_empty_map() -> None:
    image = np.full((1, 2, 3), 128, np.uint8)
    blended = overlay(image, np.array([[0.0, 2.0]]))
    assert blended[0, 1, 0] > blended[0, 1, 2], "strong is not red"
    assert blended[0, 0, 2] > blended[0, 0, 0], "weak is not blue"
    assert np.isfinite(overlay(image, np.zeros((1, 2)))).all()


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_same_figure_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    first, second = (
        save_figure(draw_curves([line("a", 0.5)], THRESHOLDS, ""), tmp_path / f"{n}.{suffix}")
        for n in "ab"
    )
    assert first.read_bytes() == second.read_bytes()
    if suffix == "png":
        assert Image.open(first).size[0] > 800


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a figure is a \.png or \.svg file"):
        save_figure(draw_curves([line("a", 0.5)], THRESHOLDS, ""), tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())
