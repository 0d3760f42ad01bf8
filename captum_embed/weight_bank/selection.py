"""Some of a bank's entries: those selected, and those that may be borrowed from."""

from __future__ import annotations

from collections.abc import Collection
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_embed.errors import InputError
from captum_embed.weight_bank.entries import Entries, StackedRows, checked_keys


def selected_entries(entries: Entries, wanted: Any) -> Entries:
    """The entries of a mask, indices, a slice or an index, in that order.

    Raises:
        InputError: There is none, one does not exist, or a key would occur twice.
    """
    indices = _checked_indices(wanted, len(entries.embeddings)).to(entries.embeddings.device)
    ascending = bool((indices[1:] > indices[:-1]).all())
    embeddings, weights = (
        rows.select(indices) if ascending else StackedRows([rows.take(indices)])
        for rows in (entries.embeddings, entries.weights)
    )
    # A part that is kept whole is still the content of its file.
    files = {
        id(part): file for part, file in zip(entries.embeddings.parts, entries.files, strict=True)
    }
    keys = entries.keys and [entries.keys[index] for index in indices.tolist()]
    return Entries(
        embeddings=embeddings,
        weights=weights,
        labels=None if entries.labels is None else entries.labels[indices],
        keys=checked_keys(keys, len(indices)) if keys else None,
        metadata=entries.metadata,
        files=tuple(files.get(id(part)) for part in embeddings.parts),
    )


def _checked_indices(wanted: Any, count: int) -> Tensor:
    if isinstance(wanted, slice):
        wanted = range(count)[wanted]
    try:
        given = torch.as_tensor(wanted if isinstance(wanted, Tensor) else np.asarray(wanted))
    except (TypeError, ValueError):
        given = torch.tensor(torch.nan)
    if given.numel() == 0:
        raise InputError("the selection is empty; expected at least one entry of the bank")
    given = given[None] if given.dim() == 0 else given
    if given.dim() != 1 or given.is_floating_point() or given.is_complex():
        kind = f"{given.dtype} of shape {tuple(given.shape)}" if given.dim() > 1 else repr(wanted)
        raise InputError(
            f"entries are selected by {kind} ({type(wanted).__name__}); expected a mask of "
            f"{count} booleans, indices, a slice or an index"
        )
    if given.dtype is torch.bool:
        if len(given) != count:
            raise InputError(f"the mask has {len(given)} values; the bank has {count} entries")
        given = given.nonzero()[:, 0]
        if len(given) == 0:
            raise InputError("the selection is empty: the mask is False for all entries")
    given = given.to(torch.int64)
    outside = (given < -count) | (given >= count)
    if outside.any():
        raise InputError(f"there is no entry {int(given[outside][0])} in a bank of {count}")
    return torch.where(given < 0, given + count, given)


def allowed_entries(entries: Entries, exclude: Any) -> Tensor:
    """Which entries have none of these keys (str) and labels (int), (B,), bool.

    Raises:
        InputError: A key or label is of no entry, or no entry is left.
    """
    names = exclude.tolist() if hasattr(exclude, "tolist") else exclude
    if isinstance(names, (str, bytes)) or not isinstance(names, Collection):
        raise InputError(f"exclude is {exclude!r}; expected a collection of keys or labels")
    keys = {name for name in names if isinstance(name, str)}
    labels = {
        int(name) for name in names if isinstance(name, Integral) and not isinstance(name, bool)
    }
    for name in names:
        if isinstance(name, bool) or not isinstance(name, (str, Integral)):
            raise InputError(f"exclude holds {name!r}; expected keys (str) or labels (int)")
    count = len(entries.embeddings)
    excluded = torch.zeros(count, dtype=torch.bool)
    if keys:
        _require_known("key", keys, entries.keys)
        excluded |= torch.tensor([key in keys for key in entries.keys or ()])
    if labels:
        own = None if entries.labels is None else entries.labels.cpu()
        _require_known("label", labels, None if own is None else set(own.tolist()))
        assert own is not None
        excluded |= torch.isin(own, torch.tensor(sorted(labels)))
    if excluded.all():
        raise InputError(f"all {count} entries are excluded; leave some to borrow from")
    return ~excluded


def _require_known(what: str, wanted: set[Any], known: Collection[Any] | None) -> None:
    if known is None:
        raise InputError(f"exclude names a {what}, and the bank has no {what}s")
    missing = wanted.difference(known)
    if missing:
        raise InputError(f"exclude: no entry has the {what} {min(missing)!r}")
