import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from benchmarks.metrics.floors import uniform_heatmap
from benchmarks.metrics.pointing import pointing_game, pointing_game_mask
from captum_embed.errors import InputError

shapes = st.shared(st.tuples(st.integers(1, 7), st.integers(1, 7)), key="shape")
few_values = arrays(np.float64, shapes, elements=st.sampled_from([0.0, 0.5, 1.0]))
masks = arrays(np.bool_, shapes).filter(np.any)
tolerances = st.sampled_from([0.0, 1.0, 1.2, math.sqrt(2), 3.0])


def count_hits(heatmap, is_hit):
    maxima = [(r, c) for r, c in np.ndindex(heatmap.shape) if heatmap[r, c] == heatmap.max() > 0]
    return sum(is_hit(r, c) for r, c in maxima) / len(maxima) if maxima else 0.0


@given(few_values, masks, tolerances)
@settings(max_examples=100)
def test_mask_score_is_that_of_comparing_every_pair_of_pixels(heatmap, mask, tolerance):
    inside = [(r, c) for r, c in np.ndindex(mask.shape) if mask[r, c]]

    def is_hit(row, column):
        return any(math.hypot(row - r, column - c) <= tolerance for r, c in inside)

    assert pointing_game_mask(heatmap, mask, tolerance) == pytest.approx(
        count_hits(heatmap, is_hit)
    )


@given(few_values, st.data())
@settings(max_examples=100)
def test_box_score_without_tolerance_is_that_of_the_boxs_mask(heatmap, data):
    height, width = heatmap.shape
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
    mask = np.zeros(heatmap.shape, dtype=bool)
    mask[y0:y1, x0:x1] = True
    assert pointing_game(heatmap, (x0, y0, x1, y1)) == pointing_game_mask(heatmap, mask)


def test_tolerance_is_measured_from_the_pixels_centre_to_the_box():
    heatmap = np.zeros((10, 10))
    heatmap[8, 7] = 1
    # Centre (7.5, 8.5), nearest corner (4.5, 4.5): 3, 4, 5.
    assert pointing_game(heatmap, (0, 0, 4.5, 4.5), tolerance=5) == 1.0
    assert pointing_game(heatmap, (0, 0, 4.5, 4.5), tolerance=4.999) == 0.0


def test_a_uniform_heatmap_points_as_well_as_chance():
    mask = np.zeros((10, 10), dtype=bool)
    mask[:3] = True
    assert pointing_game_mask(uniform_heatmap(10, 10), mask) == pytest.approx(0.3)


def test_an_empty_heatmap_points_nowhere():
    assert pointing_game(np.zeros((3, 3)), (0, 0, 3, 3), tolerance=15) == 0.0
    assert pointing_game_mask(np.zeros((3, 3)), np.ones((3, 3)), tolerance=15) == 0.0


@pytest.mark.parametrize("tolerance", [-1, float("nan"), float("inf")])
def test_a_tolerance_that_is_no_distance_is_refused(tolerance):
    with pytest.raises(InputError, match="tolerance"):
        pointing_game(np.ones((3, 3)), (0, 0, 1, 1), tolerance)
    with pytest.raises(InputError, match="tolerance"):
        pointing_game_mask(np.ones((3, 3)), np.ones((3, 3)), tolerance)
