"""Matrices of a bank, kept in the parts they came in: all numbers of a row, or its largest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from captum_embed.errors import BankFileError

# Numbers of one temporary: 64 MiB in single precision.
_CHUNK_NUMBERS = 2**24
# Of one temporary that stays in cache: 1 MiB in double precision.
PAIR_NUMBERS = 2**17
COMPACT_COLUMNS = ("channels", "values", "scales")
# In half precision the number before 2: what is rounded up to 2 could be too large in its unit.
_LARGEST = 2 - 2**-10


class StackedRows:
    """A matrix (B, D) kept as tensors (B_1, D), (B_2, D), ..., which are never joined.

    Args:
        parts: Matrices of one width, dtype and device, at least one; not copied.
        kept: Of each part which rows there are, ascending; None: all.

    Example::

        >>> import torch
        >>> rows = StackedRows([torch.zeros(2, 3), torch.ones(1, 3)])
        >>> rows.shape
        (3, 3)
        >>> rows.take(torch.tensor([2, 0]))
        tensor([[1., 1., 1.],
                [0., 0., 0.]])
        >>> StackedRows([torch.arange(4)[:, None]], [torch.tensor([1, 3])]).joined()
        tensor([[1],
                [3]])
    """

    def __init__(self, parts: Sequence[Tensor], kept: Sequence[Tensor | None] = ()) -> None:
        self.parts = tuple(parts)
        self.kept = tuple(kept) or (None,) * len(self.parts)
        pairs = zip(self.parts, self.kept, strict=True)
        self.lengths = [len(part if rows is None else rows) for part, rows in pairs]
        self._stops = list(accumulate(self.lengths))

    def __len__(self) -> int:
        return self._stops[-1]

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows B and width D."""
        return len(self), self.parts[0].shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of every part."""
        return self.parts[0].dtype

    @property
    def device(self) -> torch.device:
        """Of every part."""
        return self.parts[0].device

    @property
    def row_bytes(self) -> int:
        """Of one row."""
        return self.parts[0].shape[1] * self.dtype.itemsize

    def joined(self) -> Tensor:
        """One tensor (B, D): the part itself where there is one, otherwise a copy."""
        pairs = zip(self.parts, self.kept, strict=True)
        return joined([part if rows is None else part[rows] for part, rows in pairs])

    def take(self, indices: Tensor) -> Tensor:
        """Rows of the given indices (...), as (..., D)."""
        if len(self.parts) == 1:
            place = self._place(0, indices)
            taken = self.parts[0].index_select(0, place.flatten())
            return taken.view(*place.shape, self.shape[1])
        taken = self.parts[0].new_empty((*indices.shape, self.shape[1]))
        stops = torch.tensor(self._stops, device=indices.device)
        part_of = torch.searchsorted(stops, indices.contiguous(), right=True)
        for number in part_of.unique().tolist():
            here = part_of == number
            start = self._stops[number] - self.lengths[number]
            taken[here] = self.parts[number][self._place(number, indices[here] - start)]
        return taken

    def chunks(self, size: int) -> Iterator[tuple[int, Tensor]]:
        """At most ``size`` rows at a time, in order, each with the index of its first row."""
        for number, length in enumerate(self.lengths):
            start = self._stops[number] - length
            for offset in range(0, length, size):
                yield start + offset, self._piece(number, offset, offset + size)

    def between(self, start: int, stop: int) -> Tensor:
        """Rows start to stop (exclusive), without a copy where they lie in one whole part."""
        pieces = [
            self._piece(number, max(start - last + length, 0), stop - last + length)
            for number, (length, last) in enumerate(zip(self.lengths, self._stops, strict=True))
            if last - length < stop and start < last
        ]
        return joined(pieces)

    def pick(self, indices: Tensor) -> StackedRows:
        """The rows of indices (K,) in any order, as one part."""
        return StackedRows([self.take(indices)])

    def select(self, selection: Sequence[Tensor | None], lazily: Sequence[bool]) -> StackedRows:
        """Some rows of each part, ascending, or none of an empty selection, or all for None.

        What is selected lazily is not copied.
        """
        parts: list[Tensor] = []
        kept: list[Tensor | None] = []
        for number, (wanted, lazy) in enumerate(zip(selection, lazily, strict=True)):
            if wanted is None:
                parts.append(self.parts[number])
                kept.append(self.kept[number])
            elif len(wanted):
                place = self._place(number, wanted)
                parts.append(self.parts[number] if lazy else self.parts[number][place])
                kept.append(place if lazy else None)
        return StackedRows(parts, kept)

    def to(self, device: torch.device | str | int | None, dtype: torch.dtype | None) -> StackedRows:
        """The same rows elsewhere or in another precision; a part that fits is kept."""
        pairs = zip(self.parts, self.kept, strict=True)
        pieces = [part if rows is None else part[rows] for part, rows in pairs]
        return StackedRows([piece.to(device=device, dtype=dtype) for piece in pieces])

    def in_memory(self) -> StackedRows:
        """One copy, so that no page of a file stays mapped."""
        joined = self.parts[0].new_empty(self.shape)
        for start, chunk in self.chunks(max(1, _CHUNK_NUMBERS // self.shape[1])):
            joined[start : start + len(chunk)] = chunk
        return StackedRows([joined])

    @staticmethod
    def stacked(matrices: Sequence[StackedRows]) -> StackedRows:
        """One under another."""
        return StackedRows(
            [part for rows in matrices for part in rows.parts],
            [kept for rows in matrices for kept in rows.kept],
        )

    def tensors(self, name: str, start: int, stop: int) -> dict[str, Tensor]:
        """What a file holds of rows start to stop (exclusive), by name."""
        return {name: self.between(start, stop)}

    def _place(self, number: int, indices: Tensor) -> Tensor:
        rows = self.kept[number]
        return indices if rows is None else rows.to(indices.device)[indices]

    def _piece(self, number: int, start: int, stop: int) -> Tensor:
        part, rows = self.parts[number], self.kept[number]
        return part[start:stop] if rows is None else part[rows[start:stop]]


class CompactRows:
    """A matrix (B, C) of which each row has its k numbers of largest magnitude, and otherwise 0.

    They are kept in half precision, as multiples of a power of two for each row, so that small
    rows lose no more digits than large ones. Answers are in single precision.

    Args:
        columns: Of each row its ``channels``, ascending, (B, k), int16 or int32; the ``values``
            there, (B, k), float16; and the ``scales`` that they are multiples of, (B, 1), float32.
        width: C.

    Example::

        >>> import torch
        >>> rows = CompactRows.of(StackedRows([torch.tensor([[0.5, 0.0, -3.0, 1.0]])]), 2)
        >>> rows.joined()
        tensor([[ 0.,  0., -3.,  1.]])
    """

    dtype = torch.float32

    def __init__(self, columns: Mapping[str, StackedRows], width: int) -> None:
        self._columns = {name: columns[name] for name in COMPACT_COLUMNS}
        self._width = width

    @staticmethod
    def of(rows: StackedRows | CompactRows, k: int) -> CompactRows:
        """The k numbers of largest magnitude of each row, in the same parts.

        Single precision has room for them.
        """
        count, width = rows.shape
        k = min(k, width)
        channels = torch.empty((count, k), dtype=index_dtype(width), device=rows.device)
        values = torch.empty((count, k), dtype=torch.float16, device=rows.device)
        scales = torch.empty((count, 1), dtype=torch.float32, device=rows.device)
        for start, chunk in rows.chunks(max(1, _CHUNK_NUMBERS // width)):
            largest = chunk.abs().topk(k, dim=1).indices.sort(dim=1).values
            numbers = chunk.gather(1, largest).float()
            exponents = torch.frexp(numbers.abs().amax(1, keepdim=True)).exponent
            units = torch.ldexp(torch.ones_like(numbers[:, :1]), exponents - 1)
            span = slice(start, start + len(chunk))
            channels[span], scales[span] = largest, units
            values[span] = (numbers / units).clamp(-_LARGEST, _LARGEST)
        columns = {"channels": channels, "values": values, "scales": scales}
        parts = {name: column.split(rows.lengths) for name, column in columns.items()}
        return CompactRows({name: StackedRows(each) for name, each in parts.items()}, width)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def values(self) -> StackedRows:
        """The numbers that are kept, in their units, (B, k)."""
        return self._columns["values"]

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """Those of the numbers that are kept."""
        return self.values.parts

    @property
    def lengths(self) -> list[int]:
        """Numbers of rows of the parts."""
        return self.values.lengths

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows B and width C."""
        return len(self), self._width

    @property
    def num_kept(self) -> int:
        """How many numbers k there are of a row."""
        return self.values.shape[1]

    @property
    def device(self) -> torch.device:
        """Of every part."""
        return self.values.device

    @property
    def row_bytes(self) -> int:
        """Of one row."""
        return sum(column.row_bytes for column in self._columns.values())

    def joined(self) -> Tensor:
        """One tensor (B, C), a copy."""
        return self._dense(*(column.joined() for column in self._columns.values()))

    def take(self, indices: Tensor) -> Tensor:
        """Rows of the given indices (...), as (..., C)."""
        return self._dense(*(column.take(indices) for column in self._columns.values()))

    def chunks(self, size: int) -> Iterator[tuple[int, Tensor]]:
        """At most ``size`` rows at a time, in order, each with the index of its first row."""
        columns = (column.chunks(size) for column in self._columns.values())
        for pieces in zip(*columns, strict=True):
            yield pieces[0][0], self._dense(*(piece for _, piece in pieces))

    def pick(self, indices: Tensor) -> CompactRows:
        """The rows of indices (K,) in any order, as one part."""
        return self._each(lambda column: column.pick(indices))

    def select(self, selection: Sequence[Tensor | None], lazily: Sequence[bool]) -> CompactRows:
        """As :meth:`StackedRows.select`."""
        return self._each(lambda column: column.select(selection, lazily))

    def to(self, device: torch.device | str | int | None, dtype: torch.dtype | None) -> CompactRows:
        """The same rows elsewhere; their precision is fixed."""
        return self._each(lambda column: column.to(device, None))

    def in_memory(self) -> CompactRows:
        """One copy, so that no page of a file stays mapped."""
        return self._each(StackedRows.in_memory)

    @staticmethod
    def stacked(matrices: Sequence[CompactRows]) -> CompactRows:
        """One under another, of one width and number of channels."""
        first = matrices[0]
        columns = {
            name: StackedRows.stacked([rows._columns[name] for rows in matrices])
            for name in COMPACT_COLUMNS
        }
        return CompactRows(columns, first._width)

    def tensors(self, name: str, start: int, stop: int) -> dict[str, Tensor]:
        """What a file holds of rows start to stop (exclusive), by name."""
        return {
            f"{name}_{column}": rows.between(start, stop) for column, rows in self._columns.items()
        }

    def require_valid(self, name: str) -> None:
        """Refuses channels that are not C's, ascending, and numbers that are not finite.

        Raises:
            BankFileError: Which.
        """
        size = max(1, _CHUNK_NUMBERS // self.num_kept)
        columns = (column.chunks(size) for column in self._columns.values())
        for (start, channels), (_, values), (_, scales) in zip(*columns, strict=True):
            right = (channels[:, :1] >= 0) & (channels[:, -1:] < self._width)
            right &= (channels.diff(dim=1) > 0).all(1, keepdim=True)
            finite = torch.isfinite(values).all(1) & torch.isfinite(scales).all(1)
            for what, fine in (("channels that cannot be", right[:, 0]), ("NaN", finite)):
                if not fine.all():
                    row = start + int((~fine).nonzero()[0])
                    raise BankFileError(
                        f"{name}, row {row}, hold {what} or infinite values; build the bank again"
                    )

    def _each(self, change: Callable[[StackedRows], StackedRows]) -> CompactRows:
        columns = {name: change(column) for name, column in self._columns.items()}
        return CompactRows(columns, self._width)

    def _dense(self, channels: Tensor, values: Tensor, scales: Tensor) -> Tensor:
        places = channels.long()
        if places.numel() and not 0 <= int(places.min()) <= int(places.max()) < self._width:
            raise BankFileError(
                f"the weight bank names channels up to {int(places.max())}, and has {self._width}; "
                "load it with verify=True to look for more, and build it again"
            )
        dense = values.new_zeros((*values.shape[:-1], self._width), dtype=torch.float32)
        return dense.scatter_(-1, places, values.float() * scales)


def joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors one after another; a single one itself."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def stacked_rows(matrices: Sequence[StackedRows | CompactRows]) -> StackedRows | CompactRows:
    """One matrix under another; all of them of one kind."""
    if isinstance(matrices[0], CompactRows):
        return CompactRows.stacked([rows for rows in matrices if isinstance(rows, CompactRows)])
    return StackedRows.stacked([rows for rows in matrices if isinstance(rows, StackedRows)])


def index_dtype(width: int) -> torch.dtype:
    """Of channels below ``width``."""
    return torch.int16 if width <= torch.iinfo(torch.int16).max else torch.int32


Rows = StackedRows | CompactRows
