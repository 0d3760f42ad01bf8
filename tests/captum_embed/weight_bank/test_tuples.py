"""The closed form over class sums against a loop over every tuple."""

import itertools
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from captum_embed import PairForward, QuadrupletForward, TripletForward
from captum_embed.errors import InputError
from captum_embed.metric_forwards import MetricForward
from captum_embed.weight_bank.tuples import AllTuples

IDENTITY = nn.Identity()


def distance(kind: str, x: Tensor, y: Tensor) -> Tensor:
    if kind == "cosine":
        return 1 - (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))
    return ((x - y) ** 2).sum(-1)


def mean_over_every_tuple(
    forward: MetricForward, anchor: Tensor, e: Tensor, labels: list[int], own: int
) -> Tensor:
    """The mean loss without its hinge, of a list of all tuples."""
    kind, others = str(forward.distance), [i for i in range(len(labels)) if i != own]
    same = [i for i in others if labels[i] == labels[own]]
    different = [i for i in others if labels[i] != labels[own]]
    if isinstance(forward, PairForward):
        signs = [
            -1 if forward.loss == "contrastive" and labels[i] != labels[own] else 1 for i in others
        ]
        return (torch.tensor(signs) * distance(kind, anchor, e[others])).mean()
    if isinstance(forward, TripletForward):
        p, n = zip(*itertools.product(same, different), strict=True)
        return (distance(kind, anchor, e[list(p)]) - distance(kind, anchor, e[list(n)])).mean()
    every = [
        t for t in itertools.product(same, different, different) if labels[t[1]] != labels[t[2]]
    ]
    positives, first, second = (e[list(column)] for column in zip(*every, strict=True))
    near = distance(kind, anchor, positives)
    return (2 * near - distance(kind, anchor, first) - distance(kind, first, second)).mean()


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 4), min_size=3, max_size=4),
    make=st.sampled_from(
        [
            lambda kind: TripletForward(IDENTITY, distance=kind),
            lambda kind: QuadrupletForward(IDENTITY, distance=kind),
            lambda kind: PairForward(IDENTITY, distance=kind),
            lambda kind: PairForward(IDENTITY, "similarity", distance=kind),
            lambda kind: PairForward(IDENTITY, "distance", distance=kind),
        ]
    ),
    kind=st.sampled_from(["squared_euclidean", "cosine"]),
    seed=st.integers(0, 999),
)
def test_gradients_are_those_of_a_loop_over_every_tuple(sizes, make, kind, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = [10 * c for c, size in enumerate(sizes) for _ in range(size)]
    labels = [labels[i] for i in torch.randperm(len(labels), generator=generator).tolist()]
    e = torch.randn(len(labels), 3, generator=generator, dtype=torch.float64)
    forward = make(kind)
    every = AllTuples(forward, e, torch.tensor(labels))
    anchors = e.clone().requires_grad_()
    (actual,) = torch.autograd.grad(every.losses(anchors, torch.arange(len(labels))).sum(), anchors)
    for own in range(len(labels)):
        anchor = e[own].clone().requires_grad_()
        value = mean_over_every_tuple(forward, anchor, e, labels, own)
        (expected,) = torch.autograd.grad(value, anchor)
        torch.testing.assert_close(actual[own], expected, rtol=1e-9, atol=1e-11)


def test_a_mean_far_from_the_origin_costs_no_digits() -> None:
    """Class means of large embeddings cancel; sums are kept in double precision."""
    generator = torch.Generator().manual_seed(0)
    e = 1000 + torch.randn(40, 4, generator=generator)
    labels = torch.arange(40) % 4
    anchors = e[:1].clone().requires_grad_()
    AllTuples(TripletForward(IDENTITY), e, labels).losses(anchors, torch.tensor([0])).backward()
    wide = e.double()
    same = (labels == 0).nonzero()[1:, 0]
    expected = 2 * (wide[labels != 0].mean(0) - wide[same].mean(0))
    torch.testing.assert_close(anchors.grad[0].double(), expected, rtol=1e-4, atol=1e-4)


def test_the_cost_is_linear_in_the_images() -> None:
    """Ten thousand images of a thousand classes: a square of either would take minutes."""
    e = torch.randn(10_000, 64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(10_000) % 1000
    started = time.monotonic()
    every = AllTuples(QuadrupletForward(IDENTITY), e, labels)
    for indices in torch.arange(10_000).split(32):
        every.losses(e[indices], indices)
    assert time.monotonic() - started < 10


class OwnLoss(TripletForward):
    def tuple_loss(self, anchor: Tensor, *references: Tensor) -> Tensor:
        return super().tuple_loss(anchor, *references).square()


class OwnDistance(TripletForward):
    def measure(self, first: Tensor, second: Tensor) -> Tensor:
        return (first - second).abs().sum(-1)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (TripletForward(IDENTITY, distance="euclidean"), "and forward has 'euclidean'; choose"),
        (TripletForward(IDENTITY, distance=lambda x, y: (x * y).sum(-1)), "forward has <function"),
        (OwnLoss(IDENTITY), "OwnLoss has one of its own; pass mining='hardest' or 'random'"),
        (OwnDistance(IDENTITY), "OwnDistance has one of its own"),
    ],
)
def test_what_has_no_closed_form_is_refused(forward: MetricForward, message: str) -> None:
    with pytest.raises(InputError, match=message):
        AllTuples(forward, torch.zeros(4, 3), torch.tensor([0, 0, 1, 1]))
