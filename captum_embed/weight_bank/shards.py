"""One safetensors file of a weight bank: written, named after its content, read and checked."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from captum_embed.errors import BankFileError
from captum_embed.weight_bank.entries import DTYPES, Entries
from captum_embed.weight_bank.manifest import Manifest, Shard, shard_name

_DTYPES = [str(dtype).removeprefix("torch.") for dtype in DTYPES]


def tensors_between(entries: Entries, start: int, stop: int) -> dict[str, Tensor]:
    """What a shard of entries ``start`` to ``stop`` (exclusive) holds, by name, on the CPU."""
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


def write_shard(folder: Path, tensors: dict[str, Tensor]) -> Shard:
    """Writes a shard into the folder, under the name of its content."""
    path = folder / "shard"
    save_file(tensors, path, metadata={"format": "pt"})
    digest = _sha256(path)
    named = path.replace(folder / shard_name(digest))
    return Shard(named.name, len(tensors["embeddings"]), named.stat().st_size, digest)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _require_intact(path: Path, shard: Shard, verify: bool) -> None:
    size = path.stat().st_size
    if size != shard.num_bytes:
        wrong = "is truncated" if size < shard.num_bytes else "was altered"
        raise BankFileError(f"{path} {wrong}: it has {size} bytes of {shard.num_bytes}")
    if verify and _sha256(path) != shard.sha256:
        raise BankFileError(
            f"{path} was altered: its SHA-256 differs from the manifest's; copy or save it again"
        )


def shard_tensors(path: Path, shard: Shard, manifest: Manifest, verify: bool) -> dict[str, Tensor]:
    """Tensors of a shard by name, mapped from the file.

    Raises:
        BankFileError: The file is missing, truncated, altered, or holds something else.
    """
    try:
        _require_intact(path, shard, verify)
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise BankFileError(f"{path} is missing, and the bank's manifest lists it") from None
    except (SafetensorError, OSError, RuntimeError) as error:  # torch opens it again, to map it.
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


def decoded_keys(path: Path, joined: Tensor, ends: Tensor) -> list[str]:
    """Keys of a shard, from their joined UTF-8 bytes and where each ends.

    Raises:
        BankFileError: They do not add up, or are not text.
    """
    stops = ends.tolist()
    if stops != sorted(stops) or stops[0] < 0 or stops[-1] != len(joined):
        raise BankFileError(f"{path} was altered: its keys do not add up")
    text = joined.numpy().tobytes()
    try:
        return [text[i:j].decode() for i, j in zip([0, *stops[:-1]], stops, strict=True)]
    except UnicodeDecodeError as error:
        raise BankFileError(f"{path} was altered: a key is not text ({error})") from error
