"""``manifest.json``: what a weight bank on disk holds, and the checksums to prove it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeGuard

from captum_embed.errors import BankFileError

MANIFEST_NAME = "manifest.json"
FORMAT = "captum_embed.weight_bank"
VERSION = 2

# Of the metadata, what tells which network and layer the bank belongs to.
NETWORK_FACTS = ("layer", "encoder_fingerprint", "explains", "layout")

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


@dataclass(frozen=True)
class Shard:
    """One safetensors file: its plain name, entries, bytes and checksum."""

    file: str
    num_entries: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Content of ``manifest.json``; dtypes by their torch names, such as ``float32``."""

    num_entries: int
    embedding_dim: int
    num_channels: int
    embedding_dtype: str
    weight_dtype: str
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
    except (ValueError, RecursionError) as error:
        raise BankFileError(f"{path} is not JSON ({error}); save the bank again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BankFileError(
            f'{path} is not the manifest of a weight bank (no "format": "{FORMAT}")'
        )
    given = content.get("version")
    if isinstance(given, bool) or given not in (1, VERSION):
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
    shards = values["shards"]
    if not isinstance(shards, list) or not shards:
        raise BankFileError(f"{path}: 'shards' is {shards!r}; expected a list of files")
    values["shards"] = tuple(_parsed_shard(path, shard, content["version"]) for shard in shards)
    expected = {
        **dict.fromkeys(("num_entries", "embedding_dim", "num_channels"), _is_count),
        **dict.fromkeys(("embedding_dtype", "weight_dtype"), _is_text),
        **dict.fromkeys(("has_labels", "has_keys"), lambda value: isinstance(value, bool)),
        **dict.fromkeys(NETWORK_FACTS, lambda v: v is None or _is_text(v)),
        **dict.fromkeys(("metadata", "library_versions"), _is_text_mapping),
    }
    for name, fits in expected.items():
        if not fits(values[name]):
            raise BankFileError(f"{path}: '{name}' is {values[name]!r}, which cannot be")
    manifest = Manifest(**values)
    total = sum(shard.num_entries for shard in manifest.shards)
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
    return Shard(name, num_entries, num_bytes, digest)


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str)


def _is_text_mapping(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))
