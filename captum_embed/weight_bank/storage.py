"""A weight bank on disk: a directory of safetensors shards and a manifest. No pickle anywhere.

A bank is written beside its final name and renamed when complete, so a save that fails or is
interrupted leaves nothing under that name, and an earlier bank there as it was.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from captum_embed.errors import BankFileError, InputError
from captum_embed.weight_bank.entries import DTYPES, Entries
from captum_embed.weight_bank.manifest import (
    MANIFEST_NAME,
    Manifest,
    Shard,
    is_bank_file,
    read_manifest,
    shard_name,
)
from captum_embed.weight_bank.rows import StackedRows

_DTYPES = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def library_versions() -> dict[str, str]:
    """Versions of the packages that shape a bank."""
    return {package: _version(package) for package in ("captum_embed", "safetensors", "torch")}


def write_bank(path: str | os.PathLike[str], entries: Entries, max_shard_size: int | str) -> None:
    """Writes a bank, or replaces one, in one step.

    Args:
        path: Directory to write; an existing one must be empty, or a bank and nothing else.
        entries: What to write.
        max_shard_size: Bytes per shard, or a string such as ``"500MB"``. A shard holds at
            least one entry.

    Raises:
        InputError: The path is taken by something else, or the size is not one.
    """
    # Links are followed, so that the new bank lies on the disk of the one it replaces.
    final = Path(os.path.realpath(path))
    size = _bytes(max_shard_size)
    _require_replaceable(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(4)
    unfinished = final.with_name(f".{final.name}.{token}.unfinished")
    unfinished.mkdir()
    try:
        _write_files(unfinished, entries, size)
        _put_in_place(unfinished, final, final.with_name(f".{final.name}.{token}.previous"))
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


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
    manifest = read_manifest(folder)
    for shard in manifest.shards:
        _require_intact(folder / shard.file, shard, verify)
    opened = [_shard_tensors(folder / shard.file, shard, manifest) for shard in manifest.shards]
    rows = {}
    for name in ("embeddings", "weights"):
        parts = [tensors[name] for tensors in opened]
        rows[name] = StackedRows(parts if mmap else [_in_memory(parts)])
    network = {"layer": manifest.layer, "encoder_fingerprint": manifest.encoder_fingerprint}
    known = {name: value for name, value in network.items() if value is not None}
    keys: list[str] = []
    for shard, tensors in zip(manifest.shards, opened, strict=True):
        if manifest.has_keys:
            keys.extend(_decoded(folder / shard.file, tensors["keys"], tensors["key_ends"]))
    return Entries(
        **rows,
        labels=torch.cat([t["labels"] for t in opened]) if manifest.has_labels else None,
        keys=tuple(keys) if manifest.has_keys else None,
        metadata={**manifest.metadata, **known},
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


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


def _require_replaceable(path: Path) -> None:
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise InputError(f"{path} is a file; a weight bank is a directory: give another path")
    names = sorted(entry.name for entry in path.iterdir())
    foreign = [name for name in names if not is_bank_file(name)]
    if foreign:
        raise InputError(
            f"{path} holds a file that is not a weight bank's ({foreign[0]}), which saving would "
            "delete: give another path, or move it away"
        )
    if names:
        try:
            read_manifest(path)
        except BankFileError as error:
            raise InputError(
                f"{path} is not an intact weight bank, and is not overwritten ({error}): give "
                "another path, or remove it"
            ) from error


def _write_files(folder: Path, entries: Entries, max_bytes: int) -> None:
    spans = list(_spans(entries, max_bytes))
    shards = []
    for number, (start, stop) in enumerate(spans, start=1):
        path = folder / shard_name(number, len(spans))
        save_file(_tensors_between(entries, start, stop), path, metadata={"format": "pt"})
        shards.append(Shard(path.name, stop - start, path.stat().st_size, _sha256(path)))
    metadata = dict(entries.metadata)
    manifest = Manifest(
        num_entries=entries.embeddings.shape[0],
        embedding_dim=entries.embeddings.shape[1],
        num_channels=entries.weights.shape[1],
        embedding_dtype=str(entries.embeddings.dtype).removeprefix("torch."),
        weight_dtype=str(entries.weights.dtype).removeprefix("torch."),
        has_labels=entries.labels is not None,
        has_keys=entries.keys is not None,
        layer=metadata.pop("layer", None),
        encoder_fingerprint=metadata.pop("encoder_fingerprint", None),
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


def _spans(entries: Entries, max_bytes: int) -> Iterator[tuple[int, int]]:
    count, dim = entries.embeddings.shape
    entry = dim * entries.embeddings.dtype.itemsize
    entry += entries.weights.shape[1] * entries.weights.dtype.itemsize
    entry += 8 if entries.labels is not None else 0
    if entries.keys is not None:
        entry += 8 + max(len(key.encode()) for key in entries.keys)
    step = max(1, max_bytes // entry)
    for start in range(0, count, step):
        yield start, min(start + step, count)


def _tensors_between(entries: Entries, start: int, stop: int) -> dict[str, Tensor]:
    tensors = {
        # Copied where need be: safetensors refuses tensors that share memory.
        "embeddings": entries.embeddings.between(start, stop).cpu().contiguous(),
        "weights": entries.weights.between(start, stop).cpu().contiguous(),
    }
    storages = [tensor.untyped_storage().data_ptr() for tensor in tensors.values()]
    if storages[0] == storages[1]:
        tensors["weights"] = tensors["weights"].clone()
    if entries.labels is not None:
        tensors["labels"] = entries.labels[start:stop].cpu().clone()
    if entries.keys is not None:
        encoded = [key.encode() for key in entries.keys[start:stop]]
        tensors["keys"] = torch.frombuffer(bytearray(b"".join(encoded)), dtype=torch.uint8)
        tensors["key_ends"] = torch.tensor([len(key) for key in encoded]).cumsum(0)
    return tensors


def _put_in_place(unfinished: Path, final: Path, previous: Path) -> None:
    if not final.exists():
        unfinished.rename(final)
        return
    final.rename(previous)
    try:
        unfinished.rename(final)
    except BaseException:
        previous.rename(final)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def _flush_to_disk(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _require_intact(path: Path, shard: Shard, verify: bool) -> None:
    if not path.is_file():
        raise BankFileError(f"{path} is missing, and the bank's manifest lists it")
    size = path.stat().st_size
    if size != shard.num_bytes:
        wrong = "is truncated" if size < shard.num_bytes else "was altered"
        raise BankFileError(f"{path} {wrong}: it has {size} bytes of {shard.num_bytes}")
    if verify and _sha256(path) != shard.sha256:
        raise BankFileError(
            f"{path} was altered: its SHA-256 differs from the manifest's; copy or save it again"
        )


def _shard_tensors(path: Path, shard: Shard, manifest: Manifest) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BankFileError(f"{path} is not a readable safetensors file: {error}") from error
    expected: dict[str, tuple[tuple[int, ...], str]] = {
        "embeddings": ((shard.num_entries, manifest.embedding_dim), manifest.embedding_dtype),
        "weights": ((shard.num_entries, manifest.num_channels), manifest.weight_dtype),
    }
    if manifest.has_labels:
        expected["labels"] = (shard.num_entries,), "int64"
    if manifest.has_keys:
        expected["key_ends"] = (shard.num_entries,), "int64"
        expected["keys"] = tuple(tensors["keys"].shape) if "keys" in tensors else (0,), "uint8"
    found = {
        name: (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in tensors.items()
    }
    if found != expected:
        raise BankFileError(f"{path} holds {found}, and by the manifest it should be {expected}")
    for name in (manifest.embedding_dtype, manifest.weight_dtype):
        if name not in _DTYPES:
            raise BankFileError(f"{path} holds {name}; expected one of {_DTYPES}")
    return tensors


def _in_memory(parts: list[Tensor]) -> Tensor:
    """One copy, so that no page of the files stays mapped."""
    joined = parts[0].new_empty((sum(len(part) for part in parts), parts[0].shape[1]))
    torch.cat(parts, out=joined)
    return joined


def _decoded(path: Path, joined: Tensor, ends: Tensor) -> list[str]:
    stops = ends.tolist()
    if stops != sorted(stops) or stops[0] < 0 or stops[-1] != len(joined):
        raise BankFileError(f"{path} was altered: its keys do not add up")
    text = joined.numpy().tobytes()
    try:
        return [text[i:j].decode() for i, j in zip([0, *stops[:-1]], stops, strict=True)]
    except UnicodeDecodeError as error:
        raise BankFileError(f"{path} was altered: a key is not text ({error})") from error
