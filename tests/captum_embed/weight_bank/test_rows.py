from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captum_embed.errors import BankFileError, InputError
from captum_embed.weight_bank import WeightBank
from captum_embed.weight_bank.rows import CompactRows, Rows, StackedRows


def behaves_as(rows: Rows, whole: torch.Tensor, data: st.DataObject) -> None:
    """Every way to read rows gives those of the matrix."""
    assert rows.shape == tuple(whole.shape)
    assert torch.equal(rows.joined(), whole)
    index = st.integers(0, len(whole) - 1)
    wanted = torch.tensor(data.draw(st.lists(index, max_size=6)), dtype=torch.int64)
    assert torch.equal(rows.take(wanted), whole[wanted])
    assert torch.equal(rows.take(wanted[:, None]), whole[wanted[:, None]])
    one = torch.tensor(data.draw(index))
    assert torch.equal(rows.take(one), whole[one])
    assert torch.equal(rows.pick(wanted.sort().values).joined(), whole[wanted.sort().values])
    chunks = list(rows.chunks(data.draw(st.integers(1, 7))))
    assert torch.equal(torch.cat([chunk for _, chunk in chunks]), whole)
    assert all(torch.equal(chunk[0], whole[start]) for start, chunk in chunks)
    assert torch.equal(rows.in_memory().joined(), whole)
    assert torch.equal(rows.to("cpu", rows.dtype).joined(), whole)


def drawn_selection(
    lengths: list[int], data: st.DataObject
) -> tuple[list[torch.Tensor | None], list[bool], torch.Tensor]:
    """Some rows of each part, whether lazily, and the places of all of them."""
    masks = [data.draw(st.lists(st.booleans(), min_size=n, max_size=n)) for n in lengths]
    masks[0][0] = True
    selection = [None if all(mask) else torch.tensor(mask).nonzero()[:, 0] for mask in masks]
    lazily = data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    return selection, lazily, torch.tensor([kept for mask in masks for kept in mask])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_parts_behave_as_the_joined_matrix(lengths: list[int], data: st.DataObject) -> None:
    whole = torch.arange(2 * sum(lengths)).reshape(-1, 2).float()
    rows = StackedRows(whole.split(lengths))
    for _ in range(2):
        behaves_as(rows, whole, data)
        start, stop = sorted(data.draw(st.integers(0, len(whole))) for _ in range(2))
        if start < stop:
            assert torch.equal(rows.between(start, stop), whole[start:stop])
        selection, lazily, kept = drawn_selection(rows.lengths, data)
        rows, whole = rows.select(selection, lazily), whole[kept]
    behaves_as(rows, whole, data)


def test_one_part_is_never_copied() -> None:
    whole = torch.zeros(6, 2)
    rows = StackedRows([whole])
    assert rows.joined() is whole
    assert rows.between(2, 4).data_ptr() == whole[2:].data_ptr()
    lazy = rows.select([torch.tensor([1, 4])], [True])
    assert lazy.parts[0] is whole


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    width=st.integers(1, 9),
    k=st.integers(1, 10),
    exponent=st.integers(-30, 30),
    data=st.data(),
)
def test_compact_rows_are_the_largest_of_each_and_zeros(
    lengths: list[int], width: int, k: int, exponent: int, data: st.DataObject
) -> None:
    numbers = st.floats(-8, 8, width=32)
    count = sum(lengths)
    values = data.draw(st.lists(numbers, min_size=count * width, max_size=count * width))
    whole = torch.tensor(values, dtype=torch.float32).reshape(count, width)
    parts = [CompactRows.of(StackedRows([part]), k) for part in whole.split(lengths)]
    dense = CompactRows.stacked(parts).joined()
    behaves_as(CompactRows.stacked(parts), dense, data)
    for given_row, row in zip(whole, dense, strict=True):
        largest = max(abs(value) for value in given_row.tolist())
        expected = sorted((abs(v) for v in given_row.tolist()), reverse=True)[:k]
        stored = sorted((abs(v) for v in row.tolist()), reverse=True)[:k]
        # Half a unit of eleven binary digits; what is 2**24 times smaller than the largest is 0.
        for one, other in zip(stored, expected, strict=True):
            assert abs(one - other) <= max(other * 2**-10, largest * 2**-24)
        assert (row != 0).sum() <= k
        kept = row != 0
        torch.testing.assert_close(row[kept], given_row[kept], rtol=2**-10, atol=largest * 2**-24)
    selection, lazily, chosen = drawn_selection(lengths, data)
    behaves_as(CompactRows.stacked(parts).select(selection, lazily), dense[chosen], data)
    assert torch.equal(CompactRows.of(CompactRows.stacked(parts), k).joined(), dense)
    scaled = CompactRows.of(StackedRows([whole * 2.0**exponent]), k).joined()
    if exponent > -20:  # Otherwise what is small leaves single precision.
        assert torch.equal(scaled, dense * 2.0**exponent)


