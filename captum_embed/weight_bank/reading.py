"""From the files of a weight bank to its entries."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from captum_embed.encoders import version_of
from captum_embed.errors import BankFileError, InputError
from captum_embed.weight_bank.entries import (
    Entries,
    SavedShard,
    Shard,
    T,
    checked_keys,
    given,
)
from captum_embed.weight_bank.files import (
    MANIFEST_NAME,
    NETWORK_FACTS,
    Manifest,
    checked_folder,
    decoded_keys,
    read_manifest,
    shard_tensors,
)
from captum_embed.weight_bank.rows import COMPACT_COLUMNS, CompactRows, Rows, StackedRows

# How often a reader starts again because the bank was replaced under it.
_READ_ATTEMPTS = 100


def read_bank(path: str | os.PathLike[str], *, mmap: bool, verify: bool) -> Entries:
    """Reads a bank and checks it against its manifest.

    Args:
        path: Directory of the bank.
        mmap: Leave embeddings and weights in the files, mapped into memory page by page as
            they are used, instead of reading them.
        verify: Compare checksums, which reads every byte once. Names, sizes, dtypes and shapes
            are always checked.

    Returns:
        The entries, on the CPU.

    Raises:
        InputError: It is no path.
        BankFileError: A file is missing, truncated, altered or of another format; it says which.
    """
    folder = checked_folder(path)
    for _ in range(_READ_ATTEMPTS):
        before = status_of(folder / MANIFEST_NAME)
        manifest = read_manifest(folder)
        try:
            return _entries(folder, manifest, mmap=mmap, verify=verify)
        except BankFileError:
            # Unless the bank was replaced meanwhile, and the files of this manifest removed.
            if status_of(folder / MANIFEST_NAME) == before:
                raise
    raise BankFileError(f"{folder} is replaced again and again; load it when its writer is done")


def _entries(folder: Path, manifest: Manifest, *, mmap: bool, verify: bool) -> Entries:
    paths = [folder / shard.file for shard in manifest.shards]
    pairs = list(zip(paths, manifest.shards, strict=True))
    checked = [status_of(path) if verify else None for path in paths]
    opened = [shard_tensors(path, shard, manifest, verify) for path, shard in pairs]
    kept = [_kept_rows(shard) for shard in manifest.shards]

    def column(name: str) -> StackedRows:
        return StackedRows([tensors[name] for tensors in opened], kept)

    weights: Rows
    if manifest.top_channels is None:
        weights = column("weights")
    else:
        columns = {name: column(f"weights_{name}") for name in COMPACT_COLUMNS}
        weights = CompactRows(columns, manifest.num_channels)
    files = [
        SavedShard(
            path,
            shard,
            tensors.get("labels"),
            versions_of(tensors["embeddings"], part),
            status,
        )
        for (path, shard), tensors, part, status in zip(
            pairs, opened, weights.parts, checked, strict=True
        )
    ]
    facts = {name: getattr(manifest, name) for name in NETWORK_FACTS}

    def source(make: Callable[[], T]) -> Callable[[], T]:
        # A source that is still to be asked keeps the files mapped.
        return given(make()) if verify or not mmap else cache(make)

    return Entries(
        embeddings=column("embeddings") if mmap else column("embeddings").in_memory(),
        weights=weights if mmap else weights.in_memory(),
        # A copy, so that a change in place does not reach what is compared with the file.
        label_source=source(lambda: column("labels").joined().clone())
        if manifest.has_labels
        else None,
        key_source=source(lambda: _all_keys(folder, manifest, opened, kept))
        if manifest.has_keys
        else None,
        metadata=manifest.metadata
        | {name: fact for name, fact in facts.items() if fact is not None},
        files=tuple(files) if mmap else (None,),
    )


def _kept_rows(shard: Shard) -> Tensor | None:
    if not shard.dropped:
        return None
    kept = torch.ones(shard.num_entries, dtype=torch.bool)
    for first, stop in shard.dropped:
        kept[first:stop] = False
    return kept.nonzero()[:, 0]


def status_of(path: Path) -> tuple[int, ...] | None:
    """What changes as a file is replaced or written to."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def versions_of(embeddings: Tensor, weights: Tensor) -> tuple[int, int]:
    """What changes as tensors are changed in place."""
    return version_of(embeddings), version_of(weights)


def _all_keys(
    folder: Path,
    manifest: Manifest,
    opened: list[dict[str, Tensor]],
    kept: list[Tensor | None],
) -> tuple[str, ...]:
    keys: list[str] = []
    for shard, tensors, rows in zip(manifest.shards, opened, kept, strict=True):
        names = decoded_keys(folder / shard.file, tensors["keys"], tensors["key_ends"])
        keys += names if rows is None else [names[row] for row in rows.tolist()]
    try:
        return checked_keys(keys, manifest.num_entries)
    except InputError as error:
        raise BankFileError(f"{folder}: {error}") from error
