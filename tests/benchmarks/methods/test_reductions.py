import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.signal import convolve2d

from benchmarks.methods import METHODS, chosen_reductions, heatmap
from benchmarks.methods.reductions import ABSOLUTE, NORM, SIGNED, Reduction

MAPS = arrays(np.float32, (3, 4), elements=st.floats(-4, 4, width=32))


@given(MAPS)
def test_signed_heatmaps_of_a_map_and_its_negative_are_negatives(pixels: np.ndarray) -> None:
    signed_map = torch.from_numpy(pixels)[None, None]
    one, other = (heatmap(m, (6, 8), signed=True) for m in (signed_map, -signed_map))
    np.testing.assert_array_equal(one, -other)


@given(MAPS)
def test_without_signs_what_is_negative_is_nothing(pixels: np.ndarray) -> None:
    signed_map = torch.from_numpy(pixels)[None, None]
    positive = heatmap(signed_map.clamp(min=0), (6, 8), signed=True)
    np.testing.assert_array_equal(heatmap(signed_map, (6, 8)), positive)


def test_channels_become_one_with_or_without_their_signs() -> None:
    attributions = torch.tensor([1.0, -2.0, -2.0]).view(1, 3, 1, 1)
    assert [r(attributions).item() for r in (SIGNED, ABSOLUTE, NORM)] == [-3, 5, 3]


def test_smoothing_is_a_gaussian_whose_deviation_is_a_share_of_the_shorter_side() -> None:
    spot = torch.zeros(1, 1, 20, 30)
    spot[0, 0, 10, 15] = 1
    actual = Reduction("signed", sigma=0.1)(spot)[0, 0].numpy()
    reach = np.arange(-8, 9)
    gauss = np.exp(-(reach**2) / (2 * 2.0**2))
    gauss /= gauss.sum()
    expected = convolve2d(spot[0, 0].numpy(), np.outer(gauss, gauss), mode="same")
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_what_is_no_attribution_of_one_image_is_refused() -> None:
    with pytest.raises(ValueError, match="expected attributions"):
        SIGNED(torch.zeros(2, 1, 3, 3))


def test_a_choice_is_kept_per_question_and_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chosen_reductions, "PATH", tmp_path / "chosen.json")
    smooth = Reduction("absolute", 0.02)
    chosen_reductions.save("where", {"saliency": smooth, "lrp": SIGNED})
    chosen_reductions.save("where", {"lrp": NORM})
    chosen_reductions.save("why", {"saliency": SIGNED})
    saliency, lrp, other = (
        chosen_reductions.with_chosen_reductions(replace(METHODS[name], reductions={}))
        for name in ("saliency", "lrp", "deep_lift")
    )
    assert saliency.reduction("where") == smooth
    assert saliency.reduction("why") == SIGNED
    assert lrp.reduction("where") == NORM
    assert other.reduction("where") == other.customary


def test_where_signs_are_asked_for_nothing_is_made_absolute() -> None:
    assert METHODS["lrp"].reduction("where", signed=True) == SIGNED
    assert METHODS["layer_activation"].reduction("why", signed=True) == NORM


def test_every_choice_is_of_a_method_there_is_and_none_is_made_for_ours() -> None:
    for by_name in json.loads(chosen_reductions.PATH.read_text()).values():
        families = {METHODS[name].family for name in by_name}
        assert families <= {"captum: layer", "captum: input", "rival"}
