from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from docs.examples.shortcut.figure import Retrieved, Row, draw, save_with_palette, signed_overlay
from docs.examples.shortcut.maps import MAPS
from docs.examples.shortcut.summary import MODELS


def figure_results(value: float) -> dict:
    estimate = (value, value / 2, value)
    on_object = {"on_object": estimate, "by_chance": 0.1}
    return {
        "retrieval": {m: {"test": {"recall_at_1": estimate}} for m in MODELS},
        "swaps": {m: {"share_of_the_background": estimate} for m in MODELS},
        "maps": {name: {"shortcut": on_object, "fixed": on_object} for name in MAPS},
    }


def test_the_figure_has_a_row_for_each_query_and_marks_what_is_right() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    answers = [Retrieved(image, "a", right, torch.rand(1, 2, 2), torch.randn(1, 2, 2))
               for right in (False, True)]  # fmt: skip
    mask = np.zeros((8, 8), bool)
    mask[2:5, 3:6] = True
    figure = draw([Row(image, mask, "query", *answers)] * 2, figure_results(0.25))
    assert len(figure.axes) == 2 * 7 + 5
    edges = [axes.spines["left"] for axes in figure.axes if axes.get_xlabel() == "a"]
    colours = {edge.get_edgecolor() for edge in edges}
    assert len(edges) == 4
    assert len(colours) == 2
    outlined = [axes for axes in figure.axes if axes.collections]
    assert len(outlined) == 2 * 4
    x, y = outlined[0].collections[0].get_paths()[0].vertices.mean(0)
    assert (round(x), round(y)) == (4, 3)
    texts = [text.get_text().strip() for axes in figure.axes for text in axes.texts]
    assert texts == ["25.0"] * (3 + 3 + 2 + 2 + 2)


def test_without_errors_the_figure_has_the_numbers_alone() -> None:
    assert len(draw([], figure_results(1.0)).axes) == 5


def test_signed_overlays_are_red_above_zero_and_blue_below() -> None:
    signed = torch.tensor([[[4.0, 0.0, -2.0]]])
    coloured = signed_overlay(np.full((1, 3, 3), 128, np.uint8), signed)
    red_minus_blue = coloured[0, :, 0] - coloured[0, :, 2]
    assert red_minus_blue[0] > 0.1
    assert red_minus_blue[1] == pytest.approx(0, abs=0.01)
    assert red_minus_blue[2] < -0.1
    assert coloured[0].sum(1).argmax() == 1


def test_the_picture_has_a_palette_and_the_same_bytes_again(tmp_path: Path) -> None:
    paths = [save_with_palette(draw([], figure_results(0.5)), tmp_path / f"{n}.png") for n in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with Image.open(paths[0]) as image:
        assert image.mode == "P"
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "b.png"}
