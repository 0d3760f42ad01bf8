"""What a weight bank keeps of its images, and the checks that let nothing else in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_embed.errors import InputError

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

ROWS_AT_ONCE = 2**16


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
        pieces = [
            part[max(start - first, 0) : stop - first]
            for first, part in self._starts()
            if first < stop and start < first + len(part)
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def select(self, indices: Tensor) -> StackedRows:
        """The rows of ascending indices (K,), in parts as here; a part wanted whole is kept."""
        selected = []
        for start, part in self._starts():
            here = indices[(indices >= start) & (indices < start + len(part))] - start
            if len(here):
                selected.append(part if len(here) == len(part) else part[here])
        return StackedRows(selected)

    def to(self, device: torch.device | str | int | None, dtype: torch.dtype | None) -> StackedRows:
        """The same rows elsewhere or in another precision; a part that fits is kept."""
        return StackedRows([part.to(device=device, dtype=dtype) for part in self.parts])

    def _starts(self) -> Iterator[tuple[int, Tensor]]:
        start = 0
        for part in self.parts:
            yield start, part
            start += len(part)


@dataclass(frozen=True)
class Shard:
    """One safetensors file: its plain name, entries, bytes and checksum."""

    file: str
    num_entries: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class SavedShard:
    """A file of a saved bank, never changed once it has its name, and what was loaded from it.

    ``versions`` are those of its embeddings and weights then: they tell of changes in place.
    """

    path: Path
    record: Shard
    labels: Tensor | None
    versions: tuple[int, int]


@dataclass(frozen=True)
class Entries:
    """Rows (B, D) and (B, C), labels (B,), keys and metadata, all checked.

    ``files`` names, part by part, the file that holds exactly these entries, if there is one.
    """

    embeddings: StackedRows
    weights: StackedRows
    labels: Tensor | None
    keys: tuple[str, ...] | None
    metadata: dict[str, str]
    files: tuple[SavedShard | None, ...] = (None,)


def checked_entries(
    embeddings: Tensor,
    weights: Tensor,
    labels: Tensor | Sequence[int] | None,
    keys: Sequence[str] | None,
    metadata: Mapping[str, str] | None,
) -> Entries:
    """Entries from the arguments of :class:`WeightBank`, which says what they may be.

    Raises:
        InputError: An argument has another shape or type, or holds NaN or infinite values.
    """
    _require_matrix("embeddings", embeddings)
    _require_matrix("weights", weights)
    if len(embeddings) != len(weights) or embeddings.device != weights.device:
        raise InputError(
            f"embeddings have {len(embeddings)} rows on {embeddings.device}, weights "
            f"{len(weights)} on {weights.device}; expected one of each per image, on one device"
        )
    entries = Entries(
        embeddings=StackedRows([embeddings.detach()]),
        weights=StackedRows([weights.detach()]),
        labels=None if labels is None else _checked_labels(labels, embeddings),
        keys=None if keys is None else checked_keys(keys, len(embeddings)),
        metadata=_checked_metadata(metadata),
    )
    require_finite("embeddings", entries.embeddings, InputError)
    require_finite("weights", entries.weights, InputError)
    return entries


def _require_matrix(name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype not in DTYPES:
        given = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise InputError(f"{name} are {given}; expected a floating-point tensor, one row per image")
    if tensor.dim() != 2 or 0 in tensor.shape:
        raise InputError(
            f"{name} have shape {tuple(tensor.shape)}; expected (entries, numbers), neither of "
            "them 0"
        )


def require_finite(name: str, rows: StackedRows, error: type[ValueError]) -> None:
    """Raises ``error``, naming the first row, where values are NaN or infinite."""
    for start, chunk in rows.chunks(ROWS_AT_ONCE):
        finite = torch.isfinite(chunk).all(1)
        if not finite.all():
            row = start + int((~finite).nonzero()[0])
            raise error(
                f"{name}, row {row}, hold NaN or infinite values; leave the entry out, or look "
                "for them in the network and its images"
            )


def _checked_labels(labels: Tensor | Sequence[int], embeddings: Tensor) -> Tensor:
    try:
        given = torch.as_tensor(labels, device=embeddings.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"labels are not integers ({error}); number the classes") from error
    if given.dtype is torch.bool or given.is_floating_point() or given.is_complex():
        raise InputError(f"labels are {given.dtype}; expected integers, one per entry")
    if given.shape != (len(embeddings),):
        raise InputError(
            f"labels have shape {tuple(given.shape)}; expected ({len(embeddings)},), one per entry"
        )
    return given.to(torch.int64)


def checked_keys(keys: Sequence[str], count: int) -> tuple[str, ...]:
    """The keys, ``count`` distinct names; raises :class:`InputError` where they are not."""
    if isinstance(keys, str) or len(keys) != count:
        given = "one string" if isinstance(keys, str) else f"{len(keys)} names"
        raise InputError(f"keys are {given}; expected {count}, one per entry")
    seen: set[str] = set()
    for key in keys:
        if not _is_name(key):
            raise InputError(f"key {key!r} is not a name; expected text that is not empty")
        if key in seen:
            raise InputError(
                f"key {key!r} occurs twice; give each image a name of its own, such as its path"
            )
        seen.add(key)
    return tuple(keys)


def _is_name(key: Any) -> bool:
    try:
        return isinstance(key, str) and len(key.encode()) > 0
    except UnicodeEncodeError:
        return False


def _checked_metadata(metadata: Mapping[str, str] | None) -> dict[str, str]:
    checked = dict(metadata or {})
    for name, value in checked.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise InputError(f"metadata has {name!r}: {value!r}; expected strings by name")
    return checked
