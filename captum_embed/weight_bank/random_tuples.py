"""Tuples drawn uniformly among all that an anchor has, without listing them."""

from __future__ import annotations

import torch
from torch import Tensor


class RandomTuples:
    """Numbers all tuples of an anchor from 0, draws numbers, and decodes them into images.

    Args:
        labels: Shape (B,), on the CPU.
        roles: Of the references: a pair's, triplet's or quadruplet's, see
            :mod:`captum_embed.weight_bank.mining`.

    Example::

        >>> import torch
        >>> draw = RandomTuples(torch.tensor([7, 7, 8, 8]), ("same", "different"))
        >>> draw(0, 10, torch.Generator()).tolist()  # there are only two
        [[1, 2], [1, 3]]
    """

    def __init__(self, labels: Tensor, roles: tuple[str, ...]) -> None:
        self._roles = roles
        # Images class by class: those of class c stand at starts[c] .. starts[c] + sizes[c] - 1.
        self._images = labels.argsort(stable=True)
        self._place_of = self._images.argsort()
        _, self._class_of, self._sizes = labels.unique(return_inverse=True, return_counts=True)
        self._starts = self._sizes.cumsum(0) - self._sizes

    def __call__(self, anchor: int, count: int, generator: torch.Generator) -> Tensor:
        """``count`` different tuples of an anchor, or all where it has fewer.

        Args:
            anchor: Index of the image.
            count: Number of tuples.
            generator: Source of the draws, on the CPU.

        Returns:
            Reference indices (M, R).
        """
        others = len(self._images) - 1
        if len(self._roles) == 1:
            drawn = _distinct(others, count, generator)
            return self._images[_skip(drawn, int(self._place_of[anchor]), 1)][:, None]
        own = int(self._class_of[anchor])
        start, size = int(self._starts[own]), int(self._sizes[own])
        pairs = self._negative_pairs(own)
        combinations = others + 1 - size if len(self._roles) == 2 else int(pairs.sum())
        drawn = _distinct((size - 1) * combinations, count, generator)
        positive = start + _skip(drawn // combinations, int(self._place_of[anchor]) - start, 1)
        rest = drawn % combinations
        if len(self._roles) == 2:
            places = [positive, _skip(rest, start, size)]
        else:
            places = [positive, *self._negatives(rest, own, pairs)]
        return self._images[torch.stack(places, dim=1)]

    def _negative_pairs(self, own: int) -> Tensor:
        """For each class, how many ordered pairs of negatives have their first in it."""
        second = len(self._images) - self._sizes - self._sizes[own]
        return (self._sizes * second).index_fill(0, torch.tensor([own]), 0)

    def _negatives(self, number: Tensor, own: int, pairs: Tensor) -> tuple[Tensor, Tensor]:
        ends = pairs.cumsum(0)
        first_class = torch.searchsorted(ends, number, right=True)
        number = number - (ends - pairs)[first_class]
        num_second = len(self._images) - self._sizes[first_class] - self._sizes[own]
        first = self._starts[first_class] + number // num_second
        second = number % num_second
        taken = torch.stack([first_class, torch.full_like(first_class, own)]).sort(dim=0).values
        for each in taken:
            second = _skip(second, self._starts[each], self._sizes[each])
        return first, second


def _skip(number: Tensor, start: Tensor | int, size: Tensor | int) -> Tensor:
    """Counts on past ``size`` places from ``start``."""
    return torch.where(number < start, number, number + size)


def _distinct(total: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` different integers below ``total``, or all of them."""
    if total <= count:
        return torch.arange(total)
    if total <= 4 * count:
        return torch.randperm(total, generator=generator)[:count]
    drawn: dict[int, None] = {}
    while len(drawn) < count:
        more = torch.randint(total, (2 * count,), generator=generator)
        drawn.update(dict.fromkeys(more.tolist()))
    return torch.tensor(list(drawn)[:count])
