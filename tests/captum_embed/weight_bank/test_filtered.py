from pathlib import Path

import pytest
import torch

from captum_embed import channel_filters
from captum_embed.errors import BankFileError, InputError
from captum_embed.weight_bank import WeightBank
from captum_embed.weight_bank.filtered import FilteredBank


def some_bank() -> WeightBank:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(20, 10, generator=generator)
    return WeightBank(numbers[:, :4], numbers[:, 4:], labels=range(20), keys=map_keys(20))


def map_keys(count: int) -> list[str]:
    return [f"image {number}" for number in range(count)]


@pytest.mark.parametrize("compact", [False, True])
def test_weights_are_filtered_entry_by_entry_before_they_are_averaged(
    tmp_path: Path, compact: bool
) -> None:
    bank = some_bank().compact(3) if compact else some_bank()
    bank.save(tmp_path, max_shard_size=400)
    ours = FilteredBank(WeightBank.load(tmp_path), channel_filters.absolute)
    expected = WeightBank(bank.embeddings, bank.weights.abs(), bank.labels, bank.keys)
    queries = torch.randn(5, 4)
    for options in ({}, {"k": 4}, {"k": 2, "exclude": [3, "image 5"]}):
        torch.testing.assert_close(
            ours.transfer(queries, **options), expected.transfer(queries, **options)
        )
    assert torch.equal(ours.weights, expected.weights)
    assert torch.equal(ours[ours.labels > 9].weights, expected.weights[10:])
    wide = ours.to(torch.float64)
    torch.testing.assert_close(
        wide.transfer(queries, 3).double(), expected.transfer(queries, 3).double()
    )
    assert (ours.keys, len(ours)) == (expected.keys, 20)


def test_a_filter_is_not_saved_and_must_keep_the_shape(tmp_path: Path) -> None:
    bank = FilteredBank(some_bank(), channel_filters.positive)
    for change in (bank.save, bank.append_to, bank.compact):
        with pytest.raises(InputError, match="save the bank itself"):
            change(tmp_path / "bank")
    with pytest.raises(InputError, match=r"returned \(1, 1\)"):
        FilteredBank(some_bank(), lambda weights: weights[:, :1]).transfer(torch.zeros(1, 4))


def test_values_that_became_nan_are_refused() -> None:
    bank = some_bank()
    filtered = FilteredBank(bank, channel_filters.absolute)
    filtered.transfer(torch.zeros(1, 4), 20)
    bank.weights[7, 2] = torch.nan
    with pytest.raises(BankFileError, match="entry 7"):
        filtered.transfer(torch.zeros(1, 4), 20)
