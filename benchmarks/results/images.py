"""images.parquet: the measures, a row per image, protocol and method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.core.files import write_atomically
from captum_embed.errors import InputError, MissingExtraError

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
except ImportError as error:
    raise MissingExtraError(
        "results of images are kept as Parquet, which needs pyarrow: pip install "
        "-e '.[benchmarks]' in a checkout"
    ) from error

FILE = "images.parquet"
Record = dict[str, Any]
Row = dict[str, Any]
# Records that are made into columns at a time.
BATCH = 256
# Of the image as a protocol shows it; the other columns are measures.
TYPES = {
    "key": pa.string(), "label": pa.int64(), "protocol": pa.string(), "method": pa.string(),
    "unreadable": pa.string(), "left_out": pa.string(), "width": pa.int64(),
    "height": pa.int64(), "box": pa.list_(pa.float64()), "num_tuples": pa.int64(),
    "forward_seconds": pa.float64(), "seconds": pa.float64(),
}  # fmt: skip


class ImageTable:
    """The rows of a run, sorted: the same whatever order the images came in.

    An image that could not be read has one row without a protocol, one that a protocol left out
    a row of that protocol without a method; floors are methods.

    Args:
        table (pa.Table): with the columns of `TYPES` and those of the measures.

    Example:
        >>> measured = {"methods": {"a": {"score": 0.5}}, "floors": {}}
        >>> records = [{"key": "1.png", "label": 1, "protocols": {"attention": measured}}]
        >>> ImageTable.from_records(records).rows("attention", "a")
        [{'key': '1.png', 'label': 1, 'protocol': 'attention', 'method': 'a', 'score': 0.5}]
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @classmethod
    def from_records(cls, records: Iterable[Record]) -> ImageTable:
        """From the lines of ``records.jsonl``, which are never all in memory."""
        remaining = iter(records)
        parts = [pa.table({name: pa.array([], kind) for name, kind in TYPES.items()})]
        while batch := list(islice(remaining, BATCH)):
            parts.append(_columns([row for record in batch for row in _rows(record)]))
        table = pa.concat_tables(parts, promote_options="permissive")
        return cls(table.sort_by([(name, "ascending") for name in ("protocol", "method", "key")]))

    @classmethod
    def read(cls, run: Path) -> ImageTable:
        """Of a finished run.

        Raises:
            InputError: there is none, or it is damaged.
        """
        path = run / FILE
        if not path.is_file():
            raise InputError(f"{run} holds no finished run: there is no {FILE} in it")
        try:
            return cls(pq.read_table(path))
        except pa.ArrowException as error:
            raise InputError(f"{path}: not a table of images ({error})") from error

    def write(self, run: Path) -> Path:
        """images.parquet in the folder of a run."""
        return write_atomically(
            run / FILE, lambda path: pq.write_table(self.table, path, compression="zstd")
        )

    def rows(self, protocol: str, method: str) -> list[Row]:
        """What a method or floor gave on each image; what was not measured is not in it."""
        chosen = (pc.field("protocol") == protocol) & (pc.field("method") == method)
        return [
            {name: value for name, value in row.items() if value is not None}
            for row in self.table.filter(chosen).to_pylist()
        ]

    def protocols(self) -> set[str]:
        """Those that measured an image."""
        chosen = self.table.filter(pc.field("method").is_valid())
        return set(chosen["protocol"].unique().to_pylist())

    def methods(self) -> set[str]:
        """The methods and floors that were measured."""
        return set(self.table["method"].drop_null().unique().to_pylist())

    def classes(self) -> dict[str, int]:
        """The class of each image."""
        columns = self.table.select(["key", "label"]).to_pydict()
        return dict(zip(columns["key"], columns["label"], strict=True))

    def shown(self, protocol: str) -> dict[str, Row]:
        """Every image that a protocol showed: its size, box and forward pass, by key."""
        chosen = (pc.field("protocol") == protocol) & pc.field("method").is_valid()
        names = ["key", "width", "height", "box", "forward_seconds"]
        return {row["key"]: row for row in self.table.filter(chosen).select(names).to_pylist()}

    def counts(self, protocols: Iterable[str], *, unreadable: int = 0) -> dict[str, Any]:
        """How many images were measured, and why the others were not.

        Args:
            protocols (iterable of str): of the run.
            unreadable (int): training and test images that were dropped before.
        """
        left_out = self.table.filter(pc.field("left_out").is_valid())["protocol"].to_pylist()
        return {
            "images": len(self.table["key"].unique()),
            "unreadable": unreadable + self.table["unreadable"].drop_null().length(),
            "measured": {name: len(self.shown(name)) for name in protocols},
            "left_out": {name: left_out.count(name) for name in protocols},
        }


def _rows(record: Record) -> Iterator[Row]:
    image = {"key": record["key"], "label": record.get("label")}
    if "unreadable" in record:
        yield {**image, "unreadable": record["unreadable"]}
    for protocol, measured in record.get("protocols", {}).items():
        of_protocol = {**image, "protocol": protocol}
        if "left_out" in measured:
            yield {**of_protocol, "left_out": measured["left_out"]}
            continue
        width, height = measured.get("size", (None, None))
        shown = {
            **of_protocol, "width": width, "height": height, "box": measured.get("box"),
            "num_tuples": measured.get("num_tuples"),
            "forward_seconds": measured.get("forward_seconds"),
        }  # fmt: skip
        for method, measures in {**measured["floors"], **measured["methods"]}.items():
            if taken := sorted(measures.keys() & (TYPES.keys() - {"seconds"})):
                raise InputError(f"{protocol}: a measure cannot be named {', '.join(taken)}")
            yield {**shown, "method": method, **measures}


def _columns(rows: list[Row]) -> pa.Table:
    names = dict.fromkeys([*TYPES, *(name for row in rows for name in row)])
    columns = {}
    for name in names:
        column = pa.array([row.get(name) for row in rows], TYPES.get(name))
        if pa.types.is_list(column.type) and pa.types.is_int64(column.type.value_type):
            column = column.cast(pa.list_(pa.int32()))
        columns[name] = column
    return pa.table(columns)
