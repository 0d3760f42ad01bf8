import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_embed import channel_filters
from captum_embed.errors import InputError

weights = st.integers(1, 4).flatmap(
    lambda n: st.integers(1, 9).flatmap(
        lambda c: st.lists(
            st.lists(st.floats(-9, 9, width=32), min_size=c, max_size=c), min_size=n, max_size=n
        ).map(torch.tensor)
    )
)


@given(weights)
def test_positive_and_negative_make_up_the_whole(w):
    assert torch.equal(channel_filters.positive(w) + channel_filters.negative(w), w)
    assert (channel_filters.positive(w) >= 0).all()
    assert (channel_filters.negative(w) <= 0).all()


@given(weights)
def test_absolute_is_the_difference_of_both(w):
    expected = channel_filters.positive(w) - channel_filters.negative(w)
    assert torch.equal(channel_filters.absolute(w), expected)


@given(weights, st.integers(1, 12))
def test_top_channels_keeps_the_k_largest_of_each_example(w, k):
    kept = channel_filters.top_channels(k)(w)
    for row, original in zip(kept.tolist(), w.tolist(), strict=True):
        largest = sorted(original, reverse=True)[:k]
        assert sorted(row, reverse=True) == pytest.approx(
            sorted(largest + [0.0] * (len(row) - len(largest)), reverse=True)
        )
        assert all(value in (0.0, before) for value, before in zip(row, original, strict=True))


@pytest.mark.parametrize("k", [0, -3, 2.5, True, "50"])
def test_top_channels_refuses_what_is_no_number_of_channels(k):
    with pytest.raises(InputError, match="positive number of channels"):
        channel_filters.top_channels(k)
