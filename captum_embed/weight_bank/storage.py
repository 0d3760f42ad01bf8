"""A weight bank on disk: a directory of safetensors shards and a manifest. No pickle anywhere.

A shard is named after its content and never changed. The manifest names the shards, and is
replaced last, by one rename: at any moment the directory is the earlier bank or the new one.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor

from captum_embed.encoders import version_of
from captum_embed.errors import BankFileError, InputError
from captum_embed.weight_bank.entries import (
    Entries,
    SavedShard,
    StackedRows,
    checked_keys,
)
from captum_embed.weight_bank.files import (
    MANIFEST_NAME,
    NETWORK_FACTS,
    Manifest,
    decoded_keys,
    is_shard_name,
    library_versions,
    read_manifest,
    shard_name,
    shard_tensors,
    tensors_between,
    write_shard,
)

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}

# What else a bank's directory holds while it is saved.
_LOCK_NAME = ".lock"
_UNFINISHED = ".unfinished"
_LOCK_SECONDS = 600.0
# How often a reader starts again because the bank was replaced under it.
_READ_ATTEMPTS = 100


def write_bank(path: str | os.PathLike[str], entries: Entries, max_shard_size: int | str) -> None:
    """Writes a bank, or replaces one, in one step.

    Entries that are a file of a saved bank keep that file. Of two savers the later one waits,
    and replaces what the earlier one saved.

    Args:
        path: Directory to write; an existing one must be empty, or a bank and nothing else.
        entries: What to write.
        max_shard_size: Bytes per shard, or a string such as ``"500MB"``. A shard holds at
            least one entry.

    Raises:
        InputError: The path is taken by something else, or the size is not one.
        BankFileError: The disk is full, the directory cannot be written, or another process
            does not stop saving there.
    """
    # Links are followed, so that the new bank lies on the disk of the one it replaces.
    folder = Path(os.path.realpath(path))
    size = _bytes(max_shard_size)
    require_replaceable(folder)
    try:
        with _locked(folder):
            _remove_unlisted(folder)
            try:
                _write_files(folder / _UNFINISHED, entries, size)
                _publish(folder / _UNFINISHED, folder)
            finally:
                _remove_unlisted(folder)
    except (OSError, SafetensorError) as error:
        raise BankFileError(
            f"the weight bank could not be saved as {folder} ({error}); what was there before is "
            "unchanged: make room or give another path, and save again"
        ) from error


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
        BankFileError: A file is missing, truncated, altered or of another format; it says which.
    """
    folder = Path(path)
    for _ in range(_READ_ATTEMPTS):
        before = _identity(folder / MANIFEST_NAME)
        manifest = read_manifest(folder)
        try:
            return _entries(folder, manifest, mmap=mmap, verify=verify)
        except BankFileError:
            # Unless the bank was replaced meanwhile, and the files of this manifest removed.
            if _identity(folder / MANIFEST_NAME) == before:
                raise
    raise BankFileError(f"{folder} is replaced again and again; load it when its writer is done")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _entries(folder: Path, manifest: Manifest, *, mmap: bool, verify: bool) -> Entries:
    opened = [
        shard_tensors(folder / shard.file, shard, manifest, verify) for shard in manifest.shards
    ]
    rows = {}
    for name in ("embeddings", "weights"):
        parts = [tensors[name] for tensors in opened]
        rows[name] = StackedRows(parts if mmap else [_in_memory(parts)])
    facts = {name: getattr(manifest, name) for name in NETWORK_FACTS}
    files = [
        SavedShard(
            folder / shard.file, shard, t.get("labels"), _versions(t["embeddings"], t["weights"])
        )
        for shard, t in zip(manifest.shards, opened, strict=True)
    ]
    return Entries(
        **rows,
        labels=torch.cat([t["labels"] for t in opened]) if manifest.has_labels else None,
        keys=_all_keys(folder, manifest, opened) if manifest.has_keys else None,
        metadata=manifest.metadata
        | {name: fact for name, fact in facts.items() if fact is not None},
        files=tuple(files) if mmap else (None,),
    )


def _bytes(size: int | str) -> int:
    if isinstance(size, str):
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMG]B|)\s*", size.upper())
        number = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    else:
        number = size if isinstance(size, int) and not isinstance(size, bool) else 0
    if number < 1:
        raise InputError(
            f"max_shard_size is {size!r}; expected a number of bytes above 0, or a string such as "
            "'500MB'"
        )
    return number


