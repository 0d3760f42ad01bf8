"""What a weight bank does with its directory on disk."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any, TypeVar

from torch import Tensor

from captum_embed.errors import BankFileError
from captum_embed.weight_bank.entries import Entries, require_finite
from captum_embed.weight_bank.reading import read_bank
from captum_embed.weight_bank.rows import CompactRows
from captum_embed.weight_bank.selection import allowed_entries, joined_entries, selected_entries
from captum_embed.weight_bank.storage import update_bank, write_bank

Bank = TypeVar("Bank", bound="BankOnDisk")


class BankOnDisk:
    """The part of :class:`WeightBank` that reads and writes files."""

    _entries: Entries

    @classmethod
    def _of(cls: type[Bank], entries: Entries) -> Bank:
        raise NotImplementedError

    def save(self, path: str | os.PathLike[str], max_shard_size: int | str = "2GB") -> None:
        """Writes the bank as safetensors shards with a manifest, or replaces one, in one step.

        A save that fails leaves what was there before. A bank may be saved over the very files
        it is mapped from: then only entries that are in no file yet are written, and rows that
        it has no more are noted in the manifest. Files that stay are compared with their
        checksums. ``WeightBank.load(path, mmap=False).save(path)`` writes all of it anew, without
        dropped rows and in as few files as can be.

        Args:
            path: Directory to write. An existing one must be empty or a weight bank.
            max_shard_size: Bytes per shard file, or a string such as ``"500MB"``.

        Raises:
            InputError: The path holds something else, or the size is not one.
            BankFileError: A file that would stay is damaged; the disk is full, or another
                process does not stop writing there.

        Example::

            >>> import tempfile, torch
            >>> from captum_embed import WeightBank
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     WeightBank(torch.eye(3), torch.rand(3, 5)).save(f"{folder}/bank")
            ...     len(WeightBank.load(f"{folder}/bank", mmap=False))
            3
        """
        write_bank(path, self._entries, max_shard_size)

    @classmethod
    def load(
        cls: type[Bank], path: str | os.PathLike[str], mmap: bool = True, *, verify: bool = True
    ) -> Bank:
        """Reads a bank that :meth:`save` wrote, onto the CPU.

        Args:
            path: Directory of the bank.
            mmap: Leave embeddings and weights in the files, mapped into memory as they are
                used, so that banks larger than memory work.
            verify: Compare SHA-256 checksums and look for NaN, which reads every byte once.
                Without it a mapped bank opens in milliseconds, whatever its size.

        Returns:
            The bank.

        Raises:
            InputError: It is no path.
            BankFileError: A file is missing, truncated, altered, or of another format or a newer
                version; it names the file and what is wrong with it.
        """
        entries = read_bank(path, mmap=mmap, verify=verify)
        if verify:
            _require_whole(path, entries)
        return cls._of(entries)

    def append_to(
        self,
        path: str | os.PathLike[str],
        max_shard_size: int | str = "2GB",
        *,
        verify: bool = True,
    ) -> None:
        """Adds the entries to a bank on disk, whose files stay as they are.

        A reader sees the bank before or after; so does who comes after a process that was
        killed. Of two writers at once the later one waits.

        Args:
            path: Directory of the bank.
            max_shard_size: As in :meth:`save`.
            verify: Compare the checksums of its files first, which reads every byte once.

        Raises:
            InputError: A key occurs twice, or labels, keys or dtypes differ.
            BankMismatchError: Dimensions, layers, encoders, directions or layouts differ.
            BankFileError: As :meth:`load` and :meth:`save`.

        Example::

            >>> import tempfile, torch
            >>> from captum_embed import WeightBank
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     WeightBank(torch.eye(3), torch.rand(3, 5), keys=["a", "b", "c"]).save(folder)
            ...     more = WeightBank(torch.eye(2, 3), torch.rand(2, 5), keys=["d", "e"])
            ...     more.append_to(folder)
            ...     WeightBank.drop_from(folder, ["a", "d"])
            ...     WeightBank.load(folder, mmap=False).keys
            2
            ('b', 'c', 'e')
        """
        update_bank(
            path,
            lambda entries: joined_entries([entries, self._entries], None),
            max_shard_size,
            verify,
        )

    @staticmethod
    def drop_from(
        path: str | os.PathLike[str],
        names: Collection[str | int] | Tensor,
        *,
        verify: bool = True,
    ) -> int:
        """Takes entries out of a bank on disk; its files stay as they are.

        The manifest notes which rows are entries no more. They stay in the files until the bank
        is written anew, see :meth:`save`. As safe as :meth:`append_to`.

        Args:
            path: Directory of the bank.
            names: Keys (strings) or labels (integers) of the entries.
            verify: As in :meth:`append_to`.

        Returns:
            How many there were.

        Raises:
            InputError: A key or label is of no entry, or no entry would be left.
            BankFileError: As :meth:`load` and :meth:`save`.
        """
        counts: list[int] = []

        def without(entries: Entries) -> Entries:
            left = allowed_entries(entries, names, "names")
            counts.append(int((~left).sum()))
            return selected_entries(entries, left)

        update_bank(path, without, "2GB", verify)
        return counts[0]


def _require_whole(path: Any, entries: Entries) -> None:
    require_finite(f"embeddings in {path}", entries.embeddings, BankFileError)
    if isinstance(entries.weights, CompactRows):
        entries.weights.require_valid(f"weights in {path}")
    else:
        require_finite(f"weights in {path}", entries.weights, BankFileError)
