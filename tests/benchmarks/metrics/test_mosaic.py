from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from benchmarks.metrics.mosaic import CELLS, cell_box, mosaic_mass, mosaic_pointing, told_apart
from captum_embed.errors import InputError

PIXELS = st.floats(0, 100, width=32)


def in_cell(cell: int, side: int = 8) -> np.ndarray:
    x0, y0, x1, y1 = (int(edge) for edge in cell_box(cell, side, side))
    heatmap = np.zeros((side, side))
    heatmap[y0:y1, x0:x1] = 1
    return heatmap


def test_cells_are_the_quarters_in_reading_order() -> None:
    np.testing.assert_array_equal(in_cell(1, 4), [[0, 0, 1, 1]] * 2 + [[0] * 4] * 2)
    np.testing.assert_array_equal(sum(in_cell(cell) for cell in range(CELLS)), np.ones((8, 8)))


def test_maps_in_the_asked_cells_score_one_and_in_the_next_ones_nothing() -> None:
    maps = np.stack([in_cell(cell) for cell in range(CELLS)])
    assert (mosaic_mass(maps), mosaic_pointing(maps)) == (1, 1)
    assert (mosaic_mass(maps[[1, 2, 3, 0]]), mosaic_pointing(maps[[1, 2, 3, 0]])) == (0, 0)


def test_by_hand() -> None:
    # Shares of the own cell: 1/2, 3/4, 0 (empty), 1; maxima: a tie of two, own, none, own.
    maps = np.zeros((4, 2, 2))
    maps[0] = [[1, 0], [0, 1]]
    maps[1] = [[1, 3], [0, 0]]
    maps[3] = [[0, 0], [0, 9]]
    assert mosaic_mass(maps) == pytest.approx((0.5 + 0.75 + 0 + 1) / 4)
    assert mosaic_pointing(maps) == pytest.approx((0.5 + 1 + 0 + 1) / 4)


@pytest.mark.parametrize("value", [0.1, 1.0, 7e-9])
def test_a_uniform_map_scores_exactly_a_quarter(value: float) -> None:
    maps = np.full((4, 448, 448), value)
    assert (mosaic_mass(maps), mosaic_pointing(maps)) == (0.25, 0.25)


@given(arrays(np.float32, (6, 4), elements=PIXELS).filter(np.any))
def test_a_map_that_ignores_the_question_scores_a_quarter(heatmap: np.ndarray) -> None:
    maps = np.stack([heatmap] * CELLS)
    assert mosaic_mass(maps) == pytest.approx(0.25)
    assert mosaic_pointing(maps) == pytest.approx(0.25)


def test_random_maps_score_about_a_quarter() -> None:
    maps = np.random.default_rng(0).random((200, CELLS, 16, 16))
    assert np.mean([mosaic_mass(four) for four in maps]) == pytest.approx(0.25, abs=0.01)
    # Its deviation over 800 maps is 0.015.
    assert np.mean([mosaic_pointing(four) for four in maps]) == pytest.approx(0.25, abs=0.06)


@given(
    arrays(np.float64, (2, CELLS, 3), elements=st.integers(-3, 3).map(float)),
)
def test_told_apart_agrees_with_a_loop(embeddings: np.ndarray) -> None:
    cells, references = embeddings
    expected = all(
        references[h] @ cells[h] > references[h] @ cells[j]
        for h in range(CELLS)
        for j in range(CELLS)
        if j != h
    )
    assert bool(told_apart(cells, references)) == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cell_box(4, 8, 8), "cells 0 to 3"),
        (lambda: cell_box(0, 7, 8), "even sides"),
        (lambda: mosaic_mass(np.ones((3, 2, 2))), "each of 4 cells"),
        (lambda: mosaic_pointing(-np.ones((4, 2, 2))), "not negative"),
        (lambda: told_apart(np.eye(4), np.eye(3)), "cells and references"),
    ],
)
def test_what_is_no_mosaic_is_refused(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
