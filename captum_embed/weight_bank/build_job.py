"""One build as a job: its processes, the files from which a later run goes on, and its end."""

from __future__ import annotations

import json
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from captum_embed.errors import InputError
from captum_embed.weight_bank.bank import WeightBank
from captum_embed.weight_bank.files import checked_folder
from captum_embed.weight_bank.processes import Processes
from captum_embed.weight_bank.storage import disk_errors, require_replaceable

# What an interruption may cost.
_SECONDS_BETWEEN_FILES = 30.0


class BuildRows:
    """Tensors with one row for each image, filled batch by batch.

    Args:
        count: Number of images B.
        name: Of the files.
        folder: Where the rows are also written, and read from when a build is resumed; None:
            nowhere.
        kept: Images whose rows are read from the files; None: all.

    Attributes:
        columns: Tensors (B, ...) by name, on the CPU; zero where there is no row yet.
        done: Which images have their row, (B,), bool.

    Example::

        >>> rows = BuildRows(3)
        >>> rows.put(torch.tensor([2, 0]), embeddings=torch.ones(2, 4))
        >>> rows.done.tolist(), rows.columns["embeddings"].shape
        ([True, False, True], torch.Size([3, 4]))
    """

    def __init__(
        self,
        count: int,
        name: str = "rows",
        folder: Path | None = None,
        kept: range | None = None,
    ) -> None:
        self.columns: dict[str, Tensor] = {}
        self.done = torch.zeros(count, dtype=torch.bool)
        self._name, self._folder = name, folder
        self._unwritten: list[dict[str, Tensor]] = []
        self._written = time.monotonic()
        for path in sorted(folder.glob(f"{name}-*.safetensors")) if folder else ():
            with suppress(SafetensorError, OSError):
                # Otherwise a machine went down as it was written: its images are done again.
                tensors = load_file(path)
                indices = tensors.pop("indices")
                wanted = indices < count
                if kept is not None:
                    wanted &= (indices >= kept.start) & (indices < kept.stop)
                self.fill(indices[wanted], {n: each[wanted] for n, each in tensors.items()})

    def put(self, indices: Tensor, **columns: Tensor) -> None:
        """New rows (N, ...) of images (N,), by name of the column."""
        rows = {name: each.detach().cpu() for name, each in columns.items()}
        self.fill(indices.cpu(), rows)
        if self._folder is not None:
            self._unwritten.append({"indices": indices.cpu(), **rows})
            if time.monotonic() - self._written > _SECONDS_BETWEEN_FILES:
                self.write()

    def fill(self, indices: Tensor, columns: Mapping[str, Tensor]) -> None:
        """Rows that are in a file already, or not this process's to write."""
        for name, rows in columns.items():
            if name not in self.columns:
                self.columns[name] = rows.new_zeros((len(self.done), *rows.shape[1:]))
            self.columns[name][indices] = rows
        self.done[indices] = True

    def write(self) -> None:
        """Writes what is in no file yet; a file has its name once it is whole."""
        self._written = time.monotonic()
        if self._folder is None or not self._unwritten:
            return
        joined = {
            name: torch.cat([part[name] for part in self._unwritten]) for name in self._unwritten[0]
        }
        path = self._folder / f"{self._name}-{uuid4().hex}.safetensors"
        unfinished = path.with_suffix(".unfinished")
        try:
            with _building(self._folder):
                save_file(joined, unfinished)
                unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        self._unwritten = []


class BuildJob:
    """A build by one process or several, which saves its banks or gives them back.

    Args:
        paths: Directories of the banks, one for each layer; None: nothing is written.
        processes: Who builds. On several machines they share the directories.

    Raises:
        InputError: A directory holds something else than a bank.
    """

    def __init__(
        self, paths: Sequence[str | os.PathLike[str]] | None, processes: Processes
    ) -> None:
        self.processes = processes
        self._paths = [Path(os.path.realpath(checked_folder(path))) for path in paths or ()]
        for path in self._paths:
            require_replaceable(path)
        first = self._paths[0] if self._paths else None
        self.folder = first and first.with_name(f"{first.name}.building")

    @contextmanager
    def running(self, settings: Mapping[str, str]) -> Iterator[None]:
        """The time of the work: rows of an earlier run with these settings are there from then.

        Raises:
            InputError: Processes differ in their settings; or another build is at work here.
        """
        text = json.dumps(settings, sort_keys=True, indent=1)
        for rank, other in enumerate(self.processes.exchange(text)):
            if other != text:
                raise InputError(
                    f"process {rank} builds with {other}, and process {self.processes.rank} with "
                    f"{text}; start all of them with the same network, data set and settings"
                )
        first = self.processes.rank == 0
        lock = FileLock(self.folder / ".lock", timeout=0) if self.folder and first else None
        try:
            with self.processes.together("preparing the folder of the build"):
                if self.folder and lock:
                    with _building(self.folder):
                        self._claim(self.folder, lock, text)
            yield
        finally:
            if lock:
                lock.release()

    def rows(self, count: int, name: str, kept: range | None = None) -> BuildRows:
        """Rows for ``count`` images, with those of an earlier run; see :class:`BuildRows`."""
        return BuildRows(count, name, self.folder, kept)

    def saved(self, banks: Sequence[WeightBank | None]) -> list[WeightBank]:
        """Writes banks of which each process has a part, or None: its shards, then the manifest."""
        folder = self.folder
        assert folder is not None
        with self.processes.together("writing the shards"):
            for number, bank in enumerate(banks):
                if bank is not None:
                    bank.save(folder / f"shards-{number}-{self.processes.rank:05}")
        with self.processes.together("writing the manifest"):
            if self.processes.rank == 0:
                for number, path in enumerate(self._paths):
                    parts = sorted(folder.glob(f"shards-{number}-*"))
                    # Files of saved parts become those of the whole, and are not written again.
                    loaded = [WeightBank.load(part, verify=False) for part in parts]
                    WeightBank.concat(loaded).save(path)
                shutil.rmtree(folder, ignore_errors=True)
        return [WeightBank.load(path, verify=False) for path in self._paths]

    @staticmethod
    def _claim(folder: Path, lock: FileLock, text: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise InputError(
                f"another process builds a bank in {folder} now; wait for it, or give another path"
            ) from None
        note = folder / "build.json"
        if not note.exists() or note.read_text() != text:
            if note.exists():
                warnings.warn(
                    f"the unfinished build in {folder} was of another network, data set or other "
                    "settings, and is started anew",
                    stacklevel=6,
                )
            for file in folder.glob("*.safetensors"):
                file.unlink()
            note.write_text(text)
        for part in folder.glob("shards-*"):
            shutil.rmtree(part)


def _building(folder: Path) -> AbstractContextManager[None]:
    return disk_errors(
        f"the build cannot write to {folder}",
        "make room or give another path, and build again: with this path it goes on where it was",
    )
