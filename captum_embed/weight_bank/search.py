"""Exact nearest neighbours at the speed of a matrix product, with a definite order of ties.

A product in eight bits or in single precision, whose error is bounded, leaves few candidates;
their distances are then taken from differences in double precision, so that an entry equal to the
query is at distance 0 and equal distances are equal numbers. Where a product leaves many, the next
more precise one is tried: eight bits, single, double. Equal rows are searched once.

(FAISS ``IndexFlatL2`` answers the same question with *squared* distances and leaves ties
unordered; ``index`` puts its candidates in this order.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_embed.errors import BankMismatchError, InputError
from captum_embed.weight_bank.equal_rows import (
    CHUNK_NUMBERS,
    RowFacts,
    exact_device,
    nearest_of_each,
    row_facts,
)
from captum_embed.weight_bank.rows import StackedRows, joined
from captum_embed.weight_bank.search_pass import Searched, SearchPass, squared_distances

_QUERIES_AT_ONCE = 1024


def require_queries(queries: Any, dim: int) -> None:
    """Refuses what is not a finite floating-point matrix (Q, dim)."""
    shape = tuple(queries.shape) if isinstance(queries, Tensor) else None
    if shape is None or len(shape) != 2 or not queries.is_floating_point():
        given = type(queries).__name__ if shape is None else f"{queries.dtype} of shape {shape}"
        hint = "; for a single query pass query[None]" if shape and len(shape) == 1 else ""
        raise InputError(
            f"queries are {given}; expected floating-point embeddings (Q, {dim}){hint}"
        )
    if shape[1] != dim:
        raise BankMismatchError(
            f"queries have {shape[1]} numbers each, and the bank's embeddings "
            f"{dim}; embed the queries with the network the bank was built "
            "with, or build a bank with this one"
        )
    finite = torch.isfinite(queries).all(1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise InputError(f"query {row} holds NaN or infinite values; check its image")


def nearest_rows(
    queries: Tensor,
    rows: StackedRows,
    k: int,
    *,
    facts: RowFacts | None = None,
    allowed: Tensor | None = None,
    chunk_numbers: int = CHUNK_NUMBERS,
) -> tuple[Tensor, Tensor]:
    """The k rows nearest to each query by Euclidean distance.

    Args:
        queries: Shape (Q, D), finite, on any device.
        rows: Shape (B, D), finite.
        k: Number of neighbours, 1 to the number of allowed rows.
        facts: :func:`row_facts` of the rows, if known.
        allowed: Which rows may be returned, (B,), bool. Default: all.
        chunk_numbers: Largest number of elements of one temporary.

    Returns:
        Distances (Q, k), ascending, float64, and row indices (Q, k), int64, on the device of
        the rows. Equal distances are ordered by index.

    Example::

        >>> import torch
        >>> rows = StackedRows([torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])])
        >>> nearest_rows(torch.tensor([[0.0, 0.0]]), rows, 3)
        (tensor([[0., 0., 5.]], dtype=torch.float64), tensor([[0, 2, 1]]))
    """
    if not len(queries):
        empty = torch.empty((0, k), dtype=torch.float64, device=rows.device)
        return empty, empty.long()
    facts = row_facts(rows, chunk_numbers=chunk_numbers) if facts is None else facts
    groups = facts.groups(allowed)
    searched = Searched.of(facts, allowed if groups is None else groups.active)
    nearest_of_chunks = []
    # Autocast would make the products less precise than their bound says.
    with torch.autocast(rows.device.type, enabled=False):
        for chunk in queries.split(max(1, min(_QUERIES_AT_ONCE, chunk_numbers))):
            exact = chunk.to(exact_device(rows), torch.float64)
            nearest = SearchPass(exact, searched, k, chunk_numbers).run()
            if groups is not None:
                nearest = groups.members_of(*nearest, k, chunk_numbers)
            nearest_of_chunks.append(nearest)
    squared, indices = (joined(parts) for parts in zip(*nearest_of_chunks, strict=True))
    return squared.sqrt().to(rows.device), indices.to(rows.device)


def ranked_rows(
    queries: Tensor,
    candidates: Tensor,
    k: int,
    *,
    facts: RowFacts,
    allowed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k nearest among rows that an index proposes, with the distances of :func:`nearest_rows`.

    Args:
        queries: Shape (Q, D), finite, on any device.
        candidates: Rows of each query, (Q, n), all different, one for each group of equal rows.
        k: Number of neighbours; the candidates, with the rows equal to them, are as many.
        facts: :func:`row_facts` of the rows.
        allowed: Which rows may be returned, (B,), bool. Default: all.

    Returns:
        Distances and row indices, each (Q, k), as :func:`nearest_rows` returns them.
    """
    rows, device = facts.rows, exact_device(facts.rows)
    exact, index = queries.to(device, torch.float64), candidates.to(device)
    query_of = torch.arange(len(exact), device=device).repeat_interleave(index.shape[1])
    squared = squared_distances(exact, rows, query_of, index.flatten()).view(index.shape)
    groups = facts.groups(allowed)
    if groups is None:
        squared, index = nearest_of_each(squared, index)
    else:
        squared, index = groups.members_of(squared, index, k, CHUNK_NUMBERS)
    return squared[:, :k].sqrt().to(rows.device), index[:, :k].to(rows.device)
