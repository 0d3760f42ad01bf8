"""The images of a data set in batches, each of images of one size."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from captum_embed.errors import InputError


@dataclass(frozen=True)
class ImageBatch:
    """Images of one size.

    Args:
        indices: Places in the data set, (N,).
        images: Shape (N, ...).
        labels: Shape (N,), int64.
    """

    indices: Tensor
    images: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> ImageBatch:
        """The batch on another device."""
        return ImageBatch(self.indices.to(device), self.images.to(device), self.labels.to(device))


class ImageSource:
    """A data set of (image, label) that is read once per pass, in its own order.

    Args:
        dataset: Anything with ``len`` and integer indexing, or an iterable that starts anew
            each time; its items are (image tensor, integer label). Images may differ in size.
        batch_size: How many images are read and, where of one size, encoded at once.
        num_workers: Processes that read, for data sets with indexing.

    Raises:
        InputError: The data set is empty, a ``DataLoader``, or can be read only once.
    """

    def __init__(self, dataset: Any, batch_size: int, num_workers: int) -> None:
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name} is {value!r}; expected an integer of at least {least}")
        if isinstance(dataset, DataLoader):
            raise InputError(
                "dataset is a DataLoader, which may shuffle; pass its data set (loader.dataset), "
                "and batch_size and num_workers here"
            )
        self._indexed = (
            hasattr(dataset, "__getitem__")
            and isinstance(dataset, Sized)
            and not isinstance(dataset, (Mapping, IterableDataset))
        )
        if not self._indexed and (
            isinstance(dataset, Mapping) or not isinstance(dataset, Iterable)
        ):
            raise InputError(
                f"dataset is a {type(dataset).__name__}; expected a torch Dataset, a list, or an "
                "iterable of (image, label)"
            )
        if not self._indexed and iter(dataset) is dataset:
            raise InputError(
                f"dataset is a {type(dataset).__name__}, which can be read only once, and two "
                "passes are needed; pass a list, a Dataset, or an object whose __iter__ starts anew"
            )
        if not self._indexed and num_workers:
            raise InputError(
                f"num_workers is {num_workers} for an iterable data set, which would be read "
                "several times over; leave it at 0, or give a data set with len and indexing"
            )
        self.length = len(dataset) if isinstance(dataset, Sized) else None
        if self.length == 0:
            raise InputError("dataset is empty; expected (image, label) pairs")
        self._dataset = dataset
        self._batch_size = batch_size
        self._num_workers = num_workers

    def known_labels(self) -> Tensor | None:
        """Labels that can be told without reading an image, (B,), or None."""
        return _labels_of(self._dataset)

    def known_names(self) -> list[str] | None:
        """Paths of the images below the data set's root, where it lists them, or None."""
        return _names_of(self._dataset)

    def labels(self) -> Tensor:
        """Labels (B,), for which data sets that do not list them are read once."""
        known = self.known_labels()
        if known is not None:
            return known
        read = [(batch.indices, batch.labels) for batch in self.batches()]
        indices, labels = (torch.cat(column) for column in zip(*read, strict=True))
        return labels[indices.argsort()]

    def batches(self, only: Tensor | None = None) -> Iterator[ImageBatch]:
        """Reads the data set.

        Args:
            only: Ascending indices of the images wanted, or None for all.

        Yields:
            Batches on the CPU. What is read at once is a block of ``batch_size`` places in the
            data set, whatever is wanted of it: an image meets the same others in every process
            and after every interruption. Within a block, images of one size go together.

        Raises:
            InputError: An item is not (image tensor, integer label); it says which one.
        """
        if self._indexed:
            assert self.length is not None
            wanted = torch.arange(self.length) if only is None else only
            _, sizes = (wanted // self._batch_size).unique_consecutive(return_counts=True)
            yield from self.batches_of(wanted.split(sizes.tolist()))
            return
        items = self._read_through(None if only is None else set(only.tolist()))
        for _, block in groupby(items, lambda item: item[0] // self._batch_size):
            yield from _by_size(block)

    def whole_blocks(self, done: Tensor) -> Tensor:
        """Which images are done, (B,), of those blocks alone that are done as a whole."""
        blocks = torch.arange(len(done)) // self._batch_size
        missing = blocks[~done]
        return ~torch.isin(blocks, missing)

    def block_range(self, blocks: range) -> range:
        """The places of all images in these blocks."""
        assert self.length is not None
        size = self._batch_size
        return range(min(blocks.start * size, self.length), min(blocks.stop * size, self.length))

    @property
    def num_blocks(self) -> int:
        """Number of blocks of ``batch_size`` images."""
        assert self.length is not None
        return -(-self.length // self._batch_size)

    def batches_of(self, groups: Iterable[Tensor]) -> Iterator[ImageBatch]:
        """Reads the images of each group of indices together.

        Yields:
            A batch for each group, or several where its images differ in size.

        Raises:
            InputError: The data set has no indexing; or as :meth:`batches`.
        """
        if not self._indexed:
            raise InputError(
                f"dataset is a {type(self._dataset).__name__}, which has no len and indexing, and "
                "the loss of a batch needs batches drawn over the classes; pass a list or Dataset"
            )
        indices = [group.tolist() for group in groups if len(group)]
        loader = DataLoader(
            self._dataset,
            batch_sampler=indices,
            num_workers=self._num_workers,
            collate_fn=list,
            # Without one, a loader draws the workers' seed from the global generator.
            generator=torch.Generator().manual_seed(0),
        )
        for group, items in zip(indices, loader, strict=True):
            yield from _by_size(zip(group, items, strict=True))

    def _read_through(self, wanted: set[int] | None) -> Iterator[tuple[int, Any]]:
        return (
            (index, item)
            for index, item in enumerate(self._dataset)
            if wanted is None or index in wanted
        )


def _by_size(items: Iterable[tuple[int, Any]]) -> Iterator[ImageBatch]:
    by_size: dict[tuple[Any, ...], list[tuple[int, Tensor, int]]] = {}
    for index, item in items:
        image, label = _checked_item(index, item)
        by_size.setdefault((image.shape, image.dtype), []).append((index, image, label))
    for same_size in by_size.values():
        places, images, labels = zip(*same_size, strict=True)
        yield ImageBatch(torch.tensor(places), torch.stack(images), torch.tensor(labels))


def _checked_item(index: int, item: Any) -> tuple[Tensor, int]:
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        given = f"{len(item)} values" if isinstance(item, (tuple, list)) else type(item).__name__
        raise InputError(f"item {index} of the data set is {given}; expected (image, label)")
    image, label = item
    if not isinstance(image, Tensor):
        raise InputError(
            f"image {index} of the data set is a {type(image).__name__}; expected a tensor "
            "(3, H, W), as the encoder takes it: convert it in the data set's transform"
        )
    try:
        return image.detach(), _checked_label(label)
    except TypeError:
        raise InputError(
            f"label {index} of the data set is {label!r} ({type(label).__name__}); expected an "
            "integer: number the classes"
        ) from None


def _checked_label(label: Any) -> int:
    # Tensors and numpy scalars count as integers; True, 1.0 and "1" do not.
    if isinstance(label, bool) or (isinstance(label, Tensor) and label.dtype is torch.bool):
        raise TypeError
    return operator.index(label)


def _labels_of(dataset: Any) -> Tensor | None:
    labels: Any = None
    if isinstance(dataset, Subset):
        inner = _labels_of(dataset.dataset)
        return None if inner is None else inner[torch.tensor(list(dataset.indices))]
    if isinstance(dataset, TensorDataset):
        labels = dataset.tensors[-1].tolist()
    elif isinstance(dataset, (list, tuple)):
        labels = [_checked_item(index, item)[1] for index, item in enumerate(dataset)]
    elif getattr(dataset, "target_transform", None) is None:
        labels = getattr(dataset, "targets", None)  # torchvision's name for them
    if not isinstance(labels, (Sequence, Tensor)) or len(labels) != len(dataset):
        return None
    try:
        return torch.tensor([_checked_label(label) for label in labels])
    except TypeError:
        return None


def _names_of(dataset: Any) -> list[str] | None:
    if isinstance(dataset, Subset):
        inner = _names_of(dataset.dataset)
        return None if inner is None else [inner[index] for index in dataset.indices]
    # torchvision's folders of images list (path, class).
    samples, root = getattr(dataset, "samples", None), getattr(dataset, "root", None)
    if not isinstance(samples, list) or not isinstance(root, (str, os.PathLike)):
        return None
    try:
        paths = [Path(path).relative_to(root).as_posix() for path, _ in samples]
    except (TypeError, ValueError):
        return None
    return paths if len(set(paths)) == len(paths) == len(dataset) else None
