"""Rows in eight bits, for a first look: a fourth of the bytes of single precision to read.

Products of integers are exact, and what quantizing loses at most is known, so that a search
can tell which rows need a closer look. (FAISS' scalar quantizer answers from them instead.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from captum_embed.weight_bank.rows import PAIR_NUMBERS, StackedRows, joined

# The largest number kept: -128 has no negative in eight bits.
_LARGEST = 127
# Of rows that stay in cache.
_BYTES_AT_ONCE = 2**20
FEW_QUERIES = 8
# Fewer numbers than these stay in cache, and are multiplied in a few milliseconds.
_WORTH_NUMBERS = 2**23
# Products of longer rows may leave the 32 bits of an integer.
_LONGEST = 2**16


@dataclass(frozen=True)
class QuantizedRows:
    """Rows as integers times a unit of each row.

    Args:
        integers: Shape (B, D), int8.
        factors: The units times -2, of which scores are made: (B, 1), float32.
        error: No row is farther from its integers times its unit, in Euclidean norm.

    Example::

        >>> import torch
        >>> rows = StackedRows([torch.tensor([[0.5, 1.0], [-3.0, 0.0]])])
        >>> QuantizedRows.of(rows).integers
        tensor([[  64,  127],
                [-127,    0]], dtype=torch.int8)
    """

    integers: Tensor
    factors: Tensor
    error: float

    @staticmethod
    def of(rows: StackedRows) -> QuantizedRows:
        """Quantizes rows (B, D) that are finite."""
        count, dim = rows.shape
        integers = torch.empty((count, dim), dtype=torch.int8, device=rows.device)
        factors = torch.empty((count, 1), dtype=torch.float32, device=rows.device)
        largest = []
        dtype = torch.promote_types(rows.dtype, torch.float32)
        for start, part in rows.chunks(max(1, PAIR_NUMBERS // dim)):
            few = slice(start, start + len(part))
            integers[few], units, errors = _quantized(part.to(dtype))
            factors[few] = -2 * units
            largest.append(errors.max())
        # NaN of numbers too large for a unit stays NaN, so that nothing is told from these rows.
        return QuantizedRows(integers, factors, float(torch.stack(largest).max()))

    def scores(self, queries: Tensor, lengths: Tensor, largest: Tensor) -> QuantizedScores:
        """Scores of queries (Q, D), float64, of norms (Q,); no row's norm is above ``largest``."""
        integers, units, errors = _quantized(queries)
        # |q.r - q'.r'| <= |q - q'| |r| + |q'| |r - r'|, by Cauchy and Schwarz.
        error = 2 * (errors * largest + (lengths + errors) * self.error)
        # Few columns are multiplied faster one by one.
        at_once = 1 if len(queries) <= FEW_QUERIES else len(queries)
        columns = [few.T.contiguous() for few in integers.split(at_once)]
        return QuantizedScores(self, columns, units.T, error)


@dataclass(frozen=True)
class QuantizedScores:
    """``|row|^2 - 2 query . row`` from products of integers.

    Args:
        rows: Shape (B, D).
        columns: Of the queries, each (D, some of Q), int8.
        units: Shape (1, Q), float32.
        error: How far scores may be off, (Q,), float64; the rounding of a product in single
            precision comes on top.
    """

    rows: QuantizedRows
    columns: list[Tensor]
    units: Tensor
    error: Tensor

    def between(self, start: int, stop: int, norms: Tensor) -> Tensor:
        """Scores (stop - start, Q), float32, of rows start to stop, with their squared norms."""
        count = self.units.shape[1]
        # A default device or type of the caller's must not come in here.
        scores = torch.empty((stop - start, count), dtype=torch.float32, device=norms.device)
        step = PAIR_NUMBERS // count
        if count > 1:  # The same rows are read again.
            step = min(step, _BYTES_AT_ONCE // self.rows.integers.shape[1])
        step = max(1, step)
        factors, norms = self.rows.factors[start:stop], norms[:, None].float()
        for first in range(0, stop - start, step):
            few = slice(first, first + step)
            integers = self.rows.integers[start:stop][few]
            # The one product of integers that torch has for the CPU.
            products = joined([torch._int_mm(integers, column) for column in self.columns], 1)
            torch.addcmul(norms[few], products * factors[few], self.units, out=scores[few])
        return scores


def worth_quantizing(rows: StackedRows) -> bool:
    """Whether products in eight bits are faster here, and there are enough of them to matter."""
    count, dim = rows.shape
    many = count * dim >= _WORTH_NUMBERS and dim <= _LONGEST
    return many and rows.device.type == "cpu" and integers_are_multiplied(dim)


@cache
def integers_are_multiplied(dim: int) -> bool:
    """Whether this processor multiplies rows (N, dim) of eight bits fast (VNNI), and rightly."""
    supported = getattr(torch.cpu, "_is_vnni_supported", None)
    if supported is None or not supported():
        return False
    # Older instructions cut sums at 16 bits, and torch 2.14 returns anything for a width of 1.
    numbers = torch.arange(dim, device="cpu")
    few = torch.stack([numbers.new_ones(dim), -numbers.new_ones(dim), numbers % 3 - 1]) * _LARGEST
    return all(
        torch.equal(
            torch._int_mm(rows.to(torch.int8), columns.to(torch.int8)).long(), rows @ columns
        )
        for rows in (few[:1], few.repeat(11, 1))
        for columns in (few[1:2].T.contiguous(), few.repeat(6, 1).T.contiguous())
    )


def _quantized(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Integers (N, D), units (N, 1) and bounds of the Euclidean errors (N,) of rows."""
    largest = rows.abs().amax(1, keepdim=True)
    units = (largest / _LARGEST).float()
    # Of rows too small for a unit nothing is kept.
    units = torch.where(units >= torch.finfo(torch.float32).tiny, units, 1.0)
    integers = (rows / units).round_().clamp_(-_LARGEST, _LARGEST)
    errors = torch.addcmul(rows, integers, units, value=-1).square_().sum(1).sqrt_()
    # The errors are rounded, too: their sum, each product, and squares that underflow.
    dim, kind = rows.shape[1], torch.finfo(rows.dtype)
    errors = errors * (1 + dim * kind.eps) + dim**0.5 * (largest[:, 0] * kind.eps + kind.tiny**0.5)
    return integers.to(torch.int8), units, errors
