"""A weight bank whose weights pass a filter when they are borrowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from torch import Tensor

from captum_embed.channel_filters import filtered
from captum_embed.errors import InputError
from captum_embed.weight_bank.bank import WeightBank


class FilteredBank(WeightBank):
    """The entries of a bank, each lending what a filter leaves of its weights.

    Nothing is copied: of a bank on disk only the weights that are borrowed are read, a compact
    bank stays compact, and an index stays in use.

    Args:
        bank: The entries.
        entry_filter: From weights (N, C) to those that are borrowed, (N, C).

    Example::

        >>> import torch
        >>> from captum_embed import WeightBank, channel_filters
        >>> bank = WeightBank(torch.eye(2), torch.tensor([[-1.0, 2.0], [0.5, -3.0]]))
        >>> FilteredBank(bank, channel_filters.absolute).transfer(torch.eye(2))
        tensor([[1.0000, 2.0000],
                [0.5000, 3.0000]])
    """

    def __init__(self, bank: WeightBank, entry_filter: Callable[[Tensor], Tensor]) -> None:
        self._entries, self._known_facts = bank._entries, bank._known_facts
        self._bank, self._filter = bank, entry_filter

    @property
    def unfiltered(self) -> WeightBank:
        """The bank whose weights are filtered."""
        return self._bank

    @property
    def weights(self) -> Tensor:
        """The filtered weights of entries, (B, C), a copy."""
        return filtered(self._bank.weights, self._filter)

    def __getitem__(self, wanted: Any) -> FilteredBank:
        """The entries of a mask, indices, a slice or an index, with the same filter."""
        return FilteredBank(self._bank[wanted], self._filter)

    def to(self, *target: Any, **named: Any) -> FilteredBank:
        """The same entries and filter elsewhere."""
        return FilteredBank(self._bank.to(*target, **named), self._filter)

    def save(self, *arguments: Any, **settings: Any) -> NoReturn:
        """Refused: a filter cannot be written."""
        raise InputError("a filter of weights cannot be saved; save the bank itself")

    compact = append_to = save

    def _nearest(self, queries: Tensor, k: int, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._bank._nearest(queries, k, allowed)

    def _weights_of(self, indices: Tensor) -> Tensor:
        return filtered(self._bank._weights_of(indices), self._filter)
