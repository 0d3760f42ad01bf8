import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cdist
from torch import Tensor

from captum_embed.weight_bank.rows import StackedRows
from captum_embed.weight_bank.search import nearest_rows


def brute_force(queries: Tensor, rows: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    found = []
    for query in queries.double():
        squared = [float((query - row).square().sum()) for row in rows.double()]
        order = sorted(range(len(squared)), key=lambda i: (squared[i], i))[:k]
        found.append([(squared[i] ** 0.5, i) for i in order])
    table = np.array(found)
    return table[..., 0], table[..., 1].astype(int)


# A grid of few values makes ties common and every distance exact.
grid = st.integers(-2, 2).map(lambda value: value / 2)


@settings(max_examples=150, deadline=None)
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
    rows = torch.randn(83, 17, generator=generator).to(dtype)
    queries = torch.randn(29, 17, generator=generator).to(dtype)
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


def test_near_ties_are_ordered_by_differences_and_not_by_rounding() -> None:
    # Matrix products alone lose these: |q|^2 is 3e8, the gaps are 1e-8 and below.
    query = torch.full((1, 3), 1e4, dtype=torch.float64)
    steps = torch.tensor([3.0, 1.0, 2.0, 1.0, 0.0, 4.0], dtype=torch.float64)[:, None] * 2**-36
    distances, indices = nearest_rows(query, StackedRows([query + steps]), 6)
    assert indices.tolist() == [[4, 1, 3, 2, 0, 5]]
    assert distances[0, 0] == 0
    assert distances[0, 1] == distances[0, 2] > 0


def test_numbers_too_large_to_square_still_give_k_different_rows() -> None:
    rows = torch.tensor([[1e200], [-1e200], [3e200], [0.0]], dtype=torch.float64)
    _, indices = nearest_rows(rows[:1], StackedRows([rows]), 4)
    assert sorted(indices[0].tolist()) == [0, 1, 2, 3]
    assert indices[0, 0] == 0


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

    rows = StackedRows([torch.randn(3000, 10, generator=torch.Generator().manual_seed(3))])
    queries = torch.randn(100, 10, generator=torch.Generator().manual_seed(4))
    with Watch():
        nearest_rows(queries, rows, 2, chunk_numbers=2000)
    # The whole table would have 300,000 numbers, the bank in float64 30,000.
    assert max(sizes) <= 4000
