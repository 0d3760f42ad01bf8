"""The images of a data set in batches, each of images of one size."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import count, islice
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

    def batches(self, only: Tensor | None = None) -> Iterator[ImageBatch]:
        """Reads the data set.

        Args:
            only: Ascending indices of the images wanted, or None for all.

        Yields:
            Batches on the CPU. Within what is read at once, images of one size go together.

        Raises:
            InputError: An item is not (image tensor, integer label); it says which one.
        """
        indices = None if only is None else only.tolist()
        items = self._read_indexed(indices) if self._indexed else self._read_through(indices)
        while chunk := list(islice(items, self._batch_size)):
            by_size: dict[tuple[Any, ...], list[tuple[int, Tensor, int]]] = {}
            for index, item in chunk:
                image, label = _checked_item(index, item)
                by_size.setdefault((image.shape, image.dtype), []).append((index, image, label))
            for same_size in by_size.values():
                places, images, labels = zip(*same_size, strict=True)
                yield ImageBatch(torch.tensor(places), torch.stack(images), torch.tensor(labels))

    def _read_indexed(self, indices: list[int] | None) -> Iterator[tuple[int, Any]]:
        wanted = self._dataset if indices is None else Subset(self._dataset, indices)
        loader = DataLoader(
            wanted,
            batch_size=self._batch_size,
            num_workers=self._num_workers,
            collate_fn=list,
            # Without one, a loader draws the workers' seed from the global generator.
            generator=torch.Generator().manual_seed(0),
        )
        items = (item for batch in loader for item in batch)
        return zip(count() if indices is None else indices, items, strict=False)

    def _read_through(self, indices: list[int] | None) -> Iterator[tuple[int, Any]]:
        wanted = None if indices is None else set(indices)
        return (
            (index, item)
            for index, item in enumerate(self._dataset)
            if wanted is None or index in wanted
        )


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