def require_replaceable(path: Path) -> None:
    """Refuses a directory in which there is something else than a bank.

    Raises:
        InputError: It does, or the bank in it is damaged.
    """
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise InputError(f"{path} is a file; a weight bank is a directory: give another path")
    names = sorted(entry.name for entry in path.iterdir())
    own = {MANIFEST_NAME, _LOCK_NAME, _UNFINISHED}
    foreign = [name for name in names if name not in own and not is_shard_name(name)]
    if foreign:
        raise InputError(
            f"{path} holds a file that is not a weight bank's ({foreign[0]}), which saving would "
            "delete: give another path, or move it away"
        )
    if MANIFEST_NAME in names:
        try:
            read_manifest(path)
        except BankFileError as error:
            raise InputError(
                f"{path} is not an intact weight bank, and is not overwritten ({error}): give "
                "another path, or remove it"
            ) from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Makes the directory and keeps other savers out; a directory left empty is removed."""
    existed = folder.is_dir()
    lock = FileLock(folder / _LOCK_NAME, timeout=_LOCK_SECONDS)
    while not lock.is_locked:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise BankFileError(
                f"{folder} has been in the hands of another saver for {_LOCK_SECONDS:.0f} s; save "
                f"again when it is done, or remove {folder / _LOCK_NAME} if there is none"
            ) from None
        except FileNotFoundError:
            continue  # Another saver failed just now, and removed the directory it had made.
    try:
        yield
    finally:
        # Before it is released: who waits for it finds it gone, and makes a new one.
        with suppress(OSError):
            os.unlink(folder / _LOCK_NAME)
        lock.release()
        if not existed:
            with suppress(OSError):
                folder.rmdir()


def _remove_unlisted(folder: Path) -> None:
    """Removes what the manifest does not name: the earlier bank, or a save cut short."""
    listed = set()
    if (folder / MANIFEST_NAME).exists():
        listed = {shard.file for shard in read_manifest(folder).shards}
    shutil.rmtree(folder / _UNFINISHED, ignore_errors=True)
    for entry in folder.iterdir():
        if is_shard_name(entry.name) and entry.name not in listed:
            # Windows keeps a file that is mapped; the next save removes it.
            with suppress(OSError):
                entry.unlink()


def _write_files(folder: Path, entries: Entries, max_bytes: int) -> None:
    folder.mkdir()
    shards = []
    for start, stop, saved in _spans(entries, max_bytes):
        labels = None if entries.labels is None else entries.labels[start:stop].cpu()
        if saved is not None and _kept(saved, labels, folder):
            shards.append(saved.record)
        else:
            shards.append(write_shard(folder, tensors_between(entries, start, stop)))
    metadata = dict(entries.metadata)
    facts = {name: metadata.pop(name, None) for name in NETWORK_FACTS}
    manifest = Manifest(
        num_entries=entries.embeddings.shape[0],
        embedding_dim=entries.embeddings.shape[1],
        num_channels=entries.weights.shape[1],
        embedding_dtype=str(entries.embeddings.dtype).removeprefix("torch."),
        weight_dtype=str(entries.weights.dtype).removeprefix("torch."),
        has_labels=entries.labels is not None,
        has_keys=entries.keys is not None,
        **facts,
        metadata=metadata,
        library_versions=library_versions(),
        shards=tuple(shards),
    )
    path = folder / MANIFEST_NAME
    path.write_text(manifest.to_json(), encoding="utf-8")
    # safetensors makes files that only their owner may read; the manifest has the user's umask.
    for file in folder.iterdir():
        file.chmod(path.stat().st_mode)
        _flush_to_disk(file)


def _kept(saved: SavedShard, labels: Tensor | None, folder: Path) -> bool:
    """Whether the file need not be written, being in the bank or linked into the new one."""
    target = folder.parent / saved.path.name
    if saved.path.name != shard_name(saved.record.sha256):
        return False  # Version 1: the name does not tell the content.
    if labels is not None and saved.labels is not None and not labels.equal(saved.labels):
        return False
    if target.exists():
        return target.stat().st_size == saved.record.num_bytes
    try:
        os.link(saved.path, folder / saved.path.name)
    except OSError:
        return False  # Another disk, or the file is gone: its content is still mapped.
    return True


def _publish(unfinished: Path, folder: Path) -> None:
    shards = [file.name for file in unfinished.iterdir() if file.name != MANIFEST_NAME]
    for name in shards:
        os.replace(unfinished / name, folder / name)
    _flush_to_disk(folder)
    os.replace(unfinished / MANIFEST_NAME, folder / MANIFEST_NAME)
    _flush_to_disk(folder)


def _versions(embeddings: Tensor, weights: Tensor) -> tuple[int, int]:
    return version_of(embeddings), version_of(weights)


def _spans(entries: Entries, max_bytes: int) -> Iterator[tuple[int, int, SavedShard | None]]:
    """Start and stop of each shard, and the file that was loaded for it, if any."""
    entry = sum(
        rows.shape[1] * rows.dtype.itemsize for rows in (entries.embeddings, entries.weights)
    )
    entry += 8 if entries.labels is not None else 0
    if entries.keys is not None:
        entry += 8 + max(len(key.encode()) for key in entries.keys)
    step = max(1, max_bytes // entry)
    start = stop = 0
    parts = zip(entries.embeddings.parts, entries.weights.parts, entries.files, strict=True)
    for part, weights, file in parts:
        if file and len(part) <= step and file.versions == _versions(part, weights):
            yield from ((i, min(i + step, stop), None) for i in range(start, stop, step))
            yield stop, stop + len(part), file
            start = stop + len(part)
        stop += len(part)
    yield from ((i, min(i + step, stop), None) for i in range(start, stop, step))


def _flush_to_disk(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows has no handles of directories.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _in_memory(parts: list[Tensor]) -> Tensor:
    """One copy, so that no page of the files stays mapped."""
    joined = parts[0].new_empty((sum(len(part) for part in parts), parts[0].shape[1]))
    torch.cat(parts, out=joined)
    return joined


def _all_keys(folder: Path, manifest: Manifest, opened: list[dict[str, Tensor]]) -> tuple[str, ...]:
    keys: list[str] = []
    for shard, tensors in zip(manifest.shards, opened, strict=True):
        keys += decoded_keys(folder / shard.file, tensors["keys"], tensors["key_ends"])
    try:
        return checked_keys(keys, manifest.num_entries)
    except InputError as error:
        raise BankFileError(f"{folder}: {error}") from error
