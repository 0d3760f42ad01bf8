"""The files of a weight bank: shards in safetensors, and the manifest with their checksums."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from captum_embed.errors import BankFileError, InputError
from captum_embed.weight_bank.entries import DTYPES, Entries, Shard
from captum_embed.weight_bank.rows import index_dtype

MANIFEST_NAME = "manifest.json"
FORMAT = "captum_embed.weight_bank"
VERSION = 3

# Of the metadata, what tells which network and layer the bank belongs to.
NETWORK_FACTS = ("layer", "encoder_fingerprint", "explains", "layout")

_DTYPE_NAMES = [str(dtype).removeprefix("torch.") for dtype in DTYPES]

_SHARD_NAME = re.compile(r"bank-[0-9a-f]{16}\.safetensors")
# Version 1 counted its shards, and all its banks explain the loss.
_NUMBERED_SHARD_NAME = re.compile(r"bank-[0-9]{5,}-of-[0-9]{5,}\.safetensors")


def shard_name(sha256: str) -> str:
    """File name of a shard, by its content.

    Example::

        >>> shard_name("0123456789abcdef" * 4)
        'bank-0123456789abcdef.safetensors'
    """
    return f"bank-{sha256[:16]}.safetensors"


def is_shard_name(name: str) -> bool:
    """Whether a bank names shards like this; a path is never such a name."""
    return any(pattern.fullmatch(name) for pattern in (_SHARD_NAME, _NUMBERED_SHARD_NAME))


def checked_folder(path: str | os.PathLike[str]) -> Path:
    """The directory of a bank.

    Raises:
        InputError: It is no path, or one that no file can have, or safetensors cannot open.

    Example::

        >>> checked_folder("birds.bank").name
        'birds.bank'
    """
    given = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    try:
        # Of a relative path, with what leads to it.
        if isinstance(given, str) and b"\0" not in os.path.abspath(given).encode():
            return Path(given)
    except UnicodeEncodeError:
        pass
    raise InputError(
        f"the path of a weight bank is {path!r}; expected a directory, as a string or a "
        "pathlib.Path, without null characters, in a place whose name is UTF-8"
    )


@dataclass(frozen=True)
class Manifest:
    """Content of ``manifest.json``; dtypes by their torch names, such as ``float32``."""

    num_entries: int
    embedding_dim: int
    num_channels: int
    embedding_dtype: str
    weight_dtype: str
    top_channels: int | None
    has_labels: bool
    has_keys: bool
    layer: str | None
    encoder_fingerprint: str | None
    explains: str | None
    layout: str | None
    metadata: dict[str, str]
    library_versions: dict[str, str]
    shards: tuple[Shard, ...]

    def to_json(self) -> str:
        """The file's text, closed with a checksum of all the rest of it."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return json.dumps({**content, "checksum": _checksum(content)}, indent=2) + "\n"


