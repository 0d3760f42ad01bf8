"""The weight bank: grad-weights of training images, looked up by their embeddings."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from types import MappingProxyType

import torch
from torch import Tensor

from captum_embed.encoders import version_of
from captum_embed.errors import BankFileError, InputError
from captum_embed.weight_bank.entries import Entries, checked_entries, given
from captum_embed.weight_bank.on_disk import BankOnDisk
from captum_embed.weight_bank.rows import Rows
from captum_embed.weight_bank.search import RowFacts, nearest_rows, require_queries, row_facts
from captum_embed.weight_bank.selection import (
    allowed_entries,
    compacted_entries,
    converted_entries,
    joined_entries,
    selected_entries,
)


class WeightBank(BankOnDisk):
    """Embeddings of training images with the grad-weights of each.

    A new image borrows the grad-weights of the entries nearest to it, and so needs one forward
    pass, no labels and no backpropagation. :func:`build_weight_bank` makes a bank from a
    network and its training images.

    Args:
        embeddings: Shape (B, D), finite; kept detached, not copied.
        weights: Grad-weights of the same images, (B, C), finite; kept likewise.
        labels: Classes of the images, integers, shape (B,).
        keys: Names of the images: B distinct strings, such as their paths.
        metadata: Facts about the bank, strings by name. ``"layer"`` (its dotted name in the
            encoder) and ``"encoder_fingerprint"`` (see :func:`encoder_fingerprint`) let
            :class:`EmbeddingLayerGradCam` refuse a bank of another layer or network.

    Raises:
        InputError: An argument has another shape or type, or holds NaN or infinite values.

    Source: Chen et al., Adapting Grad-CAM for Embedding Networks, WACV 2020, section 3.3.

    Example::

        >>> import torch
        >>> from captum_embed import WeightBank
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        >>> weights = torch.tensor([[0.5, 0.1, 0.0], [0.0, 0.3, 0.2], [0.1, 0.1, 0.1]])
        >>> bank = WeightBank(embeddings, weights, keys=["jay", "tern", "wren"])
        >>> bank
        WeightBank(3 entries, embedding_dim=2, num_channels=3, keys, float32, cpu)
        >>> query = torch.tensor([[0.0, 0.5]])
        >>> distances, indices = bank.search(query)
        >>> distances, bank.keys[indices[0, 0]]
        (tensor([[0.5000]]), 'tern')
        >>> bank.transfer(query)
        tensor([[0.0000, 0.3000, 0.2000]])
    """

    def __init__(
        self,
        embeddings: Tensor,
        weights: Tensor,
        labels: Tensor | Sequence[int] | None = None,
        keys: Sequence[str] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._entries = checked_entries(embeddings, weights, labels, keys, metadata)
        self._known_facts: tuple[tuple[int, ...], RowFacts] | None = None

    @classmethod
    def _of(cls, entries: Entries) -> WeightBank:
        bank = WeightBank.__new__(WeightBank)  # A subclass needs more.
        bank._entries = entries
        bank._known_facts = None
        return bank

    def _relabelled(self, labels: Tensor | None, metadata: Mapping[str, str]) -> WeightBank:
        """These entries with other labels (B,) and metadata; a file with these labels stays."""
        source = None if labels is None else given(labels)
        entries = replace(self._entries, label_source=source, metadata=dict(metadata))
        return WeightBank._of(entries)

    def __len__(self) -> int:
        return len(self._entries.embeddings)

    @property
    def embedding_dim(self) -> int:
        """Width D of the embeddings."""
        return self._entries.embeddings.shape[1]

    @property
    def num_channels(self) -> int:
        """Number C of weights per entry: the layer's channels, of all its tensors together."""
        return self._entries.weights.shape[1]

    @property
    def embeddings(self) -> Tensor:
        """Shape (B, D): the tensor itself, or a copy where the bank has several shards."""
        return self._entries.embeddings.joined()

    @property
    def weights(self) -> Tensor:
        """Shape (B, C): as :attr:`embeddings`, or a copy with zeros of a compact bank."""
        return self._entries.weights.joined()

    @property
    def top_channels(self) -> int | None:
        """How many weights of each entry a compact bank keeps; None: all."""
        return getattr(self._entries.weights, "num_kept", None)

    @property
    def labels(self) -> Tensor | None:
        """Shape (B,), int64, or None."""
        return self._entries.labels

    @property
    def keys(self) -> tuple[str, ...] | None:
        """B distinct names, or None."""
        return self._entries.keys

    @property
    def metadata(self) -> Mapping[str, str]:
        """Strings by name; read-only."""
        return MappingProxyType(self._entries.metadata)

    @property
    def device(self) -> torch.device:
        """Where the entries are."""
        return self._entries.embeddings.device

    def __repr__(self) -> str:
        parts = [
            f"{len(self)} entries",
            f"embedding_dim={self.embedding_dim}",
            f"num_channels={self.num_channels}",
        ]
        if "layer" in self.metadata:
            parts.append(f"layer='{self.metadata['layer']}'")
        if self.top_channels is not None:
            parts.append(f"top_channels={self.top_channels}")
        sources = {"labels": self._entries.label_source, "keys": self._entries.key_source}
        parts += [name for name, source in sources.items() if source is not None]
        dtypes = dict.fromkeys((self._entries.embeddings.dtype, self._entries.weights.dtype))
        parts += [*(str(dtype).removeprefix("torch.") for dtype in dtypes), str(self.device)]
        return f"WeightBank({', '.join(parts)})"

    def __getitem__(
        self, wanted: slice | int | Sequence[int] | Sequence[bool] | Tensor
    ) -> WeightBank:
        """A bank of some of the entries.

        Args:
            wanted: A mask (B,) of booleans, indices in the order wanted, a slice, or one index.

        Returns:
            The bank, with the labels, keys and metadata of these entries. Of a bank mapped from
            files, shards that are wanted whole stay mapped, and are not written again.

        Raises:
            InputError: It selects nothing, entries that do not exist, or a key twice.

        Example::

            >>> import torch
            >>> from captum_embed import WeightBank
            >>> bank = WeightBank(torch.eye(3), torch.rand(3, 5), labels=[4, 4, 7])
            >>> len(bank[bank.labels == 4])
            2
        """
        return WeightBank._of(selected_entries(self._entries, wanted))

    def search(
        self,
        queries: Tensor,
        k: int = 1,
        *,
        exclude: Collection[str | int] | Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The k entries nearest to each query, exactly, in bounded memory.

        Of a large bank on a CPU the first search may make a copy of the embeddings in eight bits.

        Args:
            queries: Embeddings (Q, D), on any device.
            k: Number of neighbours, 1 to the number of entries that are not excluded.
            exclude: Keys (strings) or labels (integers) of entries that are left out, such
                as the query's own image.

        Returns:
            Euclidean distances (Q, k), ascending, and entry indices (Q, k), int64, on the
            queries' device. Equal distances are ordered by index.

        Raises:
            InputError: Queries are not a finite (Q, D) matrix, k is out of range, or a key or
                label to exclude is of no entry.
            BankMismatchError: Queries are of another width than the bank's embeddings.
            BankFileError: An embedding in the bank became NaN or infinite.

        Example::

            >>> import torch
            >>> from captum_embed import WeightBank
            >>> bank = WeightBank(torch.eye(3), torch.rand(3, 5), keys=["jay", "tern", "wren"])
            >>> bank.search(torch.tensor([[2.0, 0.0, 0.0]]), k=2)
            (tensor([[1.0000, 2.2361]]), tensor([[0, 1]]))
            >>> bank.search(torch.tensor([[2.0, 0.0, 0.0]]), exclude=["jay"])
            (tensor([[2.2361]]), tensor([[1]]))
        """
        require_queries(queries, self.embedding_dim)
        allowed = None if exclude is None else allowed_entries(self._entries, exclude)
        count = len(self) if allowed is None else int(allowed.sum())
        if isinstance(k, bool) or not isinstance(k, Integral) or not 1 <= k <= count:
            rest = " that are not excluded" if count < len(self) else ""
            raise InputError(
                f"k is {k!r} neighbours; expected an integer from 1 to {count}, the number of "
                f"entries in the bank{rest}"
            )
        with torch.no_grad():
            distances, indices = self._nearest(queries.detach(), k, allowed)
        dtype = torch.promote_types(queries.dtype, self._entries.embeddings.dtype)
        dtype = torch.promote_types(dtype, torch.float32)
        return distances.to(dtype).to(queries.device), indices.to(queries.device)

    def _nearest(self, queries: Tensor, k: int, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
        facts = self._row_facts()
        return nearest_rows(queries, self._entries.embeddings, k, facts=facts, allowed=allowed)

    def transfer(
        self,
        queries: Tensor,
        k: int = 1,
        *,
        exclude: Collection[str | int] | Tensor | None = None,
    ) -> Tensor:
        """Grad-weights for each query: the mean over its k nearest entries.

        Args:
            queries: Embeddings (Q, D), on any device.
            k: As in :meth:`search`.
            exclude: As in :meth:`search`.

        Returns:
            Shape (Q, C), in single precision or better, on the queries' device.

        Raises:
            InputError: As :meth:`search`.
            BankMismatchError: As :meth:`search`.
            BankFileError: As :meth:`search`, or grad-weights in the bank became NaN or infinite.
        """
        return self.mean_weights(self.search(queries, k, exclude=exclude)[1])

    def mean_weights(self, indices: Tensor) -> Tensor:
        """Grad-weights averaged over entries.

        Args:
            indices: Places of k entries for each query, (Q, k), int64.

        Returns:
            Shape (Q, C), in single precision or better, on the device of the indices.

        Raises:
            BankFileError: Grad-weights in the bank became NaN or infinite.
        """
        places = indices.to(self.device)
        weights = self._entries.weights
        dtype = torch.promote_types(weights.dtype, torch.float32)
        total = torch.zeros(len(indices), self.num_channels, dtype=dtype, device=self.device)
        for place in places.unbind(1):
            total += self._weights_of(place)
        if not torch.isfinite(total).all():
            self._refuse_unless_finite("grad-weights", weights, places.unique())
        return (total / indices.shape[1]).to(indices.device)

    def _weights_of(self, indices: Tensor) -> Tensor:
        return self._entries.weights.take(indices)

    def _row_facts(self) -> RowFacts:
        """Computed at the first search, and again where embeddings were changed in place."""
        rows = self._entries.embeddings
        versions = tuple(version_of(part) for part in rows.parts)
        known = self._known_facts
        if known is None or known[0] != versions:
            facts = row_facts(rows)
            odd = (~torch.isfinite(facts.norms)).nonzero()[:, 0].to(self.device)
            self._refuse_unless_finite("embedding", rows, odd)
            known = self._known_facts = versions, facts
        return known[1]

    def _refuse_unless_finite(self, what: str, rows: Rows, indices: Tensor) -> None:
        # Large numbers have infinite squares and sums, and are no error.
        wrong = indices[~torch.isfinite(rows.take(indices)).all(1)]
        if len(wrong):
            index = int(wrong[0])
            name = f" (key '{self.keys[index]}')" if self.keys else ""
            raise BankFileError(
                f"the {what} of entry {index}{name} of the weight bank holds NaN or infinite "
                "values; load the bank with verify=True to look for more, and build it again"
            )

    def to(
        self,
        *target: torch.device | str | int | torch.dtype,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> WeightBank:
        """The same entries on another device or in another precision, as with ``Tensor.to``.

        Args:
            *target: A device, a floating-point dtype, or both.
            device: The device, by name.
            dtype: The dtype, by name.

        Raises:
            InputError: The dtype is no floating-point type, or too narrow for the values:
                ``float16`` has no room for small grad-weights, ``bfloat16`` does.

        Example::

            >>> import torch
            >>> from captum_embed import WeightBank
            >>> WeightBank(torch.eye(3), torch.rand(3, 5)).to("cpu", torch.bfloat16)
            WeightBank(3 entries, embedding_dim=3, num_channels=5, bfloat16, cpu)
        """
        for one in target:
            if isinstance(one, torch.dtype):
                dtype = one
            else:
                device = one
        return WeightBank._of(converted_entries(self._entries, device, dtype))

    def compact(
        self, top_channels: int | None = None, *, embeddings: torch.dtype | str | None = None
    ) -> WeightBank:
        """A smaller bank: few weights of each entry, or embeddings of fewer bits.

        Of 2,048 channels, 50 take 204 bytes in place of 8,192. What is borrowed from it is still
        (Q, C) in single precision, with zeros elsewhere; search is exact for the embeddings as
        they are kept. What it costs in accuracy: docs/performance.md.

        Args:
            top_channels: How many weights of each entry are kept, those of largest magnitude of
                either sign, in half precision; None: all, as they are.
            embeddings: Their precision, such as ``"float16"``; None: as it is.

        Returns:
            The bank, as it would be saved and loaded again.

        Raises:
            InputError: An argument is not one of these, or values do not fit the precision.

        Example::

            >>> import torch
            >>> from captum_embed import WeightBank
            >>> weights = torch.tensor([[0.5, 0.0, -3.0, 1.0], [0.1, 0.2, 0.0, 0.0]])
            >>> bank = WeightBank(torch.eye(2), weights).compact(top_channels=2)
            >>> bank
            WeightBank(2 entries, embedding_dim=2, num_channels=4, top_channels=2, float32, cpu)
            >>> bank.transfer(torch.tensor([[1.0, 0.0]]))
            tensor([[ 0.,  0., -3.,  1.]])
        """
        return WeightBank._of(compacted_entries(self._entries, top_channels, embeddings))

    @staticmethod
    def concat(banks: Sequence[WeightBank], keys: Sequence[str] | None = None) -> WeightBank:
        """One bank with the entries of several, in order; nothing is copied.

        Saved where one of them was loaded from, it only adds files for the others' entries.

        Args:
            banks: At least one; of equal dimensions, dtypes, device, layer, direction, layout
                and encoder fingerprint, and with labels and keys in all of them or in none.
            keys: Names for the entries of the joined bank, in order. Default: their own, which
                must differ between the banks.

        Returns:
            The bank. Of the metadata it keeps what all agree on.

        Raises:
            InputError: There is no bank, something else than a bank, a key occurs twice, or labels,
                keys, dtypes or devices differ.
            BankMismatchError: Dimensions, layers, encoders, directions or layouts differ.

        Example::

            >>> import torch
            >>> from captum_embed import WeightBank
            >>> first, second = (WeightBank(torch.eye(3), torch.rand(3, 5)) for _ in range(2))
            >>> len(WeightBank.concat([first, second]))
            6
        """
        banks = list(banks)
        wrong = [type(bank).__name__ for bank in banks if not isinstance(bank, WeightBank)]
        if wrong or not banks:
            given = f"holds {', '.join(wrong)}" if wrong else "is empty"
            raise InputError(f"banks {given}; expected at least one WeightBank, and nothing else")
        return WeightBank._of(joined_entries([bank._entries for bank in banks], keys))
