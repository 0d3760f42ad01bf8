import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cdist
from torch import Tensor

from captum_embed.weight_bank.rows import StackedRows
from captum_embed.weight_bank.search import nearest_rows, row_facts


def brute_force(queries: Tensor, rows: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    neighbors = []
    for query in queries.double():
        squared = [float((query - row).square().sum()) for row in rows.double()]
        order = sorted(range(len(squared)), key=lambda i: (squared[i], i))[:k]
        neighbors.append([(squared[i] ** 0.5, i) for i in order])
    table = np.array(neighbors)
    return table[..., 0], table[..., 1].astype(int)


# A grid of few values makes ties common and every distance exact.
grid = st.integers(-2, 2).map(lambda value: value / 2)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_equals_brute_force_loop_with_ties_to_the_lower_index(data: st.DataObject) -> None:
    dim = data.draw(st.integers(1, 3))
    rows = torch.tensor(
        data.draw(hnp.arrays(np.float32, (data.draw(st.integers(1, 12)), dim), elements=grid))
    )
    queries = torch.tensor(
        data.draw(hnp.arrays(np.float32, (data.draw(st.integers(1, 5)), dim), elements=grid))
    )
    k = data.draw(st.integers(1, len(rows)))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(rows)), max_size=3)) | {len(rows)})
    parts = [rows[a:b] for a, b in zip([0, *cuts[:-1]], cuts, strict=True)]
    distances, indices = nearest_rows(
        queries, StackedRows(parts), k, chunk_numbers=data.draw(st.integers(1, 40))
    )
    expected_distances, expected_indices = brute_force(queries, rows, k)
    np.testing.assert_array_equal(indices.numpy(), expected_indices)
    np.testing.assert_allclose(distances.numpy(), expected_distances, rtol=1e-15)


@pytest.mark.parametrize("chunk_numbers", [1, 50, 1000, 2**23])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_equals_scipy_cdist_in_any_chunks_and_precision(
    dtype: torch.dtype, chunk_numbers: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(43, 17, generator=generator).to(dtype)
    queries = torch.randn(9, 17, generator=generator).to(dtype)
    table = cdist(queries.double().numpy(), rows.double().numpy())
    distances, indices = nearest_rows(queries, StackedRows([rows]), 7, chunk_numbers=chunk_numbers)
    np.testing.assert_array_equal(indices.numpy(), table.argsort(axis=1, kind="stable")[:, :7])
    np.testing.assert_allclose(distances.numpy(), np.sort(table, axis=1)[:, :7], rtol=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
def test_an_entry_equal_to_the_query_is_at_distance_zero_far_from_the_origin(offset: float) -> None:
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(2)) + offset
    distances, indices = nearest_rows(rows[20:30], StackedRows([rows]), 1)
    assert indices[:, 0].tolist() == list(range(20, 30))
    assert (distances == 0).all()


@pytest.mark.parametrize("chunk_numbers", [3, 6, 2**23])
@pytest.mark.parametrize("k", range(1, 10))
def test_near_ties_are_ordered_by_differences_and_not_by_rounding(
    k: int, chunk_numbers: int
) -> None:
    # |q|^2 is 3e8, whose rounding is 6e-8, and the squared distances are below 1e-19.
    query = torch.tensor([[1e4, 0.7e4, 1.3e4]], dtype=torch.float64)
    steps = torch.tensor([3, 1, 2, 1, 0, 4, 1, 5, 3], dtype=torch.float64)[:, None] * 2**-36
    signs = torch.tensor([[1, 1, 1], [-1, 1, -1], [1, -1, 1]], dtype=torch.float64).repeat(3, 1)
    rows = StackedRows([query + steps * signs])
    distances, indices = nearest_rows(query, rows, k, chunk_numbers=chunk_numbers)
    assert indices[0].tolist() == [4, 1, 3, 6, 2, 0, 8, 5, 7][:k]
    assert distances[0].tolist() == pytest.approx(
        [3**0.5 * step * 2**-36 for step in (0, 1, 1, 1, 2, 3, 3, 4, 5)][:k], rel=1e-12, abs=0
    )


@pytest.mark.parametrize("chunk_numbers", [1, 2, 2**23])
def test_numbers_too_large_to_square_still_give_k_different_rows(chunk_numbers: int) -> None:
    rows = torch.tensor([[1e200], [-1e200], [3e200], [0.0]], dtype=torch.float64)
    for query, expected in ((0, [0, 1, 2, 3]), (2, [2, 0, 1, 3]), (3, [3, 0, 1, 2])):
        _, indices = nearest_rows(
            rows[[query]], StackedRows([rows]), 4, chunk_numbers=chunk_numbers
        )
        assert indices[0].tolist() == expected


def test_equal_rows_everywhere_come_in_order_of_index() -> None:
    rows = torch.ones(40, 3)
    distances, indices = nearest_rows(
        rows[:2], StackedRows([rows[:13], rows[13:]]), 25, chunk_numbers=30
    )
    assert indices.tolist() == [list(range(25))] * 2
    assert (distances == 0).all()


def test_no_queries_give_no_results() -> None:
    distances, indices = nearest_rows(torch.empty(0, 3), StackedRows([torch.ones(4, 3)]), 2)
    assert distances.shape == indices.shape == (0, 2)


def test_no_temporary_exceeds_the_chunk() -> None:
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.is_floating_point():
                sizes.append(result.numel())
            return result

    rows = StackedRows([torch.randn(600, 10, generator=torch.Generator().manual_seed(3))])
    queries = torch.randn(100, 10, generator=torch.Generator().manual_seed(4))
    with Watch():
        nearest_rows(queries, rows, 2, chunk_numbers=2000)
    # The whole table would have 60,000 numbers, the bank in float64 6,000.
    assert max(sizes) <= 4000


def unit_rows(count: int, dim: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=generator))


