import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from benchmarks.methods import heatmap

MAPS = arrays(np.float32, (3, 4), elements=st.floats(-4, 4, width=32))


@given(MAPS, st.sampled_from([0.5, 1.0, 2.0]))
def test_signed_heatmaps_of_a_map_and_its_negative_are_negatives(
    pixels: np.ndarray, power: float
) -> None:
    signed_map = torch.from_numpy(pixels)[None, None]
    one, other = (heatmap(m, (6, 8), power, signed=True) for m in (signed_map, -signed_map))
    np.testing.assert_array_equal(one, -other)


@given(MAPS)
def test_without_signs_what_is_negative_is_nothing(pixels: np.ndarray) -> None:
    signed_map = torch.from_numpy(pixels)[None, None]
    positive = heatmap(signed_map.clamp(min=0), (6, 8), signed=True)
    np.testing.assert_array_equal(heatmap(signed_map, (6, 8)), positive)
