"""Exact nearest neighbours at the speed of a matrix product, with a definite order of ties.

A product in single precision, whose rounding error is bounded, leaves few candidates; their
distances are then taken from differences in double precision, so that an entry equal to the query
is at distance 0 and equal distances are equal numbers. Where single precision leaves many, double
precision is tried first. Equal rows are searched once.

(FAISS ``IndexFlatL2`` answers the same question with *squared* distances and leaves ties
unordered.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_embed.errors import BankMismatchError, InputError
from captum_embed.weight_bank.entries import StackedRows

# Numbers of one temporary: 32 MiB in single precision.
_CHUNK_NUMBERS = 2**23
_QUERIES_AT_ONCE = 1024
# Of one temporary in double precision: 1 MiB, which stays in cache.
_PAIR_NUMBERS = 2**17
# Rows of which only the nearest is compared at first.
_BLOCK = 16
# Stands where there is no row, behind all that there are.
_NO_ROW = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class RowFacts:
    """What every search of the same rows needs: computed once.

    Attributes:
        norms: Squared Euclidean norms (B,), float64.
        equals: For each row the first row that is known to equal it, (B,), int64; None where
            no two rows are known to be equal.
    """

    norms: Tensor
    equals: Tensor | None


def row_facts(rows: StackedRows, *, chunk_numbers: int = _CHUNK_NUMBERS) -> RowFacts:
    """Squared norms of rows (B, D), and which rows are equal."""
    device = _exact_device(rows)
    rows_at_once = max(1, min(chunk_numbers, _PAIR_NUMBERS) // rows.shape[1])
    norms = torch.cat(
        [part.to(device, torch.float64).square().sum(1) for _, part in rows.chunks(rows_at_once)]
    )
    # Rows that are equal have equal norms, and stand side by side in this order.
    order = norms.argsort(stable=True)
    same = norms[order[1:]] == norms[order[:-1]]
    for places in same.nonzero()[:, 0].split(rows_at_once):
        first, second = (rows.take(order[places + step].to(rows.device)) for step in (0, 1))
        same[places] = (first == second).all(1).to(device)
    if not same.any():
        return RowFacts(norms, None)
    leads = torch.cat([same.new_ones(1), ~same])
    equals = torch.empty_like(order)
    equals[order] = order[leads][leads.cumsum(0) - 1]
    return RowFacts(norms, equals)


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
    chunk_numbers: int = _CHUNK_NUMBERS,
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
    groups = _Groups.of(facts, allowed)
    active = None if groups is None else groups.active
    nearest_of_chunks = []
    # Autocast would make the products less precise than their bound says.
    with torch.autocast(rows.device.type, enabled=False):
        for chunk in queries.split(max(1, min(_QUERIES_AT_ONCE, chunk_numbers))):
            search = _Search(chunk.to(_exact_device(rows), torch.float64), rows, k, chunk_numbers)
            nearest = search.run(facts.norms, active)
            if groups is not None:
                nearest = groups.members_of(*nearest, k, chunk_numbers)
            nearest_of_chunks.append(nearest)
    squared, indices = (torch.cat(parts) for parts in zip(*nearest_of_chunks, strict=True))
    return squared.sqrt().to(rows.device), indices.to(rows.device)


def _exact_device(rows: StackedRows) -> torch.device:
    # Apple's GPUs have no float64.
    return torch.device("cpu") if rows.device.type == "mps" else rows.device


class _Search:
    """One pass over the rows for some queries.

    With ``rough = |row|^2 - 2 query . row``, which is the squared distance less ``|query|^2``,
    ``limit`` (Q,) is an upper bound of the k-th smallest ``rough`` of each query.
    """

    def __init__(self, queries: Tensor, rows: StackedRows, k: int, chunk_numbers: int) -> None:
        self.queries, self.rows, self.k, self.chunk_numbers = queries, rows, k, chunk_numbers
        self.query_norms = queries.square().sum(1)
        self.limit = torch.full_like(self.query_norms, torch.inf)
        # The k smallest upper bounds so far, (at most k, Q); then what is known exactly.
        self.bounds = queries.new_empty((0, len(queries)))
        self.best = queries.new_empty((len(queries), 0))
        self.best_index = torch.empty_like(self.best, dtype=torch.int64)
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def run(self, norms: Tensor, active: Tensor | None) -> tuple[Tensor, Tensor]:
        """Squared distances (Q, at most k) and indices of the nearest active rows."""
        if active is not None:
            norms = torch.where(active, norms, torch.inf)
        largest = norms[norms.isfinite()].max() if active is not None else norms.max()
        # (|query| + |row|)^2 is what the rounding error of a score is relative to.
        scale = (self.query_norms.sqrt() + largest.sqrt()).square()
        if not len(self.queries):
            return self.best.new_empty((0, self.k)), self.best_index.new_empty((0, self.k))
        for start, part in self._pieces():
            here = norms[start : start + len(part)]
            self._add(part, here, start, scale, active)
            if sum(len(row_of) for _, row_of, _ in self.waiting) > self.chunk_numbers:
                self._settle()
        self._settle()
        # Where rows are equal, fewer than k stand for all.
        count = int((self.best_index < _NO_ROW).sum(1).max())
        return self.best[:, :count], self.best_index[:, :count]

    def _pieces(self) -> Iterator[tuple[int, Tensor]]:
        """Parts of the rows, each but the shortest a multiple of the block long."""
        wide = 1 if self.rows.dtype is torch.float32 else self.queries.shape[1]
        size = max(1, self.chunk_numbers // max(wide, len(self.queries)))
        size = size // _BLOCK * _BLOCK or size
        for start, part in self.rows.chunks(size):
            whole = len(part) // _BLOCK * _BLOCK
            for first, last in ((0, whole), (whole, len(part))):
                if first < last:
                    yield start + first, part[first:last]

    def _add(
        self, part: Tensor, norms: Tensor, start: int, scale: Tensor, active: Tensor | None
    ) -> None:
        """Notes every pair (query, row) of this part that may be among the nearest."""
        few = len(self.queries) * (4 * self.k + _BLOCK)
        pairs, bounds = None, self.bounds
        if float(scale.max()) < torch.finfo(torch.float32).max / 4:
            pairs = self._candidates(part, norms, scale, torch.float32)
        if pairs is None or len(pairs[0]) > few:
            self.bounds = bounds  # No row may count twice.
            step = max(1, self.chunk_numbers // self.queries.shape[1])
            step = step // _BLOCK * _BLOCK or step
            for first in range(0, len(part), step):
                piece = slice(first, first + step)
                self._note(
                    self._candidates(part[piece], norms[piece], scale, torch.float64),
                    start + first,
                    active,
                )
        else:
            self._note(pairs, start, active)

    def _note(
        self, pairs: tuple[Tensor, Tensor, Tensor], start: int, active: Tensor | None
    ) -> None:
        query_of, row_of, at_least = pairs
        row_of = row_of + start
        if active is not None:
            kept = active[row_of]
            query_of, row_of, at_least = query_of[kept], row_of[kept], at_least[kept]
        self.waiting.append((query_of, row_of, at_least))

    def _candidates(
        self, part: Tensor, norms: Tensor, scale: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query, row of the part and lowest possible score of pairs that may be nearest."""
        device = part.device if dtype is torch.float32 else self.queries.device
        rough = torch.addmm(
            norms[:, None].to(device, dtype),
            part.to(device, dtype),
            self.queries.T.to(device, dtype),
            alpha=-2,
        )
        tiny = torch.finfo(dtype).tiny  # What a product that underflows may lose.
        error = scale * _relative_error(dtype, part.shape[1]) + 4 * part.shape[1] * tiny
        block = _BLOCK if len(part) % _BLOCK == 0 else 1
        blocks = rough.view(-1, block, rough.shape[1])
        lowest = blocks.amin(1)
        self._tighten(lowest.to(self.queries), error)
        # Negated, so that a NaN from numbers too large to square leaves the row a candidate.
        threshold = (self.limit + error).to(device, dtype)
        block_of, query_of = (~(lowest > threshold)).nonzero(as_tuple=True)
        members = blocks[block_of, :, query_of]
        pair, member = (~(members > threshold[query_of, None])).nonzero(as_tuple=True)
        query_of, row_of = query_of[pair], block_of[pair] * block + member
        query_of, row_of = query_of.to(self.queries.device), row_of.to(self.queries.device)
        return query_of, row_of, members[pair, member].to(self.queries) - error[query_of]

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
        squared = self._squared_distances(query_of, row_of)
        near, near_index = _first_of_each(len(self.queries), self.k, query_of, squared, row_of)
        self.best, self.best_index = _nearest_of_each(
            torch.cat([self.best, near], dim=1), torch.cat([self.best_index, near_index], dim=1)
        )
        self.best, self.best_index = self.best[:, : self.k], self.best_index[:, : self.k]

    def _squared_distances(self, query_of: Tensor, row_of: Tensor) -> Tensor:
        pairs_at_once = max(1, min(self.chunk_numbers, _PAIR_NUMBERS) // self.queries.shape[1])
        squared = [self.queries.new_empty(0)]
        for q, r in zip(query_of.split(pairs_at_once), row_of.split(pairs_at_once), strict=True):
            rows = self.rows.take(r.to(self.rows.device)).to(self.queries)
            squared.append((rows - self.queries[q]).square_().sum(1))
        return torch.cat(squared)


class _Groups:
    """Equal rows, of which one is searched for all; without those that are not allowed."""

    def __init__(self, equals: Tensor, allowed: Tensor | None) -> None:
        count = len(equals)
        members = torch.arange(count, device=equals.device)
        if allowed is not None:
            members = members[allowed.to(equals.device)]
        first = torch.full_like(equals, count)
        first = first.scatter_reduce(0, equals[members], members, "amin")
        self.active = torch.zeros(count, dtype=torch.bool, device=equals.device)
        self.active[first[first < count]] = True
        self._equals = equals
        self._members = members[equals[members].argsort(stable=True)]
        self._group_of = equals[self._members]

    @staticmethod
    def of(facts: RowFacts, allowed: Tensor | None) -> _Groups | None:
        if facts.equals is None and allowed is None:
            return None
        equals = facts.equals
        if equals is None:
            equals = torch.arange(len(facts.norms), device=facts.norms.device)
        return _Groups(equals, allowed)

    def members_of(
        self, squared: Tensor, index: Tensor, k: int, chunk_numbers: int
    ) -> tuple[Tensor, Tensor]:
        """The k nearest rows (Q, k), given the row (Q, n) that stands for each near group."""
        at_once = max(1, chunk_numbers // (k * k))
        members = [
            self._members_of(*few, k)
            for few in zip(squared.split(at_once), index.split(at_once), strict=True)
        ]
        return torch.cat([near for near, _ in members]), torch.cat([row for _, row in members])

    def _members_of(self, squared: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
        group = self._equals[index]
        start = torch.searchsorted(self._group_of, group)
        stop = torch.searchsorted(self._group_of, group, right=True)
        place = start[..., None] + torch.arange(k, device=start.device)
        exists = place < stop[..., None]
        near = torch.where(exists, squared[..., None], torch.inf)
        members = self._members[place.clamp(max=len(self._members) - 1)]
        members = torch.where(exists, members, _NO_ROW)
        near, members = _nearest_of_each(near.flatten(1), members.flatten(1))
        return near[:, :k], members[:, :k]


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
    near_index = row_of.new_full((num_queries, k), _NO_ROW)
    near[place], near_index[place] = squared[kept], row_of[kept]
    return near, near_index


def _nearest_of_each(squared: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Columns in order of distance, equal ones in order of index; missing rows come last."""
    index, order = index.sort(dim=1)
    squared, order = squared.gather(1, order).sort(dim=1, stable=True)
    return squared, index.gather(1, order)
