"""Files are written atomically: whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from captum_embed.command_line.files import (
    UNFINISHED,
    require_writable_folder,
    write_atomically,
)

__all__ = [
    "UNFINISHED",
    "require_writable_folder",
    "write_atomically",
    "write_bytes",
    "write_json",
    "write_text",
]


def write_bytes(path: Path, content: bytes) -> Path:
    return write_atomically(path, lambda temporary: temporary.write_bytes(content))


def write_text(path: Path, text: str) -> Path:
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> Path:
    """Standard JSON: NaN and infinity are refused rather than written."""
    return write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")
