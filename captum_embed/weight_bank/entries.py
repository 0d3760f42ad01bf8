"""What a weight bank keeps of its images, and the checks that let nothing else in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from captum_embed.errors import InputError
from captum_embed.weight_bank.rows import Rows, StackedRows

T = TypeVar("T")

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

ROWS_AT_ONCE = 2**16


@dataclass(frozen=True)
class Shard:
    """One safetensors file: its plain name, rows, bytes and checksum.

    ``dropped`` are its rows that are no entries (any more), as pairs of the first and the one
    after the last.
    """

    file: str
    num_entries: int
    num_bytes: int
    sha256: str
    dropped: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class SavedShard:
    """A file of a saved bank, never changed once it has its name, and what was loaded from it.

    ``versions`` are those of its embeddings and weights then: they tell of changes in place.
    ``checked`` is the file's status when its checksum was compared, if it was.
    """

    path: Path
    record: Shard
    labels: Tensor | None
    versions: tuple[int, int]
    checked: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Entries:
    """Rows (B, D) and (B, C), labels (B,), keys and metadata.

    ``files`` names, part by part, the file of which these entries are rows, if there is one.
    Labels and keys of a bank on disk are read, and keys checked, when they are first asked for.
    """

    embeddings: StackedRows
    weights: Rows
    label_source: Callable[[], Tensor] | None
    key_source: Callable[[], tuple[str, ...]] | None
    metadata: dict[str, str]
    files: tuple[SavedShard | None, ...] = (None,)

    @cached_property
    def labels(self) -> Tensor | None:
        """Shape (B,), int64."""
        return None if self.label_source is None else self.label_source()

    @cached_property
    def keys(self) -> tuple[str, ...] | None:
        """B distinct names."""
        return None if self.key_source is None else self.key_source()


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
        label_source=None if labels is None else given(_checked_labels(labels, embeddings)),
        key_source=None if keys is None else given(checked_keys(keys, len(embeddings))),
        metadata=_checked_metadata(metadata),
    )
    require_finite("embeddings", entries.embeddings, InputError)
    require_finite("weights", entries.weights, InputError)
    return entries


def given(value: T) -> Callable[[], T]:
    """A source of labels or keys that are known."""
    return lambda: value


def _require_matrix(name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype not in DTYPES:
        kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise InputError(f"{name} are {kind}; expected a floating-point tensor, one row per image")
    if tensor.dim() != 2 or 0 in tensor.shape:
        raise InputError(
            f"{name} have shape {tuple(tensor.shape)}; expected (entries, numbers), neither of "
            "them 0"
        )


def require_finite(name: str, rows: Rows, error: type[ValueError]) -> None:
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
        tensor = torch.as_tensor(labels, device=embeddings.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"labels are not integers ({error}); number the classes") from error
    if tensor.dtype is torch.bool or tensor.is_floating_point() or tensor.is_complex():
        raise InputError(f"labels are {tensor.dtype}; expected integers, one per entry")
    if tensor.shape != (len(embeddings),):
        raise InputError(
            f"labels have shape {tuple(tensor.shape)}; expected ({len(embeddings)},), one per entry"
        )
    return tensor.to(torch.int64)


def checked_keys(keys: Sequence[str], count: int) -> tuple[str, ...]:
    """The keys, ``count`` distinct names; raises :class:`InputError` where they are not."""
    if isinstance(keys, str) or len(keys) != count:
        number = "one string" if isinstance(keys, str) else f"{len(keys)} names"
        raise InputError(f"keys are {number}; expected {count}, one per entry")
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
