"""One pass over the rows of a bank for some queries: which may be nearest, and which are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_embed.weight_bank.equal_rows import (
    CHUNK_NUMBERS,
    NO_ROW,
    RowFacts,
    nearest_of_each,
)
from captum_embed.weight_bank.quantized import FEW_QUERIES, QuantizedRows
from captum_embed.weight_bank.rows import PAIR_NUMBERS, StackedRows, joined

# Rows of which only the nearest is compared at first.
_BLOCK = 16
# Measured: a distance takes the time of so many products of a pair, and of reading so many rows.
_PAIRS_WORTH_A_PRODUCT = 64
_ROWS_WORTH_READING = 8
# The share of the rows, and how many for each neighbour, on which eight bits are tried first.
_TRIED = 16
_TRIED_FOR_EACH = 256
# The share of the rows up to which they are copied together, rather than passed over.
_FEW = 0.25


@dataclass(frozen=True)
class Searched:
    """The rows that are looked at.

    Attributes:
        rows: Shape (B, D).
        norms: Their squared norms (B,), float64; infinite where a row is not meant.
        largest: The largest norm of those that are meant, a scalar.
        active: Which rows are meant, (B,), bool; None: all.
        places: Where the rows are among all, (B,), int64; None: they are all.
        quantized: The rows in eight bits; None: products of them are no faster.
    """

    rows: StackedRows
    norms: Tensor
    largest: Tensor
    active: Tensor | None = None
    places: Tensor | None = None
    quantized: QuantizedRows | None = None

    @staticmethod
    def of(facts: RowFacts, active: Tensor | None) -> Searched:
        """Those that are active; None: all."""
        rows, norms = facts.rows, facts.norms
        if active is None:
            return Searched(rows, norms, facts.largest, quantized=facts.quantized)
        active = active.to(norms.device)
        largest = norms[active].max().sqrt()
        if int(active.sum()) > _FEW * len(norms):
            norms = torch.where(active, norms, torch.inf)
            return Searched(rows, norms, largest, active, quantized=facts.quantized)
        wanted = [part.nonzero()[:, 0].to(rows.device) for part in active.split(rows.lengths)]
        few = rows.select(wanted, [True] * len(wanted))
        return Searched(few, norms[active], largest, places=active.nonzero()[:, 0])

    @property
    def count(self) -> int:
        """Number of rows that are meant."""
        return len(self.norms) if self.active is None else int(self.active.sum())


class _Blocks:
    """Scores (rows, Q) of some rows, in blocks of which at first only the lowest is looked at.

    A block's rows lie far apart: rows of one class are often neighbours.
    """

    def __init__(self, scores: Tensor, start: int) -> None:
        block = _BLOCK if len(scores) % _BLOCK == 0 else 1
        self.blocks = scores.view(block, -1, scores.shape[1])
        self.lowest = self.blocks.amin(0)
        self._start = start

    def row_of(self, member: Tensor, block_of: Tensor) -> Tensor:
        """Places of members of blocks among all rows."""
        return self._start + member * len(self.lowest) + block_of


class SearchPass:
    """One pass over the rows for some queries.

    With ``rough = |row|^2 - 2 query . row``, which is the squared distance less ``|query|^2``,
    ``limit`` (Q,) is an upper bound of the k-th smallest ``rough`` of each query.
    """

    def __init__(self, queries: Tensor, searched: Searched, k: int, chunk_numbers: int) -> None:
        self.queries, self.searched, self.chunk_numbers = queries, searched, chunk_numbers
        self.rows = searched.rows
        # Where rows are equal, fewer than k stand for all.
        self.k = min(k, searched.count)
        self.query_norms = queries.square().sum(1)
        lengths, rough = self.query_norms.sqrt(), searched.quantized
        # (|query| + |row|)^2 is what the rounding error of a score is relative to.
        self.scale = (lengths + searched.largest).square()
        self.single = float(self.scale.max()) < torch.finfo(torch.float32).max / 4
        self.single_error = self._rounding(torch.float32)
        self.quantized = None if rough is None else rough.scores(queries, lengths, searched.largest)
        self.limit = torch.full_like(self.query_norms, torch.inf)
        # The k smallest upper bounds so far, (at most k, Q); then what is known exactly.
        self.bounds = queries.new_empty((0, len(queries)))
        self.best = queries.new_empty((len(queries), 0))
        self.best_index = torch.empty_like(self.best, dtype=torch.int64)
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def run(self) -> tuple[Tensor, Tensor]:
        """Squared distances (Q, at most k) and indices of the nearest rows."""
        active = self.searched.active
        for start, stop in self._spans():
            if active is None or active[start:stop].any():
                self._add(start, stop)
            if sum(len(row_of) for _, row_of, _ in self.waiting) > self.chunk_numbers:
                self._settle()
        self._settle()
        places = self.searched.places
        return self.best, self.best_index if places is None else places[self.best_index]

    def _spans(self) -> Iterator[tuple[int, int]]:
        """First row and end of parts of the rows, each but the shortest a multiple of the block."""
        rows = self.rows
        converted = rows.dtype is not torch.float32 and rows.device.type != "cpu"
        copied = any(kept is not None for kept in rows.kept)
        wide = self.queries.shape[1] if converted or copied else 1
        size = self._whole_blocks(self.chunk_numbers // max(wide, len(self.queries)))
        tried = size
        if self.quantized is not None and len(self.queries) > FEW_QUERIES:
            # Where eight bits do not do, only few rows shall have been multiplied in vain.
            tried = self._whole_blocks(max(len(rows) // _TRIED, self.k * _TRIED_FOR_EACH))
            tried = min(size, tried)
        start = 0
        for length in rows.lengths:
            stop = start + length
            while start < stop:
                last = min(start + (size if start else tried), stop)
                whole = last - (last - start) % _BLOCK
                yield from ((a, b) for a, b in ((start, whole), (whole, last)) if a < b)
                start = last

    @staticmethod
    def _whole_blocks(rows: int) -> int:
        return rows // _BLOCK * _BLOCK or max(1, rows)

    def _add(self, start: int, stop: int) -> None:
        """Notes every pair (query, row of start to stop) that may be among the nearest."""
        norms, bounds = self.searched.norms, self.bounds
        few = len(self.queries) * (4 * self.k + _BLOCK)
        if self.single:
            # Fewer exact distances than these take less time than a product does. While few rows
            # are known, more seem near.
            share = _PAIRS_WORTH_A_PRODUCT // (1 if start or stop == len(self.rows) else 2)
            count = stop - start
            many = count * len(self.queries) // share + count // _ROWS_WORTH_READING
            if self.quantized is not None and 4 * self.k * len(self.queries) <= many:
                rough = self.quantized.between(start, stop, norms[start:stop])
                error = self.quantized.error + self.single_error
                if self._note(_Blocks(rough, start), error, many, exactly=True):
                    return
                self.bounds, self.quantized = bounds, None  # No row may count twice.
            rough = self._scores(self.rows.between(start, stop), norms[start:stop], torch.float32)
            if self._note(_Blocks(rough, start), self.single_error, few):
                return
            self.bounds = bounds
        step = self._whole_blocks(self.chunk_numbers // self.queries.shape[1])
        for first in range(start, stop, step):
            last = min(first + step, stop)
            rough = self._scores(self.rows.between(first, last), norms[first:last], torch.float64)
            self._note(_Blocks(rough, first), self._rounding(torch.float64))

    def _rounding(self, dtype: torch.dtype) -> Tensor:
        """How far scores (Q,) of that precision may be off."""
        dim = self.queries.shape[1]
        # What a product that underflows may lose comes on top.
        return self.scale * _relative_error(dtype, dim) + 4 * dim * torch.finfo(dtype).tiny

    def _note(
        self, rough: _Blocks, error: Tensor, most: float = torch.inf, exactly: bool = False
    ) -> bool:
        """Notes query, row and lowest possible score of pairs, unless there are too many."""
        # A few exact scores leave fewer pairs than many rough ones whose error is large.
        bounds = self._exact(rough) if exactly else rough.lowest.to(self.queries) + error
        self._tighten(bounds)
        # Negated, so that a NaN from numbers too large to square leaves the row a candidate.
        threshold = (self.limit + error).to(rough.lowest)
        block_of, query_of = (~(rough.lowest > threshold)).nonzero(as_tuple=True)
        if len(block_of) > most:  # In each there is a pair.
            return False
        members = rough.blocks[:, block_of, query_of]
        member, pair = (~(members > threshold[query_of])).nonzero(as_tuple=True)
        if len(pair) > most:
            return False
        query_of, row_of = query_of[pair], rough.row_of(member, block_of[pair])
        query_of, row_of = query_of.to(self.queries.device), row_of.to(self.queries.device)
        at_least = members[member, pair].to(self.queries) - error[query_of]
        if self.searched.active is not None:
            kept = self.searched.active[row_of]
            query_of, row_of, at_least = query_of[kept], row_of[kept], at_least[kept]
        self.waiting.append((query_of, row_of, at_least))
        return True

    def _exact(self, rough: _Blocks) -> Tensor:
        """Scores (at most k, Q) of rows that seem near, one of a block, in double precision."""
        k = min(self.k, len(rough.lowest))
        block_of = rough.lowest.topk(k, dim=0, largest=False).indices
        query_of = torch.arange(len(self.queries), device=block_of.device).expand_as(block_of)
        member = rough.blocks[:, block_of, query_of].argmin(0)
        row_of, query_of = rough.row_of(member, block_of).flatten(), query_of.flatten()
        squared = squared_distances(self.queries, self.rows, query_of, row_of)
        scores = squared - self.query_norms[query_of]
        if self.searched.active is not None:
            scores = torch.where(self.searched.active[row_of], scores, torch.inf)
        return scores.view(block_of.shape)

    def _scores(self, part: Tensor, norms: Tensor, dtype: torch.dtype) -> Tensor:
        """``|row|^2 - 2 query . row``, (rows, Q)."""
        device = part.device if dtype is torch.float32 else self.queries.device
        norms, queries = norms[:, None].to(device, dtype), self.queries.T.to(device, dtype)
        if part.dtype is dtype or device.type != "cpu":
            return torch.addmm(norms, part.to(device, dtype), queries, alpha=-2)
        # Rows that are converted a few at a time stay in cache: it takes a third of the time.
        scores = torch.empty((len(part), len(self.queries)), dtype=dtype, device=device)
        step = max(1, min(PAIR_NUMBERS, self.chunk_numbers) // part.shape[1])
        for first in range(0, len(part), step):
            few = slice(first, first + step)
            torch.addmm(norms[few], part[few].to(device, dtype), queries, alpha=-2, out=scores[few])
        return scores

    def _tighten(self, bounds: Tensor) -> None:
        bounds = torch.cat([self.bounds, bounds])
        # Each comes from another row, so the k-th of them bounds the k-th nearest row.
        self.bounds = bounds.topk(min(self.k, len(bounds)), dim=0, largest=False).values
        if len(self.bounds) == self.k:
            limit = self.bounds.amax(0)
            self.limit = torch.where(limit < self.limit, limit, self.limit)

    def _settle(self) -> None:
        """Turns the waiting pairs into distances, and keeps the k nearest rows until now."""
        if not self.waiting:
            return
        query_of, row_of, at_least = (joined(column) for column in zip(*self.waiting, strict=True))
        if len(self.waiting) > 1:  # The limit has become lower since.
            kept = ~(at_least > self.limit[query_of])
            query_of, row_of = query_of[kept], row_of[kept]
        self.waiting = []
        squared = squared_distances(self.queries, self.rows, query_of, row_of, self.chunk_numbers)
        near, near_index = _first_of_each(len(self.queries), self.k, query_of, squared, row_of)
        if self.best.shape[1]:
            near, near_index = nearest_of_each(
                torch.cat([self.best, near], dim=1), torch.cat([self.best_index, near_index], dim=1)
            )
        self.best, self.best_index = near[:, : self.k], near_index[:, : self.k]


def squared_distances(
    queries: Tensor,
    rows: StackedRows,
    query_of: Tensor,
    row_of: Tensor,
    chunk_numbers: int = CHUNK_NUMBERS,
) -> Tensor:
    """Of pairs of a query, in double precision, and a row."""
    pairs_at_once = max(1, min(chunk_numbers, PAIR_NUMBERS) // queries.shape[1])
    squared = []
    for q, r in zip(query_of.split(pairs_at_once), row_of.split(pairs_at_once), strict=True):
        differences = queries.index_select(0, q)
        differences -= rows.take(r.to(rows.device)).to(queries.device)
        squared.append(differences.square_().sum(1))
    return joined(squared)


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
    if num_queries == 1:
        near, near_index = nearest_of_each(squared[None], row_of[None])
        return near[:, :k], near_index[:, :k]
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
