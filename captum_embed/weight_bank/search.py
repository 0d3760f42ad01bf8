"""Exact nearest neighbours, in chunks of bounded memory, with a definite order of ties.

Candidates are found with matrix products, whose rounding error is bounded; distances are then
taken from differences, so that an entry equal to the query is at distance 0 and equal distances
are equal numbers. (FAISS ``IndexFlatL2`` answers the same question with *squared* distances and
leaves ties unordered.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_embed.weight_bank.entries import StackedRows

# Numbers of one float64 temporary: 64 MiB.
_CHUNK_NUMBERS = 2**23
_QUERIES_AT_ONCE = 1024
# Of one temporary for differences: 1 MiB, which stays in cache.
_PAIR_NUMBERS = 2**17


def nearest_rows(
    queries: Tensor, rows: StackedRows, k: int, *, chunk_numbers: int = _CHUNK_NUMBERS
) -> tuple[Tensor, Tensor]:
    """The k rows nearest to each query by Euclidean distance.

    Args:
        queries: Shape (Q, D), finite, on any device.
        rows: Shape (B, D), finite.
        k: Number of neighbours, 1 to B.
        chunk_numbers: Largest number of elements of one temporary, in float64.

    Returns:
        Distances (Q, k), ascending, float64, and row indices (Q, k), int64, on the device of
        the rows. Equal distances are ordered by index.

    Example::

        >>> import torch
        >>> rows = StackedRows([torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])])
        >>> nearest_rows(torch.tensor([[0.0, 0.0]]), rows, 3)
        (tensor([[0., 0., 5.]], dtype=torch.float64), tensor([[0, 2, 1]]))
    """
    # Apple's GPUs have no float64.
    device = torch.device("cpu") if rows.device.type == "mps" else rows.device
    found = [
        _nearest_to_each(chunk.to(device, torch.float64), rows, k, chunk_numbers)
        for chunk in queries.split(max(1, min(_QUERIES_AT_ONCE, chunk_numbers)))
    ]
    distances = torch.cat([squared for squared, _ in found]).sqrt()
    return distances.to(rows.device), torch.cat([index for _, index in found]).to(rows.device)


def _nearest_to_each(
    queries: Tensor, rows: StackedRows, k: int, chunk_numbers: int
) -> tuple[Tensor, Tensor]:
    best = queries.new_empty((len(queries), 0))
    best_index = torch.empty_like(best, dtype=torch.int64)
    rows_at_once = max(1, chunk_numbers // max(queries.shape[1], len(queries), 1))
    for start, part in rows.chunks(rows_at_once):
        part = part.to(queries)
        cutoff = best[:, k - 1] if best.shape[1] == k else None
        query_of, row_of = _candidates(queries, part, k, cutoff)
        squared = _squared_distances(queries, part, query_of, row_of, chunk_numbers)
        near, near_index = _first_of_each(len(queries), k, query_of, squared, row_of)
        # Earlier rows stand first and the sort is stable: ties keep the order of the index.
        best = torch.cat([best, near], dim=1)
        best_index = torch.cat([best_index, near_index + start], dim=1)
        best, order = best.sort(dim=1, stable=True)
        count = min(k, start + len(part))
        best, best_index = best[:, :count], best_index.gather(1, order)[:, :count]
    return best, best_index


def _candidates(
    queries: Tensor, part: Tensor, k: int, cutoff: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Pairs (query, row), sorted, that hold every one of the k nearest rows of this part."""
    query_norms = queries.square().sum(1, keepdim=True)
    row_norms = part.square().sum(1)
    rough = torch.addmm(query_norms + row_norms, queries, part.T, alpha=-2)
    # |rounding error| <= (D + 2) eps (|q| + |b|)^2, Higham 2002, section 3.1; four times that.
    scale = (query_norms.sqrt() + row_norms.max().sqrt()).square().squeeze(1)
    error = 4 * (queries.shape[1] + 4) * torch.finfo(torch.float64).eps * scale
    limit = torch.full_like(error, torch.inf)
    if k < len(part):
        limit = rough.topk(k, dim=1, largest=False).values[:, -1] + 2 * error
    if cutoff is not None:
        limit = torch.minimum(limit, cutoff + error)
    # Negated, so that a NaN from numbers too large to square leaves the row a candidate.
    pairs = (~(rough > limit[:, None])).nonzero()
    return pairs[:, 0], pairs[:, 1]


def _squared_distances(
    queries: Tensor, part: Tensor, query_of: Tensor, row_of: Tensor, chunk_numbers: int
) -> Tensor:
    pairs_at_once = max(1, min(chunk_numbers, _PAIR_NUMBERS) // queries.shape[1])
    # Allocated once: where many rows tie, there are many pairs.
    buffers = queries.new_empty((2, pairs_at_once, queries.shape[1]))
    squared = []
    for q, r in zip(query_of.split(pairs_at_once), row_of.split(pairs_at_once), strict=True):
        first, second = buffers[:, : len(q)]
        torch.index_select(queries, 0, q, out=first)
        torch.index_select(part, 0, r, out=second)
        squared.append(first.sub_(second).square_().sum(1))
    return torch.cat(squared)


def _first_of_each(
    num_queries: int, k: int, query_of: Tensor, squared: Tensor, row_of: Tensor
) -> tuple[Tensor, Tensor]:
    """The k nearest pairs of each query, (Q, k); infinity where there are fewer."""
    order = squared.argsort(stable=True)
    order = order[query_of[order].argsort(stable=True)]
    query_of, squared, row_of = query_of[order], squared[order], row_of[order]
    queries = torch.arange(num_queries, device=query_of.device)
    first = torch.searchsorted(query_of, queries)
    rank = torch.arange(len(query_of), device=query_of.device) - first[query_of]
    kept = rank < k
    place = (query_of[kept], rank[kept])
    near = squared.new_full((num_queries, k), torch.inf)
    near_index = row_of.new_zeros((num_queries, k))
    near[place], near_index[place] = squared[kept], row_of[kept]
    return near, near_index
