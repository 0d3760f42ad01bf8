"""A weight bank that is searched through an index of FAISS: faster on millions of entries."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import threading
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor
from tqdm import tqdm

from captum_embed.encoders import version_of
from captum_embed.errors import BankFileError, InputError
from captum_embed.weight_bank.bank import WeightBank
from captum_embed.weight_bank.entries import ROWS_AT_ONCE
from captum_embed.weight_bank.equal_rows import RowFacts
from captum_embed.weight_bank.faiss_index import OF_SEARCH, Arrays, FaissIndex, checked_settings
from captum_embed.weight_bank.files import checked_folder
from captum_embed.weight_bank.rows import StackedRows
from captum_embed.weight_bank.search import nearest_rows, ranked_rows

_FORMAT = "captum_embed.index.1"
# A query this many times farther from the rows' mean than they are is beyond single precision.
_FAR = 1000.0


class IndexedBank(WeightBank):
    """A weight bank whose nearest entries an index of FAISS proposes.

    It is used wherever a :class:`WeightBank` is; only :meth:`search`, and what calls it, changes.
    The distances of the entries returned are exact, and equal ones are ordered by index. Which
    entries are returned is up to the index: ``"ivf"`` and ``"hnsw"`` miss some of the nearest.
    Queries for which the index proposes fewer than k entries, or that are far from all entries,
    are searched exactly. Banks that are made of this one (``bank[mask]``, ``to``, ``concat``)
    have no index.

    Args:
        bank: The entries.
        index: ``"flat"`` (all entries, in single precision), ``"ivf"`` (lists around centroids),
            or ``"hnsw"`` (a graph). They hold a copy of the embeddings in memory.
        path: Directory of the bank; the index is saved beside it, as
            ``<path>.<index>.safetensors``, and read from there the next time. It is built again
            where embeddings or settings are other ones. None: in memory only.
        progress: Show a bar while the index is built.
        **settings: Under FAISS' names. Of ``"ivf"``: ``nlist`` lists (default: the square root of
            the number of entries), of which a query looks into ``nprobe`` (32). Of ``"hnsw"``:
            ``m`` neighbours of a node (16), ``ef_construction`` (80), and ``ef_search`` (64)
            candidates of a query.

    Raises:
        InputError: An unknown index or setting, or a path where nothing can be written.
        MissingExtraError: FAISS is not installed: ``pip install faiss-cpu``.

    Source: Johnson et al., Billion-scale similarity search with GPUs, 2017; Malkov and Yashunin,
        Efficient and robust approximate nearest neighbor search using HNSW graphs, 2016.

    Example::

        >>> import torch
        >>> from captum_embed import WeightBank
        >>> from captum_embed.weight_bank import IndexedBank
        >>> bank = WeightBank(torch.eye(3), torch.rand(3, 5), keys=["jay", "tern", "wren"])
        >>> indexed = IndexedBank(bank, "hnsw", progress=False)
        >>> indexed.search(torch.tensor([[2.0, 0.0, 0.0]]), k=2)
        (tensor([[1.0000, 2.2361]]), tensor([[0, 1]]))
    """

    def __init__(
        self,
        bank: WeightBank,
        index: str = "hnsw",
        path: str | os.PathLike[str] | None = None,
        *,
        progress: bool = True,
        **settings: int,
    ) -> None:
        self._entries, self._known_facts = bank._entries, bank._known_facts
        self._kind, self._settings = index, checked_settings(index, settings)
        self._progress = progress
        self._file: Path | None = None
        if path is not None:
            folder = Path(os.path.realpath(checked_folder(path)))
            self._file = folder.with_name(f"{folder.name}.{index}.safetensors")
        self._lock = threading.Lock()
        self._known_index: tuple[tuple[int, ...], FaissIndex, _Scaled] | None = None
        self._index(self._row_facts())

    def _nearest(self, queries: Tensor, k: int, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
        facts, rows = self._row_facts(), self._entries.embeddings
        index, scaled = self._index(facts)
        wanted = scaled.allowed(allowed, facts)
        count = min(k, index.count if wanted is None else int(wanted.sum()))
        asked = scaled.queries(queries)
        places = torch.from_numpy(index.search(asked, count, wanted))
        exactly = (places < 0).any(1) | torch.from_numpy(
            np.linalg.norm(asked, axis=1) > _FAR * asked.shape[1] ** 0.5
        )
        distances, indices = nearest_rows(
            queries[exactly.to(queries.device)], rows, k, facts=facts, allowed=allowed
        )
        if exactly.all():
            return distances, indices
        proposed = ~exactly
        candidates = scaled.rows_at(places[proposed])
        near = ranked_rows(
            queries[proposed.to(queries.device)], candidates, k, facts=facts, allowed=allowed
        )
        if proposed.all():
            return near
        all_distances = distances.new_empty((len(queries), k))
        all_indices = indices.new_empty((len(queries), k))
        for of_these, (d, i) in ((exactly, (distances, indices)), (proposed, near)):
            all_distances[of_these.to(d.device)] = d
            all_indices[of_these.to(i.device)] = i
        return all_distances, all_indices

    def _index(self, facts: RowFacts) -> tuple[FaissIndex, _Scaled]:
        """Built once, and again where embeddings were changed in place."""
        rows = self._entries.embeddings
        versions = tuple(version_of(part) for part in rows.parts)
        with self._lock:
            if self._known_index is None or self._known_index[0] != versions:
                scaled = _Scaled.of(rows, facts)
                self._known_index = versions, self._read_or_built(scaled), scaled
            return self._known_index[1:]

    def _read_or_built(self, scaled: _Scaled) -> FaissIndex:
        index = FaissIndex(self._kind, len(scaled), self.embedding_dim, self._settings)
        if self._file is None:
            self._build(index, scaled)
            return index
        about = {
            "format": _FORMAT,
            "index": self._kind,
            "settings": json.dumps({k: v for k, v in self._settings.items() if k not in OF_SEARCH}),
            "embeddings": _checksum(self._entries.embeddings),
        }
        try:
            arrays = _read(self._file, about)
            if arrays is not None:
                index.restore(scaled.between, arrays)
                return index
        except BankFileError as error:
            warnings.warn(f"{self._file} was damaged ({error}); it is built again", stacklevel=6)
            index = FaissIndex(self._kind, len(scaled), self.embedding_dim, self._settings)
        if not os.access(self._file.parent, os.W_OK):
            raise InputError(
                f"the index cannot be written beside the bank, as {self._file}; give the path of a "
                "bank in a folder that can be written, or no path"
            )
        self._build(index, scaled)
        _write(self._file, about, index.arrays())
        return index

    def _build(self, index: FaissIndex, scaled: _Scaled) -> None:
        with tqdm(
            total=len(scaled), desc=f"{self._kind} index", disable=not self._progress, delay=2
        ) as bar:
            index.build(scaled.between, bar.update)


@dataclass(frozen=True)
class _Scaled:
    """The rows that differ, with their mean at zero: distances of such keep their precision."""

    rows: StackedRows
    places: Tensor | None  # Of the rows that differ; None: all do.
    mean: Tensor
    scale: float

    @classmethod
    def of(cls, rows: StackedRows, facts: RowFacts) -> _Scaled:
        places = None
        if facts.equals is not None:
            own = torch.arange(len(rows), device=facts.equals.device)
            places = (facts.equals == own).nonzero()[:, 0].to(rows.device)
        mean, squares = torch.zeros(rows.shape[1], dtype=torch.float64), 0.0
        # Divided first: squares and sums of large numbers are infinite.
        largest = max(float(part.abs().max()) for _, part in rows.chunks(ROWS_AT_ONCE)) or 1.0
        for _, part in rows.chunks(ROWS_AT_ONCE):
            mean += (part.cpu().double() / largest / len(rows)).sum(0)
        for _, part in rows.chunks(ROWS_AT_ONCE):
            squares += float((part.cpu().double() / largest - mean).square().sum())
        scale = largest * (squares / (len(rows) * len(mean))) ** 0.5
        return cls(rows, places, mean * largest, scale or 1.0)

    def __len__(self) -> int:
        return len(self.rows if self.places is None else self.places)

    def between(self, start: int, stop: int) -> np.ndarray:
        if self.places is None:
            return self.queries(self.rows.between(start, stop))
        return self.queries(self.rows.take(self.places[start:stop]))

    def queries(self, embeddings: Tensor) -> np.ndarray:
        """As the index has them: (N, D), float32."""
        scaled = (embeddings.cpu().double() - self.mean) / self.scale
        return scaled.float().contiguous().numpy()

    def rows_at(self, places: Tensor) -> Tensor:
        """The rows at places in the index."""
        return places if self.places is None else self.places.cpu()[places]

    def allowed(self, allowed: Tensor | None, facts: RowFacts) -> np.ndarray | None:
        """Which rows of the index stand for some allowed row."""
        if allowed is None:
            return None
        if self.places is None or facts.equals is None:
            return allowed.cpu().numpy()
        stands = torch.zeros(len(self.rows), dtype=torch.bool)
        stands[facts.equals.cpu()[allowed.cpu()]] = True
        return stands[self.places.cpu()].numpy()


def _checksum(rows: StackedRows) -> str:
    digest = hashlib.sha256(f"{rows.dtype}|{rows.shape}|".encode())
    for _, part in rows.chunks(ROWS_AT_ONCE):
        digest.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _content(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}|{array.dtype}|{array.shape}|".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _read(file: Path, about: dict[str, str]) -> Arrays | None:
    """Arrays of the file; None where there is none, or it is of something else.

    Raises:
        BankFileError: It is damaged.
    """
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="numpy") as opened:
            told: dict[str, Any] = opened.metadata() or {}
            if {name: told.get(name) for name in about} != about:
                return None
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BankFileError(str(error)) from error
    if told.get("content") != _content(arrays):
        raise BankFileError("its checksum does not match its content")
    return arrays


def _write(file: Path, about: dict[str, str], arrays: Arrays) -> None:
    for stranded in file.parent.glob(f".{glob.escape(file.name)}.*.unfinished"):
        # It is written within seconds: an hour later, whoever wrote it was killed.
        with suppress(OSError):
            if time.time() - stranded.stat().st_mtime > 3600:
                stranded.unlink()
    unfinished = file.with_name(f".{file.name}.{uuid4().hex}.unfinished")
    try:
        save_file(arrays, unfinished, metadata={**about, "content": _content(arrays)})
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)
