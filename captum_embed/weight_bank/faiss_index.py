"""Indexes of FAISS over rows: built, searched, and taken apart into arrays that can be saved.

FAISS reads its own files without checks, so that a file from elsewhere could do harm. What is
saved here is only the structure: lists or a graph, as plain arrays, which are checked when they
are put together again. The rows themselves come from the bank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from captum_embed.errors import BankFileError, InputError, MissingExtraError

Rows = Callable[[int, int], np.ndarray]
Arrays = dict[str, np.ndarray]

# The settings of each kind, under the names of FAISS, and what they are unless given.
SETTINGS: dict[str, dict[str, int | None]] = {
    "flat": {},
    "ivf": {"nlist": None, "nprobe": 32},
    "hnsw": {"m": 16, "ef_construction": 80, "ef_search": 64},
}
# These change a search, and not the index.
OF_SEARCH = ("nprobe", "ef_search")

_ROWS_AT_ONCE = 2**14
_TRAINING_ROWS_PER_LIST = 64
_TRAINING_ROUNDS = 10


def checked_settings(kind: str, given: Mapping[str, int]) -> dict[str, int | None]:
    """The settings of a kind of index, those given before those by default.

    Raises:
        InputError: The kind or a setting is unknown, or a setting is no positive integer.

    Example::

        >>> checked_settings("ivf", {"nprobe": 8})
        {'nlist': None, 'nprobe': 8}
    """
    if kind not in SETTINGS:
        raise InputError(f"index is {kind!r}; expected one of {', '.join(SETTINGS)}")
    for name, value in given.items():
        if name not in SETTINGS[kind]:
            known = ", ".join(SETTINGS[kind]) or "none"
            raise InputError(f"an index of kind {kind} has no setting {name!r}; it has {known}")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} is {value!r}; expected an integer of 1 or more")
    return {**SETTINGS[kind], **given}


class FaissIndex:
    """An index over n rows (n, D) in single precision.

    Args:
        kind: One of ``SETTINGS``.
        count: Number of rows n.
        dim: Their width D.
        settings: Of :func:`checked_settings`.

    Raises:
        MissingExtraError: FAISS is not installed.
    """

    def __init__(self, kind: str, count: int, dim: int, settings: Mapping[str, int | None]) -> None:
        try:
            import faiss
        except ImportError as error:
            raise MissingExtraError(
                f"an index of kind {kind} needs FAISS: pip install faiss-cpu; without "
                "an index, WeightBank searches exactly"
            ) from error
        self._faiss: Any = faiss
        self._index: Any
        self.kind, self.count = kind, count
        self._settings = {name: value or 0 for name, value in settings.items()}
        if kind == "hnsw":
            self._index = faiss.IndexHNSWFlat(dim, self._settings["m"])
            self._index.hnsw.efConstruction = self._settings["ef_construction"]
        elif kind == "ivf":
            # The square root balances finding the lists and looking at what is in them.
            lists = min(self._settings["nlist"] or max(1, round(count**0.5)), count)
            self._index = faiss.IndexIVFFlat(faiss.IndexFlatL2(dim), dim, lists)
        else:
            self._index = faiss.IndexFlatL2(dim)

    def build(self, rows: Rows, done: Callable[[int], Any]) -> None:
        """Adds the rows.

        Args:
            rows: Gives rows start to stop (exclusive), float32.
            done: Called with the number of rows added, again and again.
        """
        if self.kind == "ivf":
            training = self._index.cp
            training.niter, training.min_points_per_centroid = _TRAINING_ROUNDS, 1
            training.max_points_per_centroid = _TRAINING_ROWS_PER_LIST
            step = max(1, self.count // (_TRAINING_ROWS_PER_LIST * self._index.nlist))
            self._index.train(np.concatenate([part[::step] for _, part in self._parts(rows)]))
        for _, part in self._parts(rows):
            self._index.add(part)
            done(len(part))

    def _parts(self, rows: Rows) -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, self.count, _ROWS_AT_ONCE):
            yield start, rows(start, min(start + _ROWS_AT_ONCE, self.count))

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None) -> np.ndarray:
        """Places (Q, k) of rows near each query (Q, D), float32; -1 where it found fewer.

        Args:
            queries: Shape (Q, D), float32.
            k: Number of rows.
            allowed: Which rows may be returned, (n,), bool; None: all.
        """
        faiss = self._faiss
        chosen: dict[str, Any] = {}
        if allowed is not None:
            chosen["sel"] = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        if self.kind == "hnsw":
            depth = max(self._settings["ef_search"], k)
            parameters = faiss.SearchParametersHNSW(efSearch=depth, **chosen)
        elif self.kind == "ivf":
            nprobe = min(self._settings["nprobe"], self._index.nlist)
            parameters = faiss.SearchParametersIVF(nprobe=nprobe, **chosen)
        else:
            parameters = faiss.SearchParameters(**chosen)
        places: np.ndarray = self._index.search(queries, k, params=parameters)[1]
        return places

    def arrays(self) -> Arrays:
        """The structure without the rows, for :meth:`restore`."""
        if self.kind == "hnsw":
            graph = self._index.hnsw
            graph_arrays = {
                name: self._faiss.vector_to_array(getattr(graph, name)).astype(np.int32)
                for name in ("levels", "neighbors")
            }
            return {**graph_arrays, "entry_point": np.array([graph.entry_point], np.int64)}
        if self.kind == "ivf":
            lists = self._index.invlists
            list_of = np.empty(self.count, np.int64)
            for number in range(self._index.nlist):
                size = lists.list_size(number)
                if size:
                    places = self._faiss.rev_swig_ptr(lists.get_ids(number), size)
                    list_of[places] = number
            centroids = self._index.quantizer.reconstruct_n(0, self._index.nlist)
            return {"centroids": centroids, "list_of": list_of}
        return {}

    def restore(self, rows: Rows, arrays: Arrays) -> None:
        """The index that these arrays are of, without building it.

        Raises:
            BankFileError: The arrays are not those of an index over such rows.
        """
        if self.kind == "hnsw":
            self._restore_graph(arrays)
        elif self.kind == "ivf":
            self._restore_lists(arrays)
        for start, part in self._parts(rows):
            if self.kind == "ivf":
                pointer = self._faiss.swig_ptr
                places = np.arange(start, start + len(part), dtype=np.int64)
                lists = arrays["list_of"][places]
                self._index.add_core(len(part), pointer(part), pointer(places), pointer(lists))
            else:
                getattr(self._index, "storage", self._index).add(part)
        self._index.ntotal = self.count

    def _restore_lists(self, arrays: Arrays) -> None:
        centroids, list_of = arrays["centroids"], arrays["list_of"]
        expected = (self._index.nlist, self._index.d), (self.count,)
        _require((centroids.shape, list_of.shape) == expected)
        _require(list_of.dtype == np.int64 and centroids.dtype == np.float32)
        _require(bool(np.isfinite(centroids).all()))
        _require(bool(((list_of >= 0) & (list_of < self._index.nlist)).all()))
        self._index.quantizer.add(centroids)
        self._index.is_trained = True

    def _restore_graph(self, arrays: Arrays) -> None:
        """Each node stands on levels 0 to levels - 1, and has room for neighbors on each."""
        graph, to_array = self._index.hnsw, self._faiss.vector_to_array
        levels, neighbors = arrays["levels"], arrays["neighbors"]
        entry = arrays["entry_point"]
        room = to_array(graph.cum_nneighbor_per_level).astype(np.int64)
        _require(levels.shape == (self.count,) and neighbors.ndim == 1 and entry.shape == (1,))
        _require(levels.dtype == neighbors.dtype == np.int32 and entry.dtype == np.int64)
        _require(levels.min() >= 1 and levels.max() < len(room))
        offsets = np.concatenate([[0], room[levels].cumsum()])
        _require(len(neighbors) == offsets[-1])
        _require(neighbors.min() >= -1 and neighbors.max() < self.count)
        _require(0 <= entry[0] < self.count and levels[entry[0]] == levels.max())
        for level in range(1, int(levels.max())):
            own = offsets[:-1][levels > level, None] + np.arange(room[level], room[level + 1])
            there = neighbors[own]
            _require(bool((levels[there[there >= 0]] > level).all()))
        for name, array in (
            ("levels", levels),
            ("neighbors", neighbors),
            ("offsets", offsets.astype(np.uint64)),
        ):
            self._faiss.copy_array_to_vector(array, getattr(graph, name))
        graph.entry_point, graph.max_level = int(entry[0]), int(levels.max()) - 1


def _require(fits: bool) -> None:
    if not fits:
        raise BankFileError("its arrays are not those of an index over these rows")
