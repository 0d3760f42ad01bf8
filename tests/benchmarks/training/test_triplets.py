import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.training.triplets import ClassBalancedBatches, batch_triplet_loss
from captum_embed.errors import InputError


def brute_force(embeddings: torch.Tensor, labels: list[int], margin: float, mining: str) -> float:
    n = len(labels)

    def d(i: int, j: int) -> float:
        return float(((embeddings[i] - embeddings[j]) ** 2).sum())

    losses = []
    for a in range(n):
        positives = [i for i in range(n) if i != a and labels[i] == labels[a]]
        negatives = [i for i in range(n) if labels[i] != labels[a]]
        if not positives or not negatives:
            continue
        if mining == "hardest":
            pairs = [(max(d(a, p) for p in positives), min(d(a, k) for k in negatives))]
        else:
            pairs = []
            for p in positives:
                farther = [d(a, k) for k in negatives if d(a, k) > d(a, p)]
                chosen = min(farther) if farther else max(d(a, k) for k in negatives)
                pairs.append((d(a, p), chosen))
        losses += [max(0.0, pair - negative + margin) for pair, negative in pairs]
    nonzero = [loss for loss in losses if loss > 0]
    return sum(nonzero) / len(nonzero) if nonzero else 0.0


@pytest.mark.parametrize("mining", ["semihard", "hardest"])
@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.integers(0, 2), min_size=2, max_size=8),
    seed=st.integers(0, 1000),
    margin=st.sampled_from([0.0, 0.2, 5.0]),
)
def test_the_batch_loss_is_that_of_the_definition(
    mining: str, labels: list[int], seed: int, margin: float
) -> None:
    points = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(seed)).double()
    loss = batch_triplet_loss(points, torch.tensor(labels), margin, mining)
    assert loss.item() == pytest.approx(brute_force(points, labels, margin, mining), abs=1e-9)


@pytest.mark.parametrize("mining", ["semihard", "hardest"])
def test_a_batch_of_one_class_costs_nothing_and_has_a_gradient(mining: str) -> None:
    points = torch.randn(4, 3, requires_grad=True)
    loss = batch_triplet_loss(points, torch.ones(4), 0.2, mining)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(points.grad, torch.zeros(4, 3))


def test_unknown_mining_is_refused() -> None:
    with pytest.raises(InputError, match="mining is 'easy'"):
        batch_triplet_loss(torch.randn(4, 2), torch.tensor([1, 1, 2, 2]), 0.2, "easy")


def batches(labels: list[int], steps: range, seed: int = 0) -> list[list[tuple[int, int]]]:
    return list(ClassBalancedBatches(labels, steps, 3, 4, seed))


def test_a_batch_has_as_many_images_of_each_class() -> None:
    labels = [c for c in range(5) for _ in range(6)]
    for batch in batches(labels, range(20)):
        classes = [labels[i] for i, _ in batch]
        assert sorted(classes.count(c) for c in set(classes)) == [4, 4, 4]
        assert len({i for i, _ in batch}) == 12, "an image twice, though the class has enough"


def test_a_resumed_training_sees_the_batches_of_an_uninterrupted_one() -> None:
    labels = [c for c in range(5) for _ in range(6)]
    whole = batches(labels, range(10))
    assert batches(labels, range(4)) + batches(labels, range(4, 10)) == whole
    assert batches(labels, range(10), seed=1) != whole


def test_augmentation_seeds_differ() -> None:
    drawn = itertools.chain.from_iterable(batches([1, 1, 2, 2], range(30)))
    seeds = [seed for _, seed in drawn]
    assert len(set(seeds)) == len(seeds)


def test_few_classes_and_few_images_still_make_batches() -> None:
    (batch,) = batches([1, 1, 2, 2], range(1))
    assert sorted(i for i, _ in batch)[0] == 0
    assert len(batch) == 8


def test_a_class_with_a_single_image_is_refused() -> None:
    with pytest.raises(InputError, match="class 7 has a single image"):
        batches([1, 1, 7], range(1))


def test_a_single_class_is_refused() -> None:
    with pytest.raises(InputError, match="two classes or more, the images have 1"):
        batches([1, 1], range(1))
