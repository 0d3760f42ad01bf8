"""Rows that equal each other: searched once, and returned each in its place.

An encoder that collapsed, or a data set with copies, gives many.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from captum_embed.weight_bank.quantized import QuantizedRows, worth_quantizing
from captum_embed.weight_bank.rows import PAIR_NUMBERS, StackedRows

# Numbers of one temporary: 32 MiB in single precision.
CHUNK_NUMBERS = 2**23
# Stands where there is no row, behind all that there are.
NO_ROW = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class RowFacts:
    """What every search of the same rows needs: computed once.

    Attributes:
        rows: Shape (B, D).
        norms: Squared Euclidean norms (B,), float64.
        equals: For each row the first row that is known to equal it, (B,), int64; None where
            no two rows are known to be equal.
    """

    rows: StackedRows
    norms: Tensor
    equals: Tensor | None

    @cached_property
    def largest(self) -> Tensor:
        """The largest norm, a scalar."""
        return self.norms.max().sqrt()

    @cached_property
    def quantized(self) -> QuantizedRows | None:
        """The rows in eight bits; None where they save no time."""
        return QuantizedRows.of(self.rows) if worth_quantizing(self.rows) else None

    @cached_property
    def _all_groups(self) -> Groups | None:
        return None if self.equals is None else Groups(self.equals, None)

    def groups(self, allowed: Tensor | None) -> Groups | None:
        """Equal rows among those that are allowed; None where no two are known to be equal."""
        if self.equals is None or allowed is None:
            return self._all_groups
        return Groups(self.equals, allowed)


def row_facts(rows: StackedRows, *, chunk_numbers: int = CHUNK_NUMBERS) -> RowFacts:
    """Squared norms of rows (B, D), and which rows are equal."""
    device = exact_device(rows)
    rows_at_once = max(1, min(chunk_numbers, PAIR_NUMBERS) // rows.shape[1])
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
        return RowFacts(rows, norms, None)
    leads = torch.cat([same.new_ones(1), ~same])
    equals = torch.empty_like(order)
    equals[order] = order[leads][leads.cumsum(0) - 1]
    return RowFacts(rows, norms, equals)


class Groups:
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
        members = torch.where(exists, members, NO_ROW)
        near, members = nearest_of_each(near.flatten(1), members.flatten(1))
        return near[:, :k], members[:, :k]


def nearest_of_each(squared: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Columns in order of distance, equal ones in order of index; missing rows come last."""
    index, order = index.sort(dim=1)
    squared, order = squared.gather(1, order).sort(dim=1, stable=True)
    return squared, index.gather(1, order)


def exact_device(rows: StackedRows) -> torch.device:
    """Where double precision is at hand."""
    # Apple's GPUs have no float64.
    return torch.device("cpu") if rows.device.type == "mps" else rows.device
