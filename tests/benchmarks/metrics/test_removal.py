import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy.integrate import trapezoid

from benchmarks.metrics.removal import SHARES, area_under_curve, removal_masks
from captum_embed.errors import InputError

HEATMAPS = npst.arrays(
    np.float64, npst.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.integers(0, 4)
)


@given(HEATMAPS)
def test_the_highest_pixels_go_first(heatmap: np.ndarray) -> None:
    masks = removal_masks(heatmap)
    for share, mask in zip(SHARES, masks, strict=True):
        assert mask.sum() == round(share * heatmap.size)
        if mask.any() and not mask.all():
            assert heatmap[mask].min() >= heatmap[~mask].max()


@given(HEATMAPS)
def test_what_went_stays_away(heatmap: np.ndarray) -> None:
    masks = removal_masks(heatmap)
    assert not (masks[:-1] & ~masks[1:]).any()


def test_an_even_heatmap_takes_pixels_at_random_and_always_the_same() -> None:
    first, again = (removal_masks(np.ones((40, 40)), [0.5])[0] for _ in range(2))
    assert (first == again).all()
    # Row by row, one half would be all of it.
    assert 300 < first[:20].sum() < 500
    assert (removal_masks(np.ones((40, 40)), [0.5], seed=1)[0] != first).any()


def test_area_agrees_with_scipy() -> None:
    scores = np.random.default_rng(0).normal(size=11)
    assert area_under_curve(scores) == pytest.approx(trapezoid(scores, SHARES))


@pytest.mark.parametrize("shares", [[0.5], [0, 0.7, 0.3], [0, 1]])
def test_a_curve_that_is_none_is_refused(shares: list[float]) -> None:
    with pytest.raises(InputError, match="ascending shares"):
        area_under_curve([1, 0.5, 0][: len(shares) + (len(shares) == 2)], shares)


@pytest.mark.parametrize("share", [-0.1, 1.1, np.nan])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(InputError, match="from 0 to 1"):
        removal_masks(np.ones((2, 2)), [share])
