"""The bank entries from which queries borrow, and whether they are near enough to say anything."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor

from captum_embed.weight_bank.bank import WeightBank

# A query this many times farther from the bank than its entries are from each other is not of
# their kind.
_FAR = 10
_SPACING_SAMPLE = 256
# For each bank the distance that is far, or infinity once it has been warned of.
_far_from: WeakKeyDictionary[WeightBank, float] = WeakKeyDictionary()


class Neighbors(NamedTuple):
    """The bank entries from which queries borrow, nearest first.

    Args:
        keys: Names of the entries, for each query k; None where the bank has none.
        labels: Their classes, (N, k); None where the bank has none.
        distances: Euclidean distances of the embeddings, (N, k).
        indices: Their places in the bank, (N, k).
    """

    keys: list[list[str]] | None
    labels: Tensor | None
    distances: Tensor
    indices: Tensor


def nearest_entries(
    bank: WeightBank, embeddings: Tensor, k: int, exclude: Collection[Any] | None = None
) -> Neighbors:
    """The k entries nearest to each query; warns, once for a bank, of queries far from all.

    Far is ten times the largest distance between an entry (of a sample of 256) and the one
    nearest to it.

    Args:
        bank: The weight bank.
        embeddings: Queries (N, D).
        k: Number of neighbours.
        exclude: Keys or labels of entries that are left out.

    Returns:
        Keys, labels, distances and indices of the entries.

    Raises:
        InputError: As :meth:`WeightBank.search`.
        BankMismatchError: As :meth:`WeightBank.search`.

    Example::

        >>> import torch
        >>> bank = WeightBank(torch.eye(3), torch.rand(3, 5), keys=["a", "b", "c"])
        >>> nearest_entries(bank, torch.tensor([[0.0, 2.0, 0.0]]), 1).keys
        [['b']]
    """
    settings = {} if exclude is None else {"exclude": exclude}
    distances, indices = bank.search(embeddings, k, **settings)
    _warn_if_far(bank, float(distances[:, 0].max()))
    keys, labels, places = bank.keys, bank.labels, indices.tolist()
    return Neighbors(
        None if keys is None else [[keys[place] for place in row] for row in places],
        None if labels is None else labels[indices.to(labels.device)],
        distances,
        indices,
    )


def _warn_if_far(bank: WeightBank, distance: float) -> None:
    far = _far_from.get(bank)
    if far is None:
        far = _far_from[bank] = _FAR * _spacing(bank)
    if distance > far:
        _far_from[bank] = float("inf")
        warnings.warn(
            f"a query is {distance:.3g} from its nearest bank entry, and the bank's entries at "
            f"most {far / _FAR:.3g} from theirs: the borrowed weights say little about it; are its "
            "images scaled and normalised as the bank's were?",
            stacklevel=2,
        )


def _spacing(bank: WeightBank) -> float:
    """Largest distance from an entry to the nearest other; infinite where none differ."""
    if len(bank) < 2:
        return float("inf")
    step = -(-len(bank) // _SPACING_SAMPLE)
    return float(bank.search(bank.embeddings[::step], 2)[0][:, 1].max()) or float("inf")
