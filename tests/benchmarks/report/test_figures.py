from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.report.figures import (
    Panel,
    draw_rows,
    overlay,
    save_figure,
)
from captum_embed.errors import InputError


def panel(height: int = 40, width: int = 60) -> Panel:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (height, width, 3)).astype(np.uint8)
    return Panel(image, rng.random((height, width)), (5, 5, 30, 25), (4, 4, 20, 30), "Thing")


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
        save_figure(draw_rows([(panel(), panel())], ""), tmp_path / f"{n}.{suffix}") for n in "ab"
    )
    assert first.read_bytes() == second.read_bytes()
    if suffix == "png":
        assert Image.open(first).size[0] > 800


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a figure is a \.png or \.svg file"):
        save_figure(draw_rows([(panel(), panel())], ""), tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())


def test_a_dollar_in_a_name_is_no_formula(tmp_path: Path) -> None:
    odd = replace(panel(), caption=r"cash $\frac{ $ cows")
    path = save_figure(draw_rows([(odd, odd)], r"$\nope$"), tmp_path / "a.png")
    assert Image.open(path).size[0] > 800
