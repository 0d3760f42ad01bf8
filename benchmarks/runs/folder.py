"""The folder of one run: its identity, and one line per finished image.

A run is resumed by starting it again. Its identity (settings, data, network, versions) is
written first; a run of another identity is refused the folder. Every finished image is one line
of ``records.jsonl``, flushed to disk before the next one starts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.core.files import require_writable_folder, write_atomically, write_json
from benchmarks.core.settings import differences
from captum_embed.errors import InputError

Record = dict[str, Any]


class RunFolder:
    """Opens or resumes a run.

    Args:
        path (Path): made where it does not exist.
        identity (dict): JSON values by name; all must be equal for a run to be resumed.

    Raises:
        InputError: not writable, a run with another identity is in there, or damaged records.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self.identity = identity
        require_writable_folder(path, "--output")
        self._identity_path = path / "run.json"
        self._records_path = path / "records.jsonl"
        self._refuse_another_run(identity)
        if not self._identity_path.exists():
            write_json(self._identity_path, identity)
        self.records: dict[str, Record] = {r["key"]: r for r in self._read_records()}

    @property
    def cache(self) -> Path:
        """For what can be computed again: embeddings and weight banks."""
        folder = self.path / "cache"
        folder.mkdir(exist_ok=True)
        return folder

    def add(self, record: Record) -> None:
        """Keep the record of one image."""
        line = json.dumps(record, allow_nan=False) + "\n"
        with open(self._records_path, "a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.records[record["key"]] = record

    def _refuse_another_run(self, identity: dict[str, Any]) -> None:
        if not self._identity_path.exists():
            if self._records_path.exists():
                raise InputError(
                    f"{self._records_path} is there without {self._identity_path.name}, so nobody "
                    "can tell whose records these are; choose another --output"
                )
            return
        try:
            theirs = json.loads(self._identity_path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{self._identity_path}: not JSON ({error})") from error
        different = differences(identity, theirs)
        if different:
            raise InputError(
                f"--output {self.path} holds a run with other settings:\n  "
                + "\n  ".join(different)
                + "\nUse those settings to go on with it, or choose another --output."
            )

    def _read_records(self) -> list[Record]:
        if not self._records_path.exists():
            return []
        whole, newline, partial = self._records_path.read_text(encoding="utf-8").rpartition("\n")
        if partial:
            # The line being written when the last run was killed.
            write_atomically(self._records_path, lambda path: _write(path, whole + newline))
        records = []
        for number, line in enumerate(whole.split("\n") if whole else [], start=1):
            try:
                record = json.loads(line)
                record["key"]
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{self._records_path}, line {number}: not a record ({error}); delete the "
                    "line, and the image is done again"
                ) from error
            records.append(record)
        return records


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


@contextmanager
def resumable(output: Path) -> Iterator[None]:
    """Tells who interrupts a run how to go on with it."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command goes on from here ({output})")
        raise
