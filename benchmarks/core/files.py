"""Files appear whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from captum_embed.errors import InputError

# What the names of files begin with that are not finished yet.
UNFINISHED = ".part-"


def write_atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Have `write` fill a temporary file in the same folder, then move it into place.

    The temporary file keeps the suffix of `path`, from which some writers tell the format.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{UNFINISHED}{os.getpid()}-{path.name}")
    try:
        temporary.touch()
        # safetensors makes files that only their owner may read; this one has the user's umask.
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_bytes(path: Path, content: bytes) -> Path:
    return write_atomically(path, lambda temporary: temporary.write_bytes(content))


def write_text(path: Path, text: str) -> Path:
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> Path:
    """Standard JSON: NaN and infinity are refused rather than written."""
    return write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def require_writable_folder(folder: Path, what: str) -> None:
    """Make the folder and prove that a file can be written there, before work starts.

    Raises:
        InputError: it is a file, or cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{what} {folder}: cannot write there ({error})") from error
