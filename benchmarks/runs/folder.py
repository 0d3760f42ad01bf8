"""The folder of one run: its identity, and one line per finished image.

A run is resumed by starting it again. Its identity (settings, data, network, versions, and what
times depend on) is written first; a run of another identity is refused the folder, and so is a
second process. Every finished image is one line of ``records.jsonl``, flushed to disk before the
next one starts. Processes that share a run write a file each, which the first one collects.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from benchmarks.core.files import UNFINISHED, require_writable_folder, write_json
from benchmarks.core.settings import differences
from captum_embed.errors import InputError

Record = dict[str, Any]
CHUNK = 1 << 16


class RunFolder:
    """Opens or resumes a run; a context manager that keeps other processes out meanwhile.

    Args:
        path (Path): made where it does not exist.
        identity (dict): JSON values by name; all must be equal for a run to be resumed.
        rank (int): number of this process; the first opens the folder before the others.
        count (int): of the processes that share the run.

    Raises:
        InputError: not writable, another process is at work in there, a run with another identity
            is in there, or damaged records.
    """

    def __init__(self, path: Path, identity: dict[str, Any], rank: int = 0, count: int = 1) -> None:
        self.path = path
        self.identity = identity
        require_writable_folder(path, "--output")
        self._identity_path = path / "run.json"
        self._records_path = path / "records.jsonl"
        self._own_path = path / f"records-{rank:05}.jsonl" if count > 1 else self._records_path
        self._lock = FileLock(path / ".lock")
        if rank > 0:
            self._refuse_another_run(identity)
            self.done = {record["key"] for record in self.records()}
            return
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                f"--output {path}: another run is at work in this folder; wait for its end, or "
                "choose another --output"
            ) from error
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise

    def _open(self) -> None:
        self._refuse_another_run(self.identity)
        # Nobody else is at work here: these are of runs that were killed while they wrote.
        for unfinished in list(self.path.rglob(f"{UNFINISHED}*")):
            if unfinished.is_dir():
                shutil.rmtree(unfinished)
            else:
                unfinished.unlink(missing_ok=True)
        if not self._identity_path.exists():
            write_json(self._identity_path, self.identity)
        self._drop_half_a_line(self._records_path)
        self.collect()
        self.done = {record["key"] for record in self.records()}

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    @property
    def cache(self) -> Path:
        """For what can be computed again: embeddings and weight banks."""
        folder = self.path / "cache"
        folder.mkdir(exist_ok=True)
        return folder

    def add(self, record: Record) -> None:
        """Keep the record of one image."""
        self._append(self._own_path, record)
        self.done.add(record["key"])

    def collect(self) -> None:
        """Put the records of all processes into one file, when none of them is at work."""
        known = {record["key"] for record in self.records()}
        for path in sorted(self.path.glob("records-*.jsonl")):
            self._drop_half_a_line(path)
            for record in self._records_of(path):
                # It is twice there where a run was killed while it collected.
                if record["key"] not in known:
                    self._append(self._records_path, record)
            path.unlink()

    def records(self) -> Iterator[Record]:
        """The records so far, read one at a time: all of them may not fit in memory."""
        return self._records_of(self._records_path)

    @staticmethod
    def _append(path: Path, record: Record) -> None:
        line = json.dumps(record, allow_nan=False) + "\n"
        with open(path, "a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    @staticmethod
    def _records_of(path: Path) -> Iterator[Record]:
        if not path.exists():
            return
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    record = json.loads(line)
                    record["key"]
                except (ValueError, KeyError, TypeError) as error:
                    raise InputError(
                        f"{path}, line {number}: not a record ({error}); delete the line, and the "
                        "image is done again"
                    ) from error
                yield record

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
            if not isinstance(theirs, dict):
                raise ValueError("not an object")
        except ValueError as error:
            raise InputError(f"{self._identity_path}: not JSON of a run ({error})") from error
        different = differences(identity, theirs)
        if different:
            raise InputError(
                f"--output {self.path} holds a run with other settings:\n  "
                + "\n  ".join(different)
                + "\nUse those settings to go on with it, or choose another --output."
            )

    @staticmethod
    def _drop_half_a_line(path: Path) -> None:
        """The line being written when the last run was killed."""
        if not path.exists():
            return
        with open(path, "r+b") as file:
            size = file.seek(0, os.SEEK_END)
            end = size
            while end > 0:
                start = max(0, end - CHUNK)
                file.seek(start)
                newline = file.read(end - start).rfind(b"\n")
                if newline >= 0:
                    end = start + newline + 1
                    break
                end = start
            if end < size:
                file.truncate(end)


@contextmanager
def resumable(output: Path) -> Iterator[None]:
    """Tells who interrupts a run how to go on with it."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command goes on from here ({output})")
        raise
