from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from captum_embed.errors import InputError
from captum_embed.weight_bank.images import ImageSource

Items = list[tuple[Tensor, int]]


def items(count: int = 7, sizes: tuple[int, ...] = (4,)) -> Items:
    return [(torch.full((3, sizes[i % len(sizes)], 5), float(i)), i % 3) for i in range(count)]


class Indexed(Dataset[tuple[Tensor, int]]):
    def __init__(self, content: Items) -> None:
        self.content = content
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.content)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.read.append(index)
        return self.content[index]


class Streamed(IterableDataset[tuple[Tensor, int]]):
    def __init__(self, content: Items) -> None:
        self.content = content

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return iter(self.content)


class Plain:
    """Any object that starts anew."""

    def __init__(self, content: Items) -> None:
        self.content = content

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        yield from self.content


FORMS = [list, tuple, Indexed, Streamed, Plain]


@pytest.mark.parametrize("only", [None, [1, 2, 5]])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("sizes", [(4,), (4, 6), (4, 5, 6, 7, 8, 9, 10)])
@pytest.mark.parametrize("form", FORMS)
def test_every_image_comes_once_in_every_pass(
    form: Callable[[Items], Any], sizes: tuple[int, ...], batch_size: int, only: list[int] | None
) -> None:
    content = items(sizes=sizes)
    source = ImageSource(form(content), batch_size, 0)
    for _ in range(2):
        seen = []
        for batch in source.batches(None if only is None else torch.tensor(only)):
            assert len(batch.indices) == len(batch.images) == len(batch.labels) <= batch_size
            for index, image, label in zip(batch.indices, batch.images, batch.labels, strict=True):
                seen.append(int(index))
                assert torch.equal(image, content[int(index)][0])
                assert int(label) == content[int(index)][1]
        assert sorted(seen) == (only or list(range(7)))


def test_images_of_one_size_share_a_batch() -> None:
    source = ImageSource(items(sizes=(4, 6)), 4, 0)
    assert [batch.indices.tolist() for batch in source.batches()] == [[0, 2], [1, 3], [4, 6], [5]]


def test_images_that_are_not_wanted_are_not_read() -> None:
    dataset = Indexed(items())
    list(ImageSource(dataset, 2, 0).batches(torch.tensor([2, 6])))
    assert dataset.read == [2, 6]


def test_workers_read_the_same_and_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    batches = list(ImageSource(Indexed(items()), 3, 1).batches())
    assert [batch.indices.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    assert torch.equal(torch.get_rng_state(), state)


def test_known_labels_need_no_image() -> None:
    indexed = Indexed(items())
    assert ImageSource(indexed, 1, 0).known_labels() is None
    indexed.targets = [5, 6, 7, 5, 6, 7, 5]  # type: ignore[attr-defined]
    tensors = TensorDataset(torch.zeros(3, 1), torch.tensor([4, 5, 6]))
    for dataset, expected in (
        (items(), [0, 1, 2, 0, 1, 2, 0]),
        (indexed, [5, 6, 7, 5, 6, 7, 5]),
        (Subset(indexed, [1, 3]), [6, 5]),
        (tensors, [4, 5, 6]),
    ):
        labels = ImageSource(dataset, 1, 0).known_labels()
        assert labels is not None
        assert labels.tolist() == expected
    assert indexed.read == []
    indexed.target_transform = abs  # type: ignore[attr-defined]
    assert ImageSource(indexed, 1, 0).known_labels() is None
    indexed.target_transform = None  # type: ignore[attr-defined]
    indexed.targets = [1, 2]  # type: ignore[attr-defined]
    assert ImageSource(indexed, 1, 0).known_labels() is None


@pytest.mark.parametrize("label", [2, np.int64(2), torch.tensor(2), torch.tensor([2])])
def test_integers_of_any_kind_are_labels(label: Any) -> None:
    (batch,) = ImageSource(Streamed([(torch.zeros(3, 2, 2), label)]), 1, 0).batches()
    assert batch.labels.tolist() == [2]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (torch.zeros(3, 2, 2), "item 1 of the data set is Tensor"),
        ((torch.zeros(3, 2, 2), 1, "key"), "item 1 of the data set is 3 values"),
        ({"image": 0, "label": 1}, "item 1 of the data set is dict"),
        ((np.zeros((3, 2, 2)), 1), "image 1 of the data set is a ndarray"),
        ((torch.zeros(3, 2, 2), "jay"), r"label 1 of the data set is 'jay' \(str\)"),
        ((torch.zeros(3, 2, 2), 1.0), "label 1 of the data set is 1.0"),
        ((torch.zeros(3, 2, 2), True), "label 1 of the data set is True"),
        ((torch.zeros(3, 2, 2), torch.tensor(True)), "label 1 of the data set is tensor"),
        ((torch.zeros(3, 2, 2), torch.tensor(1.0)), "label 1 of the data set is tensor"),
        ((torch.zeros(3, 2, 2), torch.tensor([1, 2])), "label 1 of the data set is tensor"),
        ((torch.zeros(3, 2, 2), None), r"label 1 of the data set is None"),
    ],
)
def test_items_that_are_not_image_and_label_are_named(item: Any, message: str) -> None:
    source = ImageSource(Streamed([(torch.zeros(3, 2, 2), 0), item]), 1, 0)
    with pytest.raises(InputError, match=message):
        list(source.batches())


@pytest.mark.parametrize(
    ("dataset", "arguments", "message"),
    [
        ([], (1, 0), "dataset is empty"),
        (DataLoader(items()), (1, 0), "dataset is a DataLoader.*loader.dataset"),
        ((item for item in items()), (1, 0), "generator, which can be read only once"),
        ({0: 1}, (1, 0), "dataset is a dict"),
        (3, (1, 0), "dataset is a int"),
        (Streamed(items()), (1, 2), "num_workers is 2 for an iterable"),
        (items(), (0, 0), "batch_size is 0"),
        (items(), (2.0, 0), "batch_size is 2.0"),
        (items(), (1, -1), "num_workers is -1"),
    ],
)
def test_data_sets_that_cannot_be_read_twice_are_refused(
    dataset: Any, arguments: tuple[Any, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ImageSource(dataset, *arguments)


def test_what_the_data_set_raises_is_passed_on() -> None:
    class Broken(Indexed):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            raise OSError(f"cannot read {index}.jpg")

    with pytest.raises(OSError, match=r"cannot read 0\.jpg"):
        list(ImageSource(Broken(items()), 2, 0).batches())
