import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.metrics.swap import flipped, taken
from captum_embed.errors import InputError


def one_by_one(values: NDArray[np.float64], region: NDArray[np.bool_], share: float) -> set[int]:
    """Pixels of the region taken while no more than the share of the others is; no ties."""
    most = round(share * int((~region).sum()))
    pixels, outside = set(), 0
    for pixel in sorted(range(values.size), key=lambda index: -values.ravel()[index]):
        if region.ravel()[pixel]:
            if outside <= most:
                pixels.add(pixel)
        else:
            outside += 1
    return pixels


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_it_agrees_with_pixels_taken_one_by_one(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    region = rng.random((5, 7)) < 0.4
    region.ravel()[:2] = True, False
    values = rng.permutation(region.size).reshape(region.shape) - 10.0
    (mask,) = taken(values, region, [share])
    assert set(np.flatnonzero(mask)) == one_by_one(values, region, share)


def test_the_region_itself_comes_first_and_what_is_shared_never() -> None:
    region = np.zeros((20, 20), dtype=bool)
    region[5:12, 3:9] = True
    shares = (0.0, 0.01, 0.05, 1.0)
    assert (taken(region.astype(float), region, shares) == region).all()
    shared = taken((~region).astype(float), region, shares)
    assert not shared[:3].any()
    assert (shared[3] == region).all()


def test_an_even_map_takes_the_same_share_of_both_sides() -> None:
    region = np.zeros((100, 100), dtype=bool)
    region[:40] = True
    for share, mask in zip((0.01, 0.05, 0.5), taken(np.ones((100, 100)), region, (0.01, 0.05, 0.5)),
                           strict=True):  # fmt: skip
        assert mask.sum() / region.sum() == pytest.approx(share, abs=0.02)


def test_what_makes_no_sense_is_refused() -> None:
    region = np.eye(3, dtype=bool)
    with pytest.raises(InputError, match="finite map"):
        taken(np.full((3, 3), np.nan), region, [0.1])
    with pytest.raises(InputError, match="whole image"):
        taken(np.ones((3, 3)), np.ones((3, 3), dtype=bool), [0.1])
    with pytest.raises(InputError, match="no pixel set"):
        taken(np.ones((3, 3)), np.zeros((3, 3), dtype=bool), [0.1])
    with pytest.raises(InputError, match="from 0 to 1"):
        taken(np.ones((3, 3)), region, [2])


def test_a_decision_that_flips_back_has_flipped() -> None:
    assert flipped([1, 0, -1, 2]).tolist() == [False, False, True, True]
    assert flipped([0.0, 0.0]).tolist() == [False, False]
