import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import rankdata

from benchmarks.metrics.removal import SHARES
from benchmarks.metrics.single_deletion import (
    enlarged,
    most_first,
    patch_masks,
    patch_sums,
    rank_correlation,
    relevance_gain,
)
from captum_embed.errors import InputError

VALUES = st.integers(-4, 4).map(float)


@given(arrays(np.float64, (6, 12), elements=VALUES), st.sampled_from([1, 2, 3, 6]))
def test_sums_agree_with_masks(signed_map: np.ndarray, patches: int) -> None:
    masks = patch_masks(patches, 6, 12)
    np.testing.assert_array_equal(masks.sum(0), np.ones((6, 12)))
    sums = patch_sums(signed_map, patches)
    np.testing.assert_array_equal(sums.ravel(), [signed_map[mask].sum() for mask in masks])


@given(arrays(np.float64, 9, elements=VALUES), arrays(np.float64, 9, elements=VALUES))
def test_spearman_is_pearson_of_mean_ranks(mass: np.ndarray, drops: np.ndarray) -> None:
    expected = 0.0
    if np.ptp(mass) and np.ptp(drops):
        expected = np.corrcoef(rankdata(mass), rankdata(drops))[0, 1]
    assert rank_correlation(mass.reshape(3, 3), drops) == pytest.approx(expected, abs=1e-9)
    assert rank_correlation(-mass.reshape(3, 3), drops) == pytest.approx(-expected, abs=1e-9)


@given(arrays(np.float64, (4, 4), elements=VALUES))
def test_orders_take_the_highest_and_leave_the_lowest(sums: np.ndarray) -> None:
    most = most_first(sums)
    least = ~most[::-1]
    for share, high, low in zip(SHARES, most, least, strict=True):
        for gone, sign in ((high, 1), (low, -1)):
            assert gone.sum() == round(share * 16)
            if 0 < gone.sum() < 16:
                assert (sign * sums)[gone].min() >= (sign * sums)[~gone].max()


def test_the_gain_by_hand() -> None:
    # A score that is the mass left, of one patch that holds all of it: it goes last, or first.
    assert relevance_gain([1.0] * 10 + [0.0], [1.0] + [0.0] * 10) == pytest.approx(0.9)
    assert relevance_gain(np.linspace(1, 0, 11), np.linspace(1, 0, 11)) == 0


def test_masks_of_patches_become_pixels() -> None:
    wide = enlarged(np.array([[[True, False], [False, False]]]), 2, 6)
    assert wide.astype(int).tolist() == [[[1, 1, 1, 0, 0, 0], [0] * 6]]


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(InputError, match="do not divide"):
        patch_sums(np.ones((6, 6)), 4)
    with pytest.raises(InputError, match="finite map"):
        patch_sums([[np.nan]], 1)
    with pytest.raises(InputError, match="4 patches and 3 drops"):
        rank_correlation(np.ones((2, 2)), [1, 2, 3])
