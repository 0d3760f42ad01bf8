"""Exact nearest neighbours at the speed of a matrix product, with a definite order of ties.

A product in single precision, whose rounding error is bounded, leaves few candidates; their
distances are then taken from differences in double precision, so that an entry equal to the query
is at distance 0 and equal distances are equal numbers. Where single precision leaves many, double
precision is tried first. Equal rows are searched once.

(FAISS ``IndexFlatL2`` answers the same question with *squared* distances and leaves ties
unordered; ``index`` puts its candidates in this order.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_embed.errors import BankMismatchError, InputError
from captum_embed.weight_bank.equal_rows import (
    CHUNK_NUMBERS,
    NO_ROW,
    PAIR_NUMBERS,
    RowFacts,
    exact_device,
    nearest_of_each,
    row_facts,
)
from captum_embed.weight_bank.rows import StackedRows

_QUERIES_AT_ONCE = 1024
# Rows of which only the nearest is compared at first.
_BLOCK = 16
# The share of the rows up to which they are copied together, rather than passed over.
_FEW = 0.25


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
    facts = row_facts(rows, chunk_numbers=chunk_numbers) if facts is None else facts
    groups = facts.groups(allowed)
    searched = _Searched.of(rows, facts.norms, allowed if groups is None else groups.active)
    nearest_of_chunks = []
    # Autocast would make the products less precise than their bound says.
    with torch.autocast(rows.device.type, enabled=False):
        for chunk in queries.split(max(1, min(_QUERIES_AT_ONCE, chunk_numbers))):
            exact = chunk.to(exact_device(rows), torch.float64)
            nearest = _Search(exact, searched, k, chunk_numbers).run()
            if groups is not None:
                nearest = groups.members_of(*nearest, k, chunk_numbers)
            nearest_of_chunks.append(nearest)
    squared, indices = (torch.cat(parts) for parts in zip(*nearest_of_chunks, strict=True))
    return squared.sqrt().to(rows.device), indices.to(rows.device)


def ranked_rows(
    queries: Tensor,
    rows: StackedRows,
    candidates: Tensor,
    k: int,
    *,
    facts: RowFacts,
    allowed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k nearest among rows that an index proposes, with the distances of :func:`nearest_rows`.

    Args:
        queries: Shape (Q, D), finite, on any device.
        rows: Shape (B, D), finite.
        candidates: Rows of each query, (Q, n), all different, one for each group of equal rows.
        k: Number of neighbours; the candidates, with the rows equal to them, are as many.
        facts: :func:`row_facts` of the rows.
        allowed: Which rows may be returned, (B,), bool. Default: all.

    Returns:
        Distances and row indices, each (Q, k), as :func:`nearest_rows` returns them.
    """
    device = exact_device(rows)
    exact, index = queries.to(device, torch.float64), candidates.to(device)
    query_of = torch.arange(len(exact), device=device).repeat_interleave(index.shape[1])
    squared = _squared_distances(exact, rows, query_of, index.flatten()).view(index.shape)
    groups = facts.groups(allowed)
    if groups is None:
        squared, index = nearest_of_each(squared, index)
    else:
        squared, index = groups.members_of(squared, index, k, CHUNK_NUMBERS)
    return squared[:, :k].sqrt().to(rows.device), index[:, :k].to(rows.device)


@dataclass(frozen=True)
class _Searched:
    """The rows that are looked at.

    Attributes:
        rows: Shape (B, D).
        norms: Their squared norms (B,), float64; infinite where a row is not meant.
        active: Which rows are meant, (B,), bool; None: all.
        places: Where the rows are among all, (B,), int64; None: they are all.
    """

    rows: StackedRows
    norms: Tensor
    active: Tensor | None = None
    places: Tensor | None = None

    @staticmethod
    def of(rows: StackedRows, norms: Tensor, active: Tensor | None) -> _Searched:
        if active is None:
            return _Searched(rows, norms)
        active = active.to(norms.device)
        if int(active.sum()) > _FEW * len(norms):
            return _Searched(rows, torch.where(active, norms, torch.inf), active)
        wanted = [part.nonzero()[:, 0].to(rows.device) for part in active.split(rows.lengths)]
        few = rows.select(wanted, [True] * len(wanted))
        return _Searched(few, norms[active], places=active.nonzero()[:, 0])

    @property
    def count(self) -> int:
        """Number of rows that are meant."""
        return len(self.norms) if self.active is None else int(self.active.sum())