def test_the_smallest_and_largest_numbers_have_room() -> None:
    ends = torch.finfo(torch.float32)
    rows = StackedRows([torch.tensor([[ends.max, -1.0], [ends.tiny, 0.0], [0.0, 0.0]])])
    dense = CompactRows.of(rows, 1).joined()
    torch.testing.assert_close(dense[0, 0].item(), ends.max, rtol=2**-10, atol=0)
    assert dense[1:].tolist() == [[ends.tiny, 0.0], [0.0, 0.0]]


def compact_bank(count: int = 12, width: int = 40, k: int = 5) -> tuple[WeightBank, WeightBank]:
    generator = torch.Generator().manual_seed(0)
    bank = WeightBank(
        torch.randn(count, 4, generator=generator),
        torch.randn(count, width, generator=generator),
        labels=[i % 3 for i in range(count)],
        keys=[f"image {i}" for i in range(count)],
    )
    return bank, bank.compact(top_channels=k, embeddings="float16")


def test_a_compact_bank_answers_as_a_dense_one_of_the_same_numbers() -> None:
    bank, compact = compact_bank()
    assert (compact.top_channels, compact.num_channels, len(compact)) == (5, 40, 12)
    assert bank.top_channels is None
    assert "top_channels=5, labels, keys, float16, float32, cpu" in repr(compact)
    dense = WeightBank(compact.embeddings.float(), compact.weights, bank.labels, bank.keys)
    queries = torch.randn(6, 4)
    for options in ({"k": 1}, {"k": 4}, {"k": 3, "exclude": [1, "image 0"]}):
        for ours, theirs in zip(
            compact.search(queries, **options), dense.search(queries, **options), strict=True
        ):
            assert torch.equal(ours, theirs)
        transferred = compact.transfer(queries, **options)
        assert transferred.dtype == torch.float32
        torch.testing.assert_close(transferred, dense.transfer(queries, **options))
    assert torch.equal(compact[[3, 1]].weights, dense.weights[[3, 1]])
    assert torch.equal(compact[compact.labels == 2].weights, dense.weights[2::3])
    assert torch.equal(
        WeightBank.concat([compact], keys=list("abcdefghijkl")).weights, dense.weights
    )
    wide = compact.to(torch.float64)
    assert (wide.embeddings.dtype, wide.weights.dtype) == (torch.float64, torch.float32)
    assert compact.to("meta").device.type == "meta"


def test_channels_are_kept_by_magnitude_of_either_sign() -> None:
    bank = WeightBank(torch.eye(1), torch.tensor([[0.1, -3.0, 2.0, 0.0]])).compact(top_channels=2)
    assert bank.weights.tolist() == [[0.0, -3.0, 2.0, 0.0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to be made smaller"),
        ({"top_channels": 0}, "top_channels is 0; expected 1 or more"),
        ({"top_channels": True}, "top_channels is True"),
        ({"top_channels": 2.0}, r"top_channels is 2\.0"),
        ({"embeddings": "half"}, "embeddings is 'half'; expected a precision such as 'float16'"),
        ({"embeddings": torch.int8}, r"embeddings is torch\.int8"),
    ],
)
def test_refuses_what_a_bank_cannot_be_made(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        WeightBank(torch.eye(2), torch.eye(2)).compact(**options)  # type: ignore[arg-type]


def test_refuses_to_lose_entries_or_to_find_weights_that_are_gone() -> None:
    with pytest.raises(InputError, match=r"embeddings as torch\.float16, row 0, hold"):
        WeightBank(torch.tensor([[1e6]]), torch.eye(1)).compact(embeddings="float16")
    with pytest.raises(InputError, match="weights, row 0, are too small"):
        WeightBank(torch.eye(1), torch.tensor([[1e-300]], dtype=torch.float64)).compact(
            top_channels=1
        )
    compact = compact_bank()[1]
    with pytest.raises(InputError, match="top_channels is 6, and the bank has 5 weights"):
        compact.compact(top_channels=6)
    assert compact.compact(top_channels=2).top_channels == 2
    with pytest.raises(InputError, match=r"top_channels 3, bank 0 has 5.*\.compact"):
        WeightBank.concat([compact, compact.compact(top_channels=3)], keys=map(str, range(24)))


@pytest.mark.parametrize(
    ("name", "change", "row"),
    [
        ("channels", lambda channels: channels[4].fill_(40), 4),
        ("channels", lambda channels: channels[2, 0].fill_(-1), 2),
        ("channels", lambda channels: channels[3].copy_(channels[3].flip(0)), 3),
        ("values", lambda values: values[5, 1].fill_(torch.nan), 5),
        ("scales", lambda scales: scales[0].fill_(torch.inf), 0),
    ],
)
def test_compact_rows_that_cannot_be_are_refused(
    name: str, change: Callable[[torch.Tensor], object], row: int
) -> None:
    rows = CompactRows.of(StackedRows([torch.randn(6, 40)]), 4)
    rows.require_valid("weights")
    columns = rows.tensors("weights", 0, 6)
    change(columns[f"weights_{name}"])
    with pytest.raises(BankFileError, match=f"weights, row {row}, hold"):
        rows.require_valid("weights")
    if row in (2, 4):
        with pytest.raises(BankFileError, match="names channels"):
            rows.take(torch.tensor([row]))
