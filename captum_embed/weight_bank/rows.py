"""Rows of a matrix that may lie in several tensors, as a bank's do in the shards of its file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class StackedRows:
    """A matrix (B, D) kept as tensors (B_1, D), (B_2, D), ..., which are never joined.

    Args:
        parts: Matrices of one width, dtype and device, at least one; kept, not copied.

    Example::

        >>> import torch
        >>> rows = StackedRows([torch.zeros(2, 3), torch.ones(1, 3)])
        >>> rows.shape
        (3, 3)
        >>> rows.take(torch.tensor([2, 0]))
        tensor([[1., 1., 1.],
                [0., 0., 0.]])
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = tuple(parts)

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

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

    def joined(self) -> Tensor:
        """One tensor (B, D): the part itself where there is one, otherwise a copy."""
        return self.parts[0] if len(self.parts) == 1 else torch.cat(self.parts)

    def take(self, indices: Tensor) -> Tensor:
        """Rows of the given indices (...), as (..., D)."""
        if len(self.parts) == 1:
            return self.parts[0][indices]
        taken = self.parts[0].new_empty((*indices.shape, self.shape[1]))
        for start, part in self._starts():
            here = (indices >= start) & (indices < start + len(part))
            taken[here] = part[indices[here] - start]
        return taken

    def chunks(self, size: int) -> Iterator[tuple[int, Tensor]]:
        """Views of at most ``size`` rows, in order, each with the index of its first row."""
        for start, part in self._starts():
            for offset in range(0, len(part), size):
                yield start + offset, part[offset : offset + size]

    def between(self, start: int, stop: int) -> Tensor:
        """Rows start to stop (exclusive), without a copy where they lie in one part."""
        found = [
            part[max(start - first, 0) : stop - first]
            for first, part in self._starts()
            if first < stop and start < first + len(part)
        ]
        return found[0] if len(found) == 1 else torch.cat(found)

    def to(self, device: torch.device | str | int | None, dtype: torch.dtype | None) -> StackedRows:
        """The same rows elsewhere or in another precision; a part that fits is kept."""
        return StackedRows([part.to(device=device, dtype=dtype) for part in self.parts])

    def _starts(self) -> Iterator[tuple[int, Tensor]]:
        start = 0
        for part in self.parts:
            yield start, part
            start += len(part)
