"""Entries made of other entries: selected, converted, joined, and without those excluded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
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
    SavedShard,
    checked_keys,
    given,
    require_finite,
)
from captum_embed.weight_bank.rows import CompactRows, Rows, StackedRows, stacked_rows


def selected_entries(entries: Entries, wanted: Any) -> Entries:
    """The entries of a mask, indices, a slice or an index, in that order.

    Raises:
        InputError: There is none, one does not exist, or a key would occur twice.
    """
    indices = _checked_indices(wanted, len(entries.embeddings)).to(entries.embeddings.device)
    labels = entries.labels
    files: tuple[SavedShard | None, ...] = (None,)
    names: Callable[[], tuple[str, ...]] | None = None
    if (indices[1:] > indices[:-1]).all():
        selection = _by_part(indices, entries.embeddings.lengths)
        # What is left out of a file is noted, and nothing of it is copied.
        lazily = [file is not None for file in entries.files]
        embeddings = entries.embeddings.select(selection, lazily)
        weights: Rows = entries.weights.select(selection, lazily)
        pairs = zip(entries.files, selection, strict=True)
        files = tuple(file for file, rows in pairs if rows is None or len(rows))
        if entries.key_source is not None:
            names = lambda: _chosen(entries, indices)  # noqa: E731
    else:
        embeddings, weights = entries.embeddings.pick(indices), entries.weights.pick(indices)
        if entries.key_source is not None:
            names = given(checked_keys(_chosen(entries, indices), len(indices)))
    return Entries(
        embeddings=embeddings,
        weights=weights,
        label_source=None if labels is None else given(labels[indices]),
        key_source=names,
        metadata=entries.metadata,
        files=files,
    )


def _chosen(entries: Entries, indices: Tensor) -> tuple[str, ...]:
    keys = entries.keys or ()
    return tuple(keys[index] for index in indices.tolist())


def _by_part(indices: Tensor, lengths: Sequence[int]) -> list[Tensor | None]:
    """Which rows of each part ascending indices (K,) are; None where they are all of its rows."""
    stops = torch.tensor(lengths).cumsum(0)
    ends = torch.searchsorted(indices, stops.to(indices.device)).tolist()
    selection: list[Tensor | None] = []
    for length, stop, first, last in zip(lengths, stops.tolist(), [0, *ends], ends, strict=False):
        whole = last - first == length
        selection.append(None if whole else indices[first:last] - (stop - length))
    return selection


def _checked_indices(wanted: Any, count: int) -> Tensor:
    if isinstance(wanted, slice):
        wanted = range(count)[wanted]
    try:
        chosen = torch.as_tensor(wanted if isinstance(wanted, Tensor) else np.asarray(wanted))
    except (TypeError, ValueError):
        chosen = torch.tensor(torch.nan)
    if chosen.numel() == 0:
        raise InputError("the selection is empty; expected at least one entry of the bank")
    chosen = chosen[None] if chosen.dim() == 0 else chosen
    if chosen.dim() != 1 or chosen.is_floating_point() or chosen.is_complex():
        kind = repr(wanted)
        if chosen.dim() > 1:
            kind = f"{chosen.dtype} of shape {tuple(chosen.shape)}"
        raise InputError(
            f"entries are selected by {kind} ({type(wanted).__name__}); expected a mask of "
            f"{count} booleans, indices, a slice or an index"
        )
    if chosen.dtype is torch.bool:
        if len(chosen) != count:
            raise InputError(f"the mask has {len(chosen)} values; the bank has {count} entries")
        chosen = chosen.nonzero()[:, 0]
        if len(chosen) == 0:
            raise InputError("the selection is empty: the mask is False for all entries")
    chosen = chosen.to(torch.int64)
    outside = (chosen < -count) | (chosen >= count)
    if outside.any():
        raise InputError(f"there is no entry {int(chosen[outside][0])} in a bank of {count}")
    return torch.where(chosen < 0, chosen + count, chosen)


def allowed_entries(entries: Entries, exclude: Any, argument: str = "exclude") -> Tensor:
    """Which entries have none of these keys (str) and labels (int), (B,), bool.

    ``argument`` is what messages call them.

    Raises:
        InputError: A key or label is of no entry, or no entry is left.
    """
    names = exclude.tolist() if hasattr(exclude, "tolist") else exclude
    if isinstance(names, (str, bytes)) or not isinstance(names, Collection):
        raise InputError(f"{argument} is {exclude!r}; expected a collection of keys or labels")
    keys = {name for name in names if isinstance(name, str)}
    labels = {
        int(name) for name in names if isinstance(name, Integral) and not isinstance(name, bool)
    }
    for name in names:
        if isinstance(name, bool) or not isinstance(name, (str, Integral)):
            raise InputError(f"{argument} holds {name!r}; expected keys (str) or labels (int)")
    count = len(entries.embeddings)
    excluded = torch.zeros(count, dtype=torch.bool)
    if keys:
        _require_known(argument, "key", keys, entries.keys)
        excluded |= torch.tensor([key in keys for key in entries.keys or ()])
    if labels:
        own = None if entries.labels is None else entries.labels.cpu()
        _require_known(
            argument, "label", labels, None if own is None else set(own.unique().tolist())
        )
        assert own is not None
        excluded |= torch.isin(own, torch.tensor(sorted(labels)))
    if excluded.all():
        raise InputError(f"all {count} entries are excluded; leave some to borrow from")
    return ~excluded


def _require_known(
    argument: str, what: str, wanted: set[Any], known: Collection[Any] | None
) -> None:
    if known is None:
        raise InputError(f"{argument} names a {what}, and the bank has no {what}s")
    missing = wanted.difference(known)
    if missing:
        raise InputError(f"{argument}: no entry has the {what} {min(missing)!r}")


def converted_entries(
    entries: Entries, device: torch.device | str | int | None, dtype: torch.dtype | None
) -> Entries:
    """The same entries on another device or in another precision.

    Raises:
        InputError: The dtype is no floating-point type, or too narrow for the values.
    """
    if dtype not in (None, *DTYPES):
        raise InputError(f"dtype is {dtype}; expected one of {', '.join(map(str, DTYPES))}")
    labels = entries.labels
    converted = replace(
        entries,
        embeddings=entries.embeddings.to(device, dtype),
        weights=entries.weights.to(device, dtype),
        label_source=None if labels is None else given(labels.to(device=device)),
        files=(None,) * len(entries.embeddings.parts),
    )
    if dtype is not None:
        _require_room("embeddings", entries.embeddings, converted.embeddings)
        _require_room("weights", entries.weights, converted.weights)
    return converted


def compacted_entries(entries: Entries, top_channels: Any, embeddings: Any) -> Entries:
    """The same entries with few weights each, or embeddings in another precision.

    Raises:
        InputError: An argument is not what it may be, or the values do not fit.
    """
    if top_channels is None and embeddings is None:
        raise InputError("nothing to be made smaller; give top_channels or embeddings")
    if top_channels is not None:
        number = isinstance(top_channels, Integral) and not isinstance(top_channels, bool)
        if not number or top_channels < 1:
            raise InputError(f"top_channels is {top_channels!r}; expected 1 or more, or None")
        weights = entries.weights
        if weights.dtype is torch.float64:
            weights = weights.to(None, torch.float32)
            _require_room("weights", entries.weights, weights)
        elif isinstance(weights, CompactRows) and top_channels > weights.num_kept:
            raise InputError(
                f"top_channels is {top_channels}, and the bank has {weights.num_kept} weights of "
                "each entry; expected as many at most: the others are gone"
            )
        entries = replace(entries, weights=CompactRows.of(weights, int(top_channels)))
    if embeddings is not None:
        name = str(embeddings).removeprefix("torch.")
        dtype = next((each for each in DTYPES if str(each) == f"torch.{name}"), None)
        if dtype is None:
            raise InputError(
                f"embeddings is {embeddings!r}; expected a precision such as 'float16', or None"
            )
        narrow = entries.embeddings.to(None, dtype)
        _require_room("embeddings", entries.embeddings, narrow)
        entries = replace(entries, embeddings=narrow)
    return replace(entries, files=(None,) * len(entries.embeddings.parts))


def _require_room(name: str, wide: Rows, narrow: Rows) -> None:
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
            replace(entries, key_source=None, files=(None,) * len(entries.files))
            for entries in all_entries
        ]
    first = all_entries[0]
    for place, entries in enumerate(all_entries[1:], start=1):
        _require_joinable(place, entries, first)
    names: Callable[[], tuple[str, ...]] | None = None
    if new_keys is not None or first.key_source is not None:
        count = sum(len(entries.embeddings) for entries in all_entries)
        names = given(
            checked_keys(_joined_keys(all_entries) if new_keys is None else new_keys, count)
        )
    labels: Callable[[], Tensor] | None = None
    if first.label_source is not None:
        known = [entries.labels for entries in all_entries if entries.labels is not None]
        labels = given(torch.cat(known))
    return Entries(
        embeddings=StackedRows.stacked([each.embeddings for each in all_entries]),
        weights=stacked_rows([each.weights for each in all_entries]),
        label_source=labels,
        key_source=names,
        files=tuple(file for entries in all_entries for file in entries.files),
        metadata={
            name: value
            for name, value in first.metadata.items()
            if all(entries.metadata.get(name) == value for entries in all_entries)
        },
    )


def _joined_keys(all_entries: Sequence[Entries]) -> list[str]:
    bank_of: dict[str, int] = {}
    for place, entries in enumerate(all_entries):
        for key in entries.keys or ():
            if key in bank_of:
                raise InputError(
                    f"key {key!r} is in bank {bank_of[key]} and in bank {place}; give the joined "
                    "bank names of its own, with concat(banks, keys=[...])"
                )
            bank_of[key] = place
    return list(bank_of)


def _require_joinable(place: int, entries: Entries, first: Entries) -> None:
    for facts, error, advice in (
        (
            _network_facts,
            BankMismatchError,
            "only banks of one network, layer and direction can be joined",
        ),
        (
            _tensor_facts,
            InputError,
            "make them alike first, with .to(...), .compact(...) or a new WeightBank",
        ),
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
        "top_channels": getattr(entries.weights, "num_kept", None),
        "device": entries.embeddings.device,
        "labels": "absent" if entries.label_source is None else "present",
        "keys": "absent" if entries.key_source is None else "present",
    }
