from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from torch import Tensor

from captum_embed import WeightBank
from captum_embed.weight_bank.quantized import QuantizedRows, integers_are_multiplied
from captum_embed.weight_bank.rows import StackedRows

# As many numbers as are worth quantizing.
COUNT, DIM = 2**17, 64
needs_integers = pytest.mark.skipif(
    not integers_are_multiplied(DIM),
    reason="no fast products of integers here (VNNI), or torch cannot tell; searched without",
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_rows(count: int, seed: int) -> Tensor:
    return torch.randn(count, DIM, generator=generator(seed))


def small_classes(count: int, seed: int) -> Tensor:
    centres = random_rows(500, 99)
    return centres[torch.arange(count) % 500] + 0.3 * random_rows(count, seed)


def collapsed_classes(count: int, seed: int) -> Tensor:
    """Thousands of rows that eight bits cannot tell apart, those of one class all at the start."""
    centres = random_rows(3, 99)
    label = (torch.arange(count) % 2 + 1) * (torch.arange(count) >= 6000)
    return centres[label] + 0.1 * random_rows(count, seed)


def few_values(count: int, seed: int) -> Tensor:
    """Many equal distances, and rows equal to others."""
    return torch.randint(-1, 2, (count, DIM), generator=generator(seed)).float()


def lengths_of_all_sizes(count: int, seed: int) -> Tensor:
    return random_rows(count, seed) * 10 ** torch.linspace(-6, 3, count)[:, None]


@needs_integers
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_scores_are_off_by_no_more_than_they_say(data: st.DataObject) -> None:
    dim, count = data.draw(st.integers(2, 70)), data.draw(st.integers(1, 40))
    scale = st.sampled_from([1e-30, 1e-19, 1e-15, 1e-3, 1.0, 1e9])
    made = generator(data.draw(st.integers(0, 99)))
    shape = data.draw(st.sampled_from([torch.randn, torch.rand]))
    rows = shape(count, dim, generator=made) * data.draw(scale)
    rows *= torch.rand(count, dim, generator=made) > data.draw(st.sampled_from([0.0, 0.5, 0.95]))
    queries = torch.randn(data.draw(st.integers(1, 20)), dim, generator=made).double()
    queries *= data.draw(scale)
    exact = rows.double()
    largest = exact.norm(dim=1).max()
    start = data.draw(st.integers(0, count - 1))
    norms = exact.square().sum(1)
    quantized = QuantizedRows.of(StackedRows([rows[:7], rows[7:]] if count > 7 else [rows]))
    scores = quantized.scores(queries, queries.norm(dim=1), largest)
    actual = scores.between(start, count, norms[start:])
    expected = norms[start:, None] - 2 * exact[start:] @ queries.T
    size = (queries.norm(dim=1) + largest).square()
    single = torch.finfo(torch.float32)
    rounding = size * (dim + 8) * single.eps + 4 * dim * single.tiny
    assert ((actual - expected).abs() <= scores.error + rounding).all()
    # A bound that says nothing would pass, too.
    assert (scores.error <= 0.05 * dim**0.5 * size + 1e-15).all()


@needs_integers
def test_scores_say_what_is_lost_where_squares_of_errors_underflow() -> None:
    rows = torch.full((1, DIM), 0.49e-19)  # Of a unit of 1e-19 nothing is kept.
    rows[0, 0] = 127e-19
    queries = torch.full((1, DIM), 127e-18, dtype=torch.float64)
    exact = rows.double()
    norms = exact.square().sum(1)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor keeps numbers that are denormal")
    try:
        scores = QuantizedRows.of(StackedRows([rows])).scores(
            queries, queries.norm(dim=1), norms.max().sqrt()
        )
        actual = scores.between(0, 1, norms)
    finally:
        torch.set_flush_denormal(False)
    expected = norms[:, None] - 2 * exact @ queries.T
    assert (actual - expected).abs() <= scores.error


def assert_nearest(
    bank: WeightBank, queries: Tensor, k: int, allowed: Tensor | None = None
) -> None:
    table = cdist(queries.double().numpy(), bank.embeddings.double().numpy())
    if allowed is not None:
        table[:, ~allowed.numpy()] = np.inf
    expected = np.sort(table, axis=1)[:, :k]
    exclude = None if allowed is None else (~allowed).nonzero()[:, 0].tolist()
    distances, indices = bank.search(queries.double(), k, exclude=exclude)
    np.testing.assert_allclose(distances.numpy(), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        np.take_along_axis(table, indices.numpy(), 1), expected, rtol=1e-12, atol=1e-12
    )
    equal = distances[:, 1:] == distances[:, :-1]
    assert (indices[:, 1:] > indices[:, :-1])[equal].all()
    assert all(len(row.unique()) == k for row in indices)


@pytest.mark.parametrize("num_queries", [1, 5, 40])
@pytest.mark.parametrize(
    "rows_of",
    [random_rows, small_classes, collapsed_classes, few_values, lengths_of_all_sizes],
)
def test_search_of_a_large_bank_equals_scipy(
    rows_of: Callable[[int, int], Tensor], num_queries: int
) -> None:
    bank = WeightBank(rows_of(COUNT, 0), torch.zeros(COUNT, 1))
    for k in (1, 10):
        assert_nearest(bank, rows_of(COUNT, 1)[:: COUNT // num_queries][:num_queries], k)


@pytest.mark.parametrize(
    "allowed",
    [
        torch.rand(COUNT, generator=generator(3)) < 0.7,
        torch.rand(COUNT, generator=generator(3)) < 0.1,
        # Of the rows that are looked at first, few or none are allowed.
        (torch.arange(COUNT) >= 60_000) | (torch.arange(COUNT) % 2000 == 0),
        torch.arange(COUNT) >= 60_000,
    ],
)
def test_search_of_parts_without_some_entries_equals_scipy(allowed: Tensor) -> None:
    rows, labels, queries = small_classes(COUNT, 0), torch.arange(COUNT), small_classes(3, 1)
    rows[~allowed] = queries[0] + 0.001 * rows[~allowed]
    cuts = ((0, 77), (77, 60_000), (60_000, COUNT))
    parts = [WeightBank(rows[a:b], torch.zeros(b - a, 1), labels[a:b]) for a, b in cuts]
    for bank in (WeightBank.concat(parts), WeightBank(rows, torch.zeros(COUNT, 1), labels)):
        for k in (7, 200):
            assert_nearest(bank, queries, k, allowed)


def test_many_neighbours_and_other_precisions_equal_scipy() -> None:
    for dtype, k in ((torch.float32, 3000), (torch.float64, 10), (torch.bfloat16, 10)):
        bank = WeightBank(random_rows(COUNT, 0).to(dtype), torch.zeros(COUNT, 1, dtype=dtype))
        assert_nearest(bank, random_rows(2, 1), k)


@needs_integers
def test_single_precision_is_not_multiplied_where_eight_bits_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    multiplied = rows_multiplied(monkeypatch, "addmm", place=1)
    bank = WeightBank(random_rows(COUNT, 0), torch.zeros(COUNT, 1))
    bank.search(random_rows(4, 1), 10)
    assert not multiplied
    # Of rows that eight bits cannot tell apart, few are multiplied in vain.
    integers = rows_multiplied(monkeypatch, "_int_mm", place=0)
    collapsed = WeightBank(collapsed_classes(COUNT, 0), torch.zeros(COUNT, 1))
    collapsed.search(collapsed_classes(40, 1), 10)
    assert sum(multiplied) >= COUNT
    assert sum(integers) <= COUNT // 8


def rows_multiplied(monkeypatch: pytest.MonkeyPatch, product: str, place: int) -> list[int]:
    """Lengths of the matrices that go into a product from now on."""
    lengths: list[int] = []
    original = getattr(torch, product)

    def noted(*args: Tensor, **settings: Any) -> Tensor:
        lengths.append(len(args[place]))
        return original(*args, **settings)

    monkeypatch.setattr(torch, product, noted)
    return lengths


# What is known of a width is kept, so that each has its own here.
@pytest.mark.parametrize(("width", "fault"), [(101, 1), (103, -(2**15))])
def test_integers_that_are_multiplied_wrongly_are_not_used(
    width: int, fault: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    integers = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda rows, columns: integers(rows, columns) + fault)
    assert not integers_are_multiplied(width)


def test_excluded_entries_beyond_single_precision_change_nothing() -> None:
    rows = random_rows(COUNT, 0).double()
    # Multiples of a unit, so that these queries lose nothing in eight bits.
    queries = torch.randint(-127, 128, (8, DIM), generator=generator(1)).double() / 64
    queries[:, 0] = 127 / 64
    labels = torch.zeros(COUNT, dtype=torch.long)
    labels[::2048] = 1
    for factor in (1e45, 1e200):
        rows[::2048] *= factor
        bank = WeightBank(rows, torch.zeros(COUNT, 1), labels)
        without = WeightBank(rows[labels == 0], torch.zeros(int((labels == 0).sum()), 1))
        expected, _ = without.search(queries, 2)
        assert torch.equal(bank.search(queries, 2, exclude=[1])[0], expected)
    # The squares of all that is left are infinite.
    distances, _ = bank.search(queries, 2, exclude=[0])
    assert distances.shape == (8, 2)


def test_default_type_and_device_of_the_caller_change_nothing() -> None:
    width = 1021  # Not multiplied before.
    # Eight bits lose nothing of these, so that only what is lost later would show.
    codes = torch.randint(0, 2, (2**23 // width + 9, width), generator=generator(0)) * 200.0 - 100
    rows, queries = codes[8:], codes[:8]
    bank = WeightBank(rows, torch.zeros(len(rows), 1))
    with torch.device("meta"):
        on_meta = bank.search(queries, 10)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        in_half = bank.search(queries, 10)
    finally:
        torch.set_default_dtype(default)
    table = torch.from_numpy(cdist(queries.double().numpy(), rows.double().numpy()))
    nearest = table.sort(dim=1, stable=True)
    for distances, indices in (on_meta, in_half):
        assert torch.equal(indices, nearest.indices[:, :10])
        torch.testing.assert_close(distances.double(), nearest.values[:, :10])


def test_embeddings_changed_in_place_are_searched_as_they_are() -> None:
    rows = random_rows(COUNT, 0)
    bank = WeightBank(rows, torch.zeros(COUNT, 1))
    query = random_rows(1, 1)
    bank.search(query)
    bank.embeddings[1234] = query[0]
    distances, indices = bank.search(query)
    assert indices.tolist() == [[1234]]
    assert distances.tolist() == [[0.0]]