def library_versions() -> dict[str, str]:
    """Versions of the packages that shape a bank."""
    return {package: _version(package) for package in ("captum_embed", "safetensors", "torch")}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def read_manifest(folder: Path) -> Manifest:
    """Reads and checks the manifest of a bank.

    Args:
        folder: Directory of the bank.

    Returns:
        The manifest; its shard names are plain file names inside ``folder``.

    Raises:
        BankFileError: It is absent, no manifest, of a newer version, altered or inconsistent.
    """
    path = folder / MANIFEST_NAME
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise BankFileError(_no_manifest(folder)) from None
    except OSError as error:
        raise BankFileError(f"{path} cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise BankFileError(f"{path} is not JSON ({error}); save the bank again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BankFileError(
            f'{path} is not the manifest of a weight bank (no "format": "{FORMAT}")'
        )
    given = content.get("version")
    if isinstance(given, bool) or given not in range(1, VERSION + 1):
        newer = isinstance(given, int) and given > VERSION
        raise BankFileError(
            f"{path} has format version {given!r}, and this captum_embed reads 1 to {VERSION}; "
            + ("upgrade captum_embed" if newer else "build the bank again")
        )
    if content.pop("checksum", None) != _checksum(content):
        raise BankFileError(
            f"{path} was altered: its checksum does not match its content; save the bank again"
        )
    return _parsed(path, content)


def _checksum(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _no_manifest(folder: Path) -> str:
    if not folder.is_dir():
        return f"there is no directory {folder}"
    return f"{folder} is not a weight bank: it has no {MANIFEST_NAME}; save the bank again"


def _parsed(path: Path, content: dict[str, Any]) -> Manifest:
    values: dict[str, Any] = {field.name: content.get(field.name) for field in fields(Manifest)}
    if content["version"] == 1:
        values |= {"explains": "loss", "layout": None}
    if content["version"] < 3:
        values["top_channels"] = None
    shards = values["shards"]
    if not isinstance(shards, list) or not shards:
        raise BankFileError(f"{path}: 'shards' is {shards!r}; expected a list of files")
    values["shards"] = tuple(_parsed_shard(path, shard, content["version"]) for shard in shards)
    expected = {
        **dict.fromkeys(("num_entries", "embedding_dim", "num_channels"), _is_count),
        **dict.fromkeys(("embedding_dtype", "weight_dtype"), _is_text),
        **dict.fromkeys(("has_labels", "has_keys"), lambda value: isinstance(value, bool)),
        **dict.fromkeys(NETWORK_FACTS, lambda v: v is None or _is_text(v)),
        "top_channels": lambda value: value is None or _is_count(value),
        **dict.fromkeys(("metadata", "library_versions"), _is_text_mapping),
    }
    for name, fits in expected.items():
        if not fits(values[name]):
            raise BankFileError(f"{path}: '{name}' is {values[name]!r}, which cannot be")
    manifest = Manifest(**values)
    total = sum(
        shard.num_entries - sum(stop - first for first, stop in shard.dropped)
        for shard in manifest.shards
    )
    if total != manifest.num_entries:
        raise BankFileError(
            f"{path} announces {manifest.num_entries} entries, and its shards hold {total}"
        )
    return manifest


def _parsed_shard(path: Path, shard: Any, version: int) -> Shard:
    record = shard if isinstance(shard, dict) else {}
    name: Any = record.get("file")
    if not _is_text(name) or not is_shard_name(name):
        raise BankFileError(
            f"{path} names the shard {name!r}; expected a plain file name such as "
            f"{shard_name('0123456789abcdef')!r}"
        )
    num_entries, num_bytes, digest = map(record.get, ("num_entries", "num_bytes", "sha256"))
    if not _is_count(num_entries) or not _is_count(num_bytes) or not _is_text(digest):
        raise BankFileError(f"{path}: the record of shard {name} is incomplete")
    if version > 1 and name != shard_name(digest):
        raise BankFileError(f"{path}: shard {name} is not named after its SHA-256, {digest}")
    dropped = record.get("dropped", []) if version > 2 else []
    if not _are_spans(dropped, num_entries):
        raise BankFileError(
            f"{path}: the rows dropped from shard {name} are {dropped!r}; expected pairs that "
            f"ascend, within {num_entries} rows, and leave some"
        )
    return Shard(name, num_entries, num_bytes, digest, tuple((a, b) for a, b in dropped))


def _are_spans(value: Any, count: int) -> bool:
    if not isinstance(value, list) or not all(isinstance(p, list) and len(p) == 2 for p in value):
        return False
    ends = [end for pair in value for end in pair]
    if not all(isinstance(end, int) and not isinstance(end, bool) for end in ends):
        return False
    ascending = all(a < b for a, b in zip([-1, *ends], [*ends, count + 1], strict=True))
    return ascending and ends != [0, count]


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str)


def _is_text_mapping(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def tensors_between(entries: Entries, start: int, stop: int) -> dict[str, Tensor]:
    """What a shard of entries ``start`` to ``stop`` (exclusive) holds, by name, on the CPU."""
    tensors = {
        # Copied where need be: safetensors refuses tensors that share memory.
        name: rows.cpu().contiguous()
        for name, rows in {
            **entries.embeddings.tensors("embeddings", start, stop),
            **entries.weights.tensors("weights", start, stop),
        }.items()
    }
    memory = tensors["embeddings"].untyped_storage().data_ptr()
    if "weights" in tensors and tensors["weights"].untyped_storage().data_ptr() == memory:
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


def require_intact(path: Path, shard: Shard, verify: bool) -> None:
    """Refuses a file of another size, or another checksum, than its bank says.

    Raises:
        BankFileError: Which.
    """
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
        require_intact(path, shard, verify)
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise BankFileError(f"{path} is missing, and the bank's manifest lists it") from None
    except (SafetensorError, OSError, RuntimeError) as error:  # torch opens it again, to map it.
        raise BankFileError(f"{path} is not a readable safetensors file: {error}") from error
    expected = _expected_tensors(shard.num_entries, manifest)
    if manifest.has_keys:
        expected["keys"] = tuple(tensors["keys"].shape) if "keys" in tensors else (0,), "uint8"
    held = {
        name: (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in tensors.items()
    }
    if held != expected:
        raise BankFileError(f"{path} holds {held}, and by the manifest it should be {expected}")
    for name in (manifest.embedding_dtype, manifest.weight_dtype):
        if name not in _DTYPE_NAMES:
            raise BankFileError(f"{path} holds {name}; expected one of {_DTYPE_NAMES}")
    return tensors


def _expected_tensors(count: int, manifest: Manifest) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of what a shard holds, by name, but for the characters of keys."""
    width, kept = manifest.num_channels, manifest.top_channels
    expected: dict[str, tuple[tuple[int, ...], str]] = {
        "embeddings": ((count, manifest.embedding_dim), manifest.embedding_dtype)
    }
    if kept is None:
        expected["weights"] = (count, width), manifest.weight_dtype
    else:
        channels = str(index_dtype(width)).removeprefix("torch.")
        expected["weights_channels"] = (count, kept), channels
        expected["weights_values"] = (count, kept), manifest.weight_dtype
        expected["weights_scales"] = (count, 1), "float32"
    if manifest.has_labels:
        expected["labels"] = (count,), "int64"
    if manifest.has_keys:
        expected["key_ends"] = (count,), "int64"
    return expected


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