class _Search:
    """One pass over the rows for some queries.

    With ``rough = |row|^2 - 2 query . row``, which is the squared distance less ``|query|^2``,
    ``limit`` (Q,) is an upper bound of the k-th smallest ``rough`` of each query.
    """

    def __init__(self, queries: Tensor, searched: _Searched, k: int, chunk_numbers: int) -> None:
        self.queries, self.searched, self.chunk_numbers = queries, searched, chunk_numbers
        self.rows = searched.rows
        # Where rows are equal, fewer than k stand for all.
        self.k = min(k, searched.count)
        self.query_norms = queries.square().sum(1)
        self.limit = torch.full_like(self.query_norms, torch.inf)
        # The k smallest upper bounds so far, (at most k, Q); then what is known exactly.
        self.bounds = queries.new_empty((0, len(queries)))
        self.best = queries.new_empty((len(queries), 0))
        self.best_index = torch.empty_like(self.best, dtype=torch.int64)
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def run(self) -> tuple[Tensor, Tensor]:
        """Squared distances (Q, at most k) and indices of the nearest rows."""
        norms = self.searched.norms
        largest = norms[norms.isfinite()].max() if self.searched.active is not None else norms.max()
        # (|query| + |row|)^2 is what the rounding error of a score is relative to.
        scale = (self.query_norms.sqrt() + largest.sqrt()).square()
        if not len(self.queries):
            return self.best.new_empty((0, self.k)), self.best_index.new_empty((0, self.k))
        for start, part in self._pieces():
            self._add(part, norms[start : start + len(part)], start, scale)
            if sum(len(row_of) for _, row_of, _ in self.waiting) > self.chunk_numbers:
                self._settle()
        self._settle()
        places = self.searched.places
        return self.best, self.best_index if places is None else places[self.best_index]

    def _pieces(self) -> Iterator[tuple[int, Tensor]]:
        """Parts of the rows, each but the shortest a multiple of the block long."""
        rows = self.rows
        converted = rows.dtype is not torch.float32 and rows.device.type != "cpu"
        copied = any(kept is not None for kept in rows.kept)
        wide = self.queries.shape[1] if converted or copied else 1
        size = max(1, self.chunk_numbers // max(wide, len(self.queries)))
        size = size // _BLOCK * _BLOCK or size
        for start, part in rows.chunks(size):
            whole = len(part) // _BLOCK * _BLOCK
            for first, last in ((0, whole), (whole, len(part))):
                if first < last:
                    yield start + first, part[first:last]

    def _add(self, part: Tensor, norms: Tensor, start: int, scale: Tensor) -> None:
        """Notes every pair (query, row) of this part that may be among the nearest."""
        few = len(self.queries) * (4 * self.k + _BLOCK)
        bounds = self.bounds
        if float(scale.max()) < torch.finfo(torch.float32).max / 4 and self._note(
            part, norms, start, scale, torch.float32, most=few
        ):
            return
        self.bounds = bounds  # No row may count twice.
        step = max(1, self.chunk_numbers // self.queries.shape[1])
        step = step // _BLOCK * _BLOCK or step
        for first in range(0, len(part), step):
            piece = slice(first, first + step)
            self._note(part[piece], norms[piece], start + first, scale, torch.float64)

    def _note(
        self,
        part: Tensor,
        norms: Tensor,
        start: int,
        scale: Tensor,
        dtype: torch.dtype,
        most: float = torch.inf,
    ) -> bool:
        """Notes query, row and lowest possible score of pairs, unless there are too many."""
        rough = self._scores(part, norms, dtype)
        tiny = torch.finfo(dtype).tiny  # What a product that underflows may lose.
        error = scale * _relative_error(dtype, part.shape[1]) + 4 * part.shape[1] * tiny
        # A block's rows lie far apart: rows of one class are often neighbours.
        block = _BLOCK if len(part) % _BLOCK == 0 else 1
        blocks = rough.view(block, -1, rough.shape[1])
        lowest = blocks.amin(0)
        self._tighten(lowest.to(self.queries), error)
        # Negated, so that a NaN from numbers too large to square leaves the row a candidate.
        threshold = (self.limit + error).to(rough)
        block_of, query_of = (~(lowest > threshold)).nonzero(as_tuple=True)
        if len(block_of) > most:  # In each there is a pair.
            return False
        members = blocks[:, block_of, query_of]
        member, pair = (~(members > threshold[query_of])).nonzero(as_tuple=True)
        if len(pair) > most:
            return False
        query_of, row_of = query_of[pair], member * len(lowest) + block_of[pair]
        query_of, row_of = query_of.to(self.queries.device), row_of.to(self.queries.device)
        at_least = members[member, pair].to(self.queries) - error[query_of]
        row_of += start
        if self.searched.active is not None:
            kept = self.searched.active[row_of]
            query_of, row_of, at_least = query_of[kept], row_of[kept], at_least[kept]
        self.waiting.append((query_of, row_of, at_least))
        return True

    def _scores(self, part: Tensor, norms: Tensor, dtype: torch.dtype) -> Tensor:
        """``|row|^2 - 2 query . row``, (rows, Q)."""
        device = part.device if dtype is torch.float32 else self.queries.device
        norms, queries = norms[:, None].to(device, dtype), self.queries.T.to(device, dtype)
        if part.dtype is dtype or device.type != "cpu":
            return torch.addmm(norms, part.to(device, dtype), queries, alpha=-2)
        # Rows that are converted a few at a time stay in cache: it takes a third of the time.
        scores = torch.empty((len(part), len(self.queries)), dtype=dtype)
        step = max(1, min(PAIR_NUMBERS, self.chunk_numbers) // part.shape[1])
        for first in range(0, len(part), step):
            few = slice(first, first + step)
            torch.addmm(norms[few], part[few].to(device, dtype), queries, alpha=-2, out=scores[few])
        return scores

    def _tighten(self, lowest: Tensor, error: Tensor) -> None:
        bounds = torch.cat([self.bounds, lowest + error])
        # Each comes from another row, so the k-th of them bounds the k-th nearest row.
        self.bounds = bounds.topk(min(self.k, len(bounds)), dim=0, largest=False).values
        if len(self.bounds) == self.k:
            limit = self.bounds.amax(0)
            self.limit = torch.where(limit < self.limit, limit, self.limit)

    def _settle(self) -> None:
        """Turns the waiting pairs into distances, and keeps the k nearest rows until now."""
        if not self.waiting:
            return
        query_of, row_of, at_least = (
            torch.cat(column) for column in zip(*self.waiting, strict=True)
        )
        self.waiting = []
        kept = ~(at_least > self.limit[query_of])
        query_of, row_of = query_of[kept], row_of[kept]
        squared = _squared_distances(self.queries, self.rows, query_of, row_of, self.chunk_numbers)
        near, near_index = _first_of_each(len(self.queries), self.k, query_of, squared, row_of)
        self.best, self.best_index = nearest_of_each(
            torch.cat([self.best, near], dim=1), torch.cat([self.best_index, near_index], dim=1)
        )
        self.best, self.best_index = self.best[:, : self.k], self.best_index[:, : self.k]


def _squared_distances(
    queries: Tensor,
    rows: StackedRows,
    query_of: Tensor,
    row_of: Tensor,
    chunk_numbers: int = CHUNK_NUMBERS,
) -> Tensor:
    """Of pairs of a query, in double precision, and a row."""
    pairs_at_once = max(1, min(chunk_numbers, PAIR_NUMBERS) // queries.shape[1])
    squared = [queries.new_empty(0)]
    for q, r in zip(query_of.split(pairs_at_once), row_of.split(pairs_at_once), strict=True):
        of_rows = rows.take(r.to(rows.device)).to(queries)
        squared.append((of_rows - queries[q]).square_().sum(1))
    return torch.cat(squared)


def _relative_error(dtype: torch.dtype, dim: int) -> float:
    """Bound of the rounding error of a score, relative to (|query| + |row|)^2.

    Twice the (D + 4) u of Higham 2002, section 3.1, for rounded inputs and sums in any order.
    """
    error = (dim + 8) * torch.finfo(dtype).eps
    return error if dtype is torch.float64 or _products_are_precise() else error + 2**-6


def _products_are_precise() -> bool:
    """Whether single precision is that, and not TF32 or bfloat16, as torch can be told to use."""
    backends = (torch.backends.cuda, torch.backends.mkldnn)
    given = {
        getattr(getattr(backend, "matmul", None), "fp32_precision", None) for backend in backends
    }
    if None in given:
        return torch.get_float32_matmul_precision() == "highest"
    return given <= {"none", "ieee"}


def _first_of_each(
    num_queries: int, k: int, query_of: Tensor, squared: Tensor, row_of: Tensor
) -> tuple[Tensor, Tensor]:
    """The k nearest pairs of each query, (Q, k), in any order of the pairs given."""
    order = row_of.argsort(stable=True)
    order = order[squared[order].argsort(stable=True)]
    order = order[query_of[order].argsort(stable=True)]
    query_of, squared, row_of = query_of[order], squared[order], row_of[order]
    queries = torch.arange(num_queries, device=query_of.device)
    first = torch.searchsorted(query_of, queries)
    rank = torch.arange(len(query_of), device=query_of.device) - first[query_of]
    kept = rank < k
    place = (query_of[kept], rank[kept])
    near = squared.new_full((num_queries, k), torch.inf)
    near_index = row_of.new_full((num_queries, k), NO_ROW)
    near[place], near_index[place] = squared[kept], row_of[kept]
    return near, near_index
