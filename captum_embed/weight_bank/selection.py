"""Entries made of other entries: selected, converted, joined, and without those excluded."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_embed.errors import BankMismatchError, InputError
from captum_embed.weight_bank.entries import (
    DTYPES,
    ROWS_AT_ONCE,
    Entries,
    StackedRows,
    checked_keys,
    require_finite,
)


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


def converted_entries(
    entries: Entries, device: torch.device | str | int | None, dtype: torch.dtype | None
) -> Entries:
    """The same entries on another device or in another precision.

    Raises:
        InputError: The dtype is no floating-point type, or too narrow for the values.
    """
    if dtype not in (None, *DTYPES):
        raise InputError(f"dtype is {dtype}; expected one of {', '.join(map(str, DTYPES))}")
    converted = Entries(
        embeddings=entries.embeddings.to(device, dtype),
        weights=entries.weights.to(device, dtype),
        labels=None if entries.labels is None else entries.labels.to(device=device),
        keys=entries.keys,
        metadata=entries.metadata,
        files=(None,) * len(entries.embeddings.parts),
    )
    if dtype is not None:
        _require_room("embeddings", entries.embeddings, converted.embeddings)
        _require_room("weights", entries.weights, converted.weights)
    return converted


def _require_room(name: str, wide: StackedRows, narrow: StackedRows) -> None:
    require_finite(f"{name} as {narrow.dtype}", narrow, InputError)
    for (start, before), (_, after) in zip(
        wide.chunks(ROWS_AT_ONCE), narrow.chunks(ROWS_AT_ONCE), strict=True
    ):
        vanished = (before != 0).any(1).to(after.device) & ~(after != 0).any(1)
        if vanished.any():
            row = start + int(vanished.nonzero()[0])
            raise InputError(
                f"{name}, row {row}, are too small for {narrow.dtype} and would all become 0; "
                "use torch.bfloat16, which has the range of torch.float32"
            )


def joined_entries(all_entries: Sequence[Entries], new_keys: Sequence[str] | None) -> Entries:
    """All entries in order, without a copy; of the metadata, what all agree on.

    Raises:
        InputError: A key occurs twice, or labels, keys, dtypes or devices differ.
        BankMismatchError: Dimensions, layers, encoders, directions or layouts differ.
    """
    if new_keys is not None:
        # Their files hold the earlier names.
        all_entries = [
            replace(entries, keys=None, files=(None,) * len(entries.files))
            for entries in all_entries
        ]
    first = all_entries[0]
    for place, entries in enumerate(all_entries[1:], start=1):
        _require_joinable(place, entries, first)
    labels = [entries.labels for entries in all_entries if entries.labels is not None]
    keys = _joined_keys(all_entries) if new_keys is None else new_keys
    count = sum(len(entries.embeddings) for entries in all_entries)
    return Entries(
        embeddings=StackedRows([part for one in all_entries for part in one.embeddings.parts]),
        weights=StackedRows([part for one in all_entries for part in one.weights.parts]),
        labels=torch.cat(labels) if labels else None,
        keys=None if keys is None else checked_keys(keys, count),
        files=tuple(file for entries in all_entries for file in entries.files),
        metadata={
            name: value
            for name, value in first.metadata.items()
            if all(entries.metadata.get(name) == value for entries in all_entries)
        },
    )


def _joined_keys(all_entries: Sequence[Entries]) -> list[str] | None:
    bank_of: dict[str, int] = {}
    for place, entries in enumerate(all_entries):
        for key in entries.keys or ():
            if key in bank_of:
                raise InputError(
                    f"key {key!r} is in bank {bank_of[key]} and in bank {place}; give the joined "
                    "bank names of its own, with concat(banks, keys=[...])"
                )
            bank_of[key] = place
    return list(bank_of) or None


def _require_joinable(place: int, entries: Entries, first: Entries) -> None:
    for facts, error, advice in (
        (
            _network_facts,
            BankMismatchError,
            "only banks of one network, layer and direction can be joined",
        ),
        (_tensor_facts, InputError, "make them alike first, with .to(...) or a new WeightBank"),
    ):
        theirs = facts(first)
        for name, value in facts(entries).items():
            if value != theirs[name]:
                raise error(f"bank {place} has {name} {value}, bank 0 has {theirs[name]}; {advice}")


def _network_facts(entries: Entries) -> dict[str, Any]:
    return {
        "embedding_dim": entries.embeddings.shape[1],
        "num_channels": entries.weights.shape[1],
        "layer": entries.metadata.get("layer"),
        "encoder_fingerprint": entries.metadata.get("encoder_fingerprint"),
        "explains": entries.metadata.get("explains"),
        "layout": entries.metadata.get("layout", "channels_first"),
        "prefix_tokens": entries.metadata.get("prefix_tokens", "0"),
    }


def _tensor_facts(entries: Entries) -> dict[str, Any]:
    return {
        "embeddings dtype": entries.embeddings.dtype,
        "weights dtype": entries.weights.dtype,
        "device": entries.embeddings.device,
        "labels": "absent" if entries.labels is None else "present",
        "keys": "absent" if entries.keys is None else "present",
    }
