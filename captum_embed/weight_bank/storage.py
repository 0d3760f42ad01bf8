"""A weight bank on disk: a directory of safetensors shards and a manifest. No pickle anywhere.

A shard is named after its content and never changed. The manifest names the shards, and is
replaced last, by one rename: at any moment the directory is the earlier bank or the new one.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor

from captum_embed.errors import BankFileError, InputError
from captum_embed.weight_bank.entries import Entries, Shard
from captum_embed.weight_bank.files import (
    MANIFEST_NAME,
    NETWORK_FACTS,
    Manifest,
    checked_folder,
    is_shard_name,
    library_versions,
    read_manifest,
    require_intact,
    shard_name,
    tensors_between,
    write_shard,
)
from captum_embed.weight_bank.reading import read_bank, status_of, versions_of

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}

# What else a bank's directory holds while it is saved.
_LOCK_NAME = ".lock"
_UNFINISHED = ".unfinished"
# How long a saver waits for another one before it raises BankFileError.
LOCK_SECONDS = 600.0


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
            has been saving there for ``LOCK_SECONDS``.
    """
    # Links are followed, so that the new bank lies on the disk of the one it replaces.
    folder = Path(os.path.realpath(checked_folder(path)))
    size = _bytes(max_shard_size)
    require_replaceable(folder)
    with _writing(folder):
        _replace(folder, entries, size, verify=True)


def update_bank(
    path: str | os.PathLike[str],
    change: Callable[[Entries], Entries],
    max_shard_size: int | str,
    verify: bool,
) -> None:
    """Replaces a bank by what is made of it, in one step, with no other writer in between.

    Args:
        path: Directory of the bank.
        change: From the entries that there are, mapped from their files, to those that are to be.
        max_shard_size: As in :func:`write_bank`.
        verify: Compare the checksums of the files that stay, which reads every byte once.

    Raises:
        BankFileError: There is no bank, or it is damaged; and as :func:`write_bank`.
    """
    folder = Path(os.path.realpath(checked_folder(path)))
    size = _bytes(max_shard_size)
    read_manifest(folder)
    require_replaceable(folder)
    with _writing(folder):
        entries = read_bank(folder, mmap=True, verify=verify)
        _replace(folder, change(entries), size, verify=verify)


def _replace(folder: Path, entries: Entries, size: int, *, verify: bool) -> None:
    _remove_unlisted(folder)
    try:
        _write_files(folder / _UNFINISHED, entries, size, verify)
        _publish(folder / _UNFINISHED, folder)
    finally:
        _remove_unlisted(folder)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    advice = "what was there before is unchanged: make room or give another path, and save again"
    with disk_errors(f"the weight bank could not be saved as {folder}", advice), _locked(folder):
        yield


@contextmanager
def disk_errors(what: str, advice: str) -> Iterator[None]:
    """Raises BankFileError, with these words around it, in place of what a disk raises."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise BankFileError(f"{what} ({error}); {advice}") from error


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
    lock = FileLock(folder / _LOCK_NAME, timeout=LOCK_SECONDS)
    while not lock.is_locked:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise BankFileError(
                f"another saver has held {folder} for {LOCK_SECONDS:.0f} s; save again when it is "
                f"done, or remove {folder / _LOCK_NAME} if there is none"
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


def _write_files(folder: Path, entries: Entries, max_bytes: int, verify: bool) -> None:
    folder.mkdir()
    shards = []
    for start, stop, part in _spans(entries, max_bytes):
        record = None if part is None else _kept_file(entries, part, start, stop, folder, verify)
        shards.append(record or write_shard(folder, tensors_between(entries, start, stop)))
    metadata = dict(entries.metadata)
    facts = {name: metadata.pop(name, None) for name in NETWORK_FACTS}
    manifest = Manifest(
        num_entries=entries.embeddings.shape[0],
        embedding_dim=entries.embeddings.shape[1],
        num_channels=entries.weights.shape[1],
        embedding_dtype=str(entries.embeddings.dtype).removeprefix("torch."),
        weight_dtype=str(entries.weights.parts[0].dtype).removeprefix("torch."),
        top_channels=getattr(entries.weights, "num_kept", None),
        has_labels=entries.label_source is not None,
        has_keys=entries.key_source is not None,
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


def _kept_file(
    entries: Entries, part: int, start: int, stop: int, folder: Path, verify: bool
) -> Shard | None:
    """The record of a file that need not be written, being in the bank or linked into the new one.

    Raises:
        BankFileError: It is damaged.
    """
    saved, rows = entries.files[part], entries.embeddings.kept[part]
    assert saved is not None
    if saved.path.name != shard_name(saved.record.sha256):
        return None  # Version 1: the name does not tell the content.
    target = folder.parent / saved.path.name
    if not target.exists():
        if rows is not None:
            return None  # What was dropped is not carried to another place.
        try:
            os.link(saved.path, target := folder / saved.path.name)
        except OSError:
            return None  # Another disk, or the file is gone: its content is still mapped.
    # What was compared as it was loaded, and not touched since, is not read again.
    require_intact(target, saved.record, verify and status_of(target) != saved.checked)
    if entries.labels is not None and saved.labels is not None:
        labels = saved.labels if rows is None else saved.labels[rows]
        if not entries.labels[start:stop].cpu().equal(labels):
            return None
    return replace(saved.record, dropped=_dropped_rows(rows, saved.record.num_entries))


def _publish(unfinished: Path, folder: Path) -> None:
    shards = [file.name for file in unfinished.iterdir() if file.name != MANIFEST_NAME]
    for name in shards:
        os.replace(unfinished / name, folder / name)
    _flush_to_disk(folder)
    os.replace(unfinished / MANIFEST_NAME, folder / MANIFEST_NAME)
    _flush_to_disk(folder)


def _dropped_rows(kept: Tensor | None, count: int) -> tuple[tuple[int, int], ...]:
    """Pairs of the first and the one after the last of rows that are not kept."""
    if kept is None:
        return ()
    ends = torch.cat([kept.new_tensor([-1]), kept, kept.new_tensor([count])])
    gaps = (ends.diff() > 1).nonzero()[:, 0]
    firsts, stops = (ends[gaps] + 1).tolist(), ends[gaps + 1].tolist()
    return tuple(zip(firsts, stops, strict=True))


def _spans(entries: Entries, max_bytes: int) -> Iterator[tuple[int, int, int | None]]:
    """Start and stop of each shard, and of which part there is a file with it, if any."""
    entry = entries.embeddings.row_bytes + entries.weights.row_bytes
    entry += 8 if entries.label_source is not None else 0
    if entries.keys is not None:
        entry += 8 + max(len(key.encode()) for key in entries.keys)
    step = max(1, max_bytes // entry)
    start = stop = 0
    parts = zip(entries.embeddings.parts, entries.weights.parts, entries.files, strict=True)
    for number, (part, weights, file) in enumerate(parts):
        length = entries.embeddings.lengths[number]
        if file and len(part) <= step and file.versions == versions_of(part, weights):
            yield from ((i, min(i + step, stop), None) for i in range(start, stop, step))
            yield stop, stop + length, number
            start = stop + length
        stop += length
    yield from ((i, min(i + step, stop), None) for i in range(start, stop, step))


def _flush_to_disk(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows has no handles of directories.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
