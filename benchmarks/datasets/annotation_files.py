"""Reading of annotation files. Every error names the file and the line."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from benchmarks.datasets.records import Box, BoxError, DatasetError

# Python itself would also read 1_0 and the digits of any script.
WHOLE_NUMBER = r"[0-9]{1,18}"
NUMBER = r"[+-]?(\d{1,30}(\.\d{0,30})?|\.\d{1,30})([eE][+-]?\d{1,3})?|[+-]?(inf|nan)"
MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 4000


def shortened(text: str) -> str:
    """A text of a file as it stands in an error: quoted, and not pages long."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, stripped line) of a UTF-8 text file, without blank lines."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: can't be read ({error.strerror or error})") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DatasetError(f"{path}, line {line}: not UTF-8 text ({error.reason})") from error
    # Not splitlines(): it also splits at form feeds and the like, and line numbers would shift.
    for number, line_text in enumerate(text.split("\n"), start=1):
        if stripped := line_text.strip():
            yield number, stripped


def read_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, fields) of a table of blank-separated columns.

    The last column takes the rest of the line, so that it may hold blanks.
    """
    for number, line in read_lines(path):
        fields = line.split(maxsplit=len(columns) - 1)
        if len(fields) != len(columns):
            expected = " ".join(f"<{column}>" for column in columns)
            raise DatasetError(f"{path}, line {number}: expected '{expected}', got {line!r}")
        yield number, fields


def read_keyed_rows(path: Path, columns: tuple[str, ...]) -> dict[int, tuple[int, list[str]]]:
    """Read a table whose first column is a number that may occur once.

    Returns:
        From the number to (line number, the other fields).
    """
    rows: dict[int, tuple[int, list[str]]] = {}
    for number, fields in read_rows(path, columns):
        key = parse_int(fields[0], columns[0], path, number)
        if key in rows:
            raise DatasetError(
                f"{path}, line {number}: {columns[0]} {key} occurs twice (first on line "
                f"{rows[key][0]})"
            )
        rows[key] = (number, fields[1:])
    return rows


def parse_int(text: str, name: str, path: Path, line: int) -> int:
    """Read a whole number >= 0, or raise an error that names the file and the line."""
    if re.fullmatch(WHOLE_NUMBER, text) is None:
        raise DatasetError(
            f"{path}, line {line}: {name} must be a whole number of at most 18 digits, got "
            f"{shortened(text)}"
        )
    return int(text)


def parse_box(fields: list[str], path: Path, line: int, image: str) -> Box:
    """Turn the text of ``x y width height`` into (x0, y0, x1, y1).

    Raises:
        BoxError: a number is not finite, or the box has no area.
    """
    where = f"{path}, line {line}: box of image {image}"
    if len(fields) != 4 or not all(re.fullmatch(NUMBER, field, re.ASCII) for field in fields):
        shown = ", ".join(shortened(field) for field in fields)
        raise BoxError(f"{where}: expected 4 numbers x y width height, got {shown}")
    x, y, width, height = (float(field) for field in fields)
    if not all(math.isfinite(value) for value in (x, y, width, height)):
        raise BoxError(f"{where}: not finite: {fields}")
    if width <= 0 or height <= 0:
        raise BoxError(f"{where}: width and height must be positive, got {width} x {height}")
    return (x, y, x + width, y + height)


def path_below(folder: Path, name: str, source: str) -> Path:
    """Join a file name read from a data file to a folder, refusing any way out of it.

    Args:
        folder (Path): what the name is relative to; it may itself be a symbolic link.
        name (str): relative path with ``/`` between its parts.
        source (str): where the name was read ("FILE, line N"), for the error.

    Raises:
        DatasetError: the name is absolute, has a ``..`` or leads outside by a symbolic link.
    """
    pure = PurePosixPath(name)
    windows = PureWindowsPath(name)
    if (
        not pure.parts
        or ".." in windows.parts
        or pure.is_absolute()
        or windows.anchor
        or "\0" in name
    ):
        raise DatasetError(f"{source}: {name!r} is not a file name below {folder}")
    if any(len(part.encode(errors="surrogatepass")) > MAX_NAME_BYTES for part in pure.parts):
        raise DatasetError(
            f"{source}: {shortened(name)} has a part of more than {MAX_NAME_BYTES} bytes, which "
            "no file name has"
        )
    if len(f"{folder.absolute()}/{name}".encode(errors="surrogatepass")) > MAX_PATH_BYTES:
        raise DatasetError(
            f"{source}: {shortened(name)} is longer than the {MAX_PATH_BYTES} bytes of a path"
        )
    path = folder / pure
    # Comparing resolved paths costs file system calls, so only where a link can be met.
    if path.exists():
        inside, base = os.path.realpath(path), os.path.realpath(folder)
        if os.path.commonpath([inside, base]) != base:
            raise DatasetError(f"{source}: {name!r} leads outside {folder}, to {inside}")
    return path