@pytest.mark.parametrize("scale", [1e-25, 1e-3, 1.0, 1e15, 1e25])
@pytest.mark.parametrize("spread", [1.0, 1e-5, 1e-9])
def test_differences_that_single_precision_cannot_see_are_seen(spread: float, scale: float) -> None:
    """A collapsed encoder, and embeddings of any size."""
    noise = torch.randn(300, 24, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    rows = (unit_rows(1, 24).double() + spread * noise) * scale
    queries = rows[::40] + spread * scale / 10 * noise[:8]
    table = cdist(queries.numpy(), rows.numpy())
    distances, indices = nearest_rows(queries, StackedRows([rows]), 5)
    np.testing.assert_array_equal(indices.numpy(), table.argsort(axis=1, kind="stable")[:, :5])
    np.testing.assert_allclose(distances.numpy(), np.sort(table, axis=1)[:, :5], rtol=1e-6)


def test_rows_much_longer_than_query_and_shortest_row_are_told_apart() -> None:
    """What rounding loses is relative to the longest row."""
    rows = torch.cat([1e-3 * unit_rows(1, 16, seed=1), 100 * unit_rows(5000, 16)])
    queries = 1e-5 * unit_rows(9, 16, seed=3)
    table = cdist(queries.double().numpy(), rows.double().numpy())
    for allowed in (None, torch.arange(5001) % 2 == 0):
        masked = table if allowed is None else np.where(allowed.numpy(), table, np.inf)
        _, indices = nearest_rows(queries, StackedRows([rows]), 10, allowed=allowed)
        np.testing.assert_array_equal(indices.numpy(), masked.argsort(axis=1)[:, :10])


@pytest.mark.parametrize("k", [1, 3, 40])
def test_equal_rows_among_others_are_all_found_and_only_where_allowed(k: int) -> None:
    distinct = unit_rows(30, 6)
    rows = distinct[torch.randint(30, (200,), generator=torch.Generator().manual_seed(1))]
    allowed = torch.rand(200, generator=torch.Generator().manual_seed(2)) < 0.6
    queries = torch.cat([distinct[:7], unit_rows(5, 6, seed=3)])
    table = cdist(queries.double().numpy(), rows.double().numpy())
    for mask in (None, allowed):
        distances, indices = nearest_rows(queries, StackedRows([rows]), k, allowed=mask)
        masked = table if mask is None else np.where(mask.numpy(), table, np.inf)
        # Equal rows are at equal distance, and cdist finds them so.
        expected = masked.argsort(axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(indices.numpy(), expected)
        np.testing.assert_allclose(distances.numpy(), np.take_along_axis(table, expected, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_allowed_rows_are_found_among_those_of_several_parts(dtype: torch.dtype) -> None:
    rows, queries = unit_rows(300, 6).to(dtype), unit_rows(9, 6, seed=3)
    allowed = torch.arange(300) % 9 == 4
    allowed[130:140] = False
    kept = [torch.arange(130), torch.arange(10), torch.arange(0, 320, 2)]
    parts = StackedRows([rows[:130], rows[130:140], rows[140:].repeat_interleave(2, 0)], kept)
    table = cdist(queries.double().numpy(), rows.double().numpy())
    expected = np.where(allowed.numpy(), table, np.inf).argsort(axis=1, kind="stable")[:, :6]
    distances, indices = nearest_rows(queries, parts, 6, allowed=allowed, chunk_numbers=100)
    np.testing.assert_array_equal(indices.numpy(), expected)
    np.testing.assert_allclose(distances.numpy(), np.take_along_axis(table, expected, 1))


def test_facts_name_the_first_of_equal_rows_and_nothing_where_all_differ() -> None:
    rows = unit_rows(9, 4)
    assert row_facts(StackedRows([rows])).equals is None
    # Equal norms alone make no rows equal.
    flipped = torch.cat([rows, -rows[:2], rows[3:5]])
    equals = row_facts(StackedRows([flipped[:6], flipped[6:]])).equals
    assert equals is not None
    assert equals.tolist() == [*range(9), 9, 10, 3, 4]


@pytest.mark.parametrize("distinct", [1, 7])
def test_many_equal_rows_are_multiplied_and_compared_once(
    distinct: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is at hand is bounded by the rows that differ, whatever k is."""
    multiplied, compared = [], []
    addmm, take = torch.addmm, StackedRows.take
    monkeypatch.setattr(
        torch, "addmm", lambda *args, **kw: multiplied.append(len(args[1])) or addmm(*args, **kw)
    )
    monkeypatch.setattr(
        StackedRows, "take", lambda rows, at: compared.append(len(at)) or take(rows, at)
    )
    groups = [torch.arange(place, 5000, distinct) for place in range(distinct)]
    rows = StackedRows([unit_rows(distinct, 8).repeat(5000, 1)[:5000]])
    facts = row_facts(rows)
    compared.clear()
    queries = unit_rows(64, 8, seed=4)
    _, indices = nearest_rows(queries, rows, 10, facts=facts)
    nearest = torch.cdist(queries, rows.joined()[:distinct]).argmin(1)
    assert indices.tolist() == [groups[place][:10].tolist() for place in nearest]
    # In double precision again, at most.
    assert sum(multiplied) <= 2 * distinct
    assert sum(compared) <= 64 * distinct


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_default_device_of_the_caller_changes_no_answer(dtype: torch.dtype) -> None:
    rows, queries = unit_rows(300, 16).to(dtype), unit_rows(4, 16, seed=9)
    expected = nearest_rows(queries, StackedRows([rows[:100], rows[100:]]), 4)
    with torch.device("meta"):
        actual = nearest_rows(queries, StackedRows([rows[:100], rows[100:]]), 4)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


def test_settings_that_make_products_rough_change_no_answer() -> None:
    rows, queries = unit_rows(3000, 64), unit_rows(40, 64, seed=9)
    expected = nearest_rows(queries, StackedRows([rows]), 4)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        rough = nearest_rows(queries, StackedRows([rows]), 4)
    finally:
        torch.set_float32_matmul_precision(before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = nearest_rows(queries, StackedRows([rows]), 4)
    for actual in (rough, autocast):
        assert torch.equal(actual[0], expected[0])
        assert torch.equal(actual[1], expected[1])
