"""Files appear whole or not at all; a folder is written again only by the command that made it."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from captum_embed.command_line.images import printable
from captum_embed.errors import InputError

# What the names of files begin with that are not finished yet.
UNFINISHED = ".part-"
RESULTS = "results.json"
# What a folder's results may name, and so may have removed: never a path that leads elsewhere.
_OWN_FILE = re.compile(r"(index\.html|(overlays|maps)/[A-Za-z0-9_-]+\.(png|npy))")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> Path:
    """Have ``write`` fill a temporary file in the same folder, then move it into place.

    The temporary file keeps the suffix of ``path``, from which some writers tell the format.
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


class OutputFolder:
    """The folder of a command's results.

    Args:
        path: The folder; it must be absent, empty, or made by the same command before.
        made_by: Name of the command.
        force: Write into it whatever is there; nothing but files of the same names is lost.

    Raises:
        InputError: It is in use by something else, or is a file.
    """

    def __init__(self, path: str, made_by: str, *, force: bool) -> None:
        self.path = Path(path)
        self._made_by = made_by
        self._earlier: set[str] = set()
        if not self.path.is_dir():
            if os.path.lexists(self.path):
                raise InputError(f"{printable(path)} is a file; give a folder as --output")
            return
        self._earlier, own = self._results()
        if not own and not force and any(self.path.iterdir()):
            raise InputError(
                f"the folder {printable(path)} is in use, and not by this command; give another "
                "--output, or --force to write there all the same"
            )

    def _results(self) -> tuple[set[str], bool]:
        """Files that an earlier run of this command wrote, and whether there was one."""
        try:
            results: Any = json.loads((self.path / RESULTS).read_bytes())
            if results["made_by"] != self._made_by:
                return set(), False
            return {f for f in results["files"] if _OWN_FILE.fullmatch(f)}, True
        except (OSError, ValueError, LookupError, TypeError):
            return set(), False

    def begin(self, facts: dict[str, Any]) -> None:
        """Makes the folder, ours from now on, and takes away what an earlier run left in it."""
        require_writable_folder(self.path, "--output")
        self.write_results({**facts, "complete": False, "files": sorted(self._earlier)})
        for name in self._earlier:
            (self.path / name).unlink(missing_ok=True)

    def write_results(self, facts: dict[str, Any]) -> None:
        """Writes ``results.json``."""
        content = json.dumps({"made_by": self._made_by, **facts}, indent=1, allow_nan=False)
        self.write(RESULTS, lambda path: path.write_text(content + "\n", encoding="utf-8"))

    def write(self, name: str, write: Callable[[Path], Any]) -> None:
        """Writes one file of the folder, whole."""
        write_atomically(self.path / name, write)
