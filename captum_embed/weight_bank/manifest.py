"""``manifest.json``: what a weight bank on disk holds, and the checksums to prove it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeGuard

from captum_embed.errors import BankFileError

MANIFEST_NAME = "manifest.json"
FORMAT = "captum_embed.weight_bank"
VERSION = 1

_SHARD_NAME = re.compile(r"bank-[0-9]{5,}-of-[0-9]{5,}\.safetensors")


def shard_name(number: int, count: int) -> str:
    """File name of a shard, counted from 1.

    Example::

        >>> shard_name(1, 4)
        'bank-00001-of-00004.safetensors'
    """
    return f"bank-{number:05d}-of-{count:05d}.safetensors"


def is_bank_file(name: str) -> bool:
    """Whether a bank writes files of this name; a path is never such a name."""
    return name == MANIFEST_NAME or _SHARD_NAME.fullmatch(name) is not None


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
    metadata: dict[str, str]
    library_versions: dict[str, str]
    shards: tuple[Shard, ...]

    def to_json(self) -> str:
        """The file's text, closed with a checksum of all the rest of it."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return json.dumps({**content, "checksum": _checksum(content)}, indent=2) + "\n"


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
    version = content.get("version")
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        raise BankFileError(
            f"{path} has format version {version!r}, and this captum_embed reads {VERSION}; "
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
        message = f"there is no directory {folder}"
        left = sorted(folder.parent.glob(f".{folder.name}.*.previous"))
        if left:
            message += f"; an interrupted save left the earlier bank as {left[0]}: rename that"
        return message
    return f"{folder} is not a weight bank: it has no {MANIFEST_NAME}"


def _parsed(path: Path, content: dict[str, Any]) -> Manifest:
    values: dict[str, Any] = {field.name: content.get(field.name) for field in fields(Manifest)}
    shards = values["shards"]
    if not isinstance(shards, list) or not shards:
        raise BankFileError(f"{path}: 'shards' is {shards!r}; expected a list of files")
    values["shards"] = tuple(_parsed_shard(path, shard) for shard in shards)
    expected = {
        **dict.fromkeys(("num_entries", "embedding_dim", "num_channels"), _is_count),
        **dict.fromkeys(("embedding_dtype", "weight_dtype"), _is_text),
        **dict.fromkeys(("has_labels", "has_keys"), lambda value: isinstance(value, bool)),
        **dict.fromkeys(("layer", "encoder_fingerprint"), lambda v: v is None or _is_text(v)),
        **dict.fromkeys(("metadata", "library_versions"), _is_text_mapping),
    }
    for name, fits in expected.items():
        if not fits(values[name]):
            raise BankFileError(f"{path}: '{name}' is {values[name]!r}, which cannot be")
    manifest = Manifest(**values)
    names = [shard.file for shard in manifest.shards]
    if len(set(names)) < len(names):
        raise BankFileError(f"{path} lists a shard twice")
    total = sum(shard.num_entries for shard in manifest.shards)
    if total != manifest.num_entries:
        raise BankFileError(
            f"{path} announces {manifest.num_entries} entries, and its shards hold {total}"
        )
    return manifest


def _parsed_shard(path: Path, shard: Any) -> Shard:
    record = shard if isinstance(shard, dict) else {}
    name: Any = record.get("file")
    if not _is_text(name) or _SHARD_NAME.fullmatch(name) is None:
        raise BankFileError(
            f"{path} names the shard {name!r}; expected a plain file name such as "
            f"{shard_name(1, 1)!r}"
        )
    num_entries, num_bytes, digest = map(record.get, ("num_entries", "num_bytes", "sha256"))
    if not _is_count(num_entries) or not _is_count(num_bytes) or not _is_text(digest):
        raise BankFileError(f"{path}: the record of shard {name} is incomplete")
    return Shard(name, num_entries, num_bytes, digest)


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str)


def _is_text_mapping(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))
