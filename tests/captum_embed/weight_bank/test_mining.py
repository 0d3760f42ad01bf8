import itertools
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor, nn

from captum_embed import PairForward, QuadrupletForward, TripletForward
from captum_embed.errors import InputError
from captum_embed.metric_forwards import MetricForward
from captum_embed.weight_bank import tuples
from captum_embed.weight_bank.mining import (
    MinedTuples,
    RandomTuples,
    draw_pool,
    mine_tuples,
    mixed_batches,
    require_minable,
    require_mining,
    tuple_losses,
)

IDENTITY = nn.Identity()
FORWARDS = [
    TripletForward(IDENTITY, margin=0.5),
    TripletForward(IDENTITY, margin=0.1, distance="euclidean"),
    TripletForward(IDENTITY, margin=0.3, distance="cosine"),
    PairForward(IDENTITY, margin=2.0),
    PairForward(IDENTITY, "similarity"),
    PairForward(IDENTITY, "distance", distance="cosine"),
    QuadrupletForward(IDENTITY, margin=0.5, second_margin=0.3),
    QuadrupletForward(IDENTITY, margin=0.1, second_margin=0.6, distance="euclidean"),
    QuadrupletForward(IDENTITY, margin=0.3, second_margin=0.3, distance="cosine"),
]


def name(forward: MetricForward) -> str:
    return f"{type(forward).__name__}-{getattr(forward, 'loss', '')}-{forward.distance}"


def test_a_pool_of_references_bounds_the_search_and_is_searched_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    e = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    labels = torch.arange(30) % 3
    for forward in FORWARDS:
        pool = draw_pool(labels, 9, torch.Generator().manual_seed(4))
        anchors = torch.tensor([0, 13, 29])
        tuples = mine_tuples(
            forward,
            e,
            labels,
            num_tuples=5,
            mining="hardest",
            seed=4,
            reference_pool=9,
            anchors=anchors,
        )
        assert set(tuples.active.any(1).nonzero()[:, 0].tolist()) <= set(anchors.tolist())
        for anchor in anchors.tolist():
            pooled = set(pool.tolist())
            within = [t for t in all_tuples(forward, labels, anchor) if pooled.issuperset(t)]
            every = losses_of(forward, e, labels, anchor, within)
            expected = [loss for loss in sorted(every, reverse=True)[:5] if loss != 0]
            losses = mined_losses(forward, e, labels, tuples, anchor)
            assert losses == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(1, 40), st.integers(0, 9))
def test_a_pool_has_two_of_each_class(classes: list[int], size: int, seed: int) -> None:
    labels = torch.tensor(classes)
    pool = draw_pool(labels, size, torch.Generator().manual_seed(seed)).tolist()
    counts = Counter(classes)
    needed = sum(min(2, count) for count in counts.values())
    assert pool == sorted(set(pool))
    assert len(pool) == min(len(classes), max(size, needed))
    kept = Counter(classes[i] for i in pool)
    assert all(kept[label] >= min(2, count) for label, count in counts.items())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(3, 40), st.integers(0, 9))
def test_batches_mix_classes_and_no_image_is_alone(
    classes: list[int], batch_size: int, seed: int
) -> None:
    labels = torch.tensor(sorted(classes))  # a data set sorted by class
    batches = mixed_batches(labels, batch_size, torch.Generator().manual_seed(seed))
    assert sorted(torch.cat(batches).tolist()) == list(range(len(classes)))
    counts = Counter(classes)
    for batch in batches:
        assert 0 < len(batch) <= batch_size
        for label, count in Counter(labels[batch].tolist()).items():
            assert count >= min(2, counts[label])


def test_every_batch_of_a_sorted_data_set_sees_all_classes() -> None:
    labels = torch.arange(4).repeat_interleave(50)
    batches = mixed_batches(labels, 20, torch.Generator().manual_seed(0))
    assert all(len(labels[batch].unique()) == 4 for batch in batches)
    assert {len(batch) for batch in batches} <= {18, 20}


def test_a_distance_of_ones_own_is_searched_by_itself() -> None:
    def manhattan(first: Tensor, second: Tensor) -> Tensor:
        return (first - second).abs().sum(-1)

    e = torch.randn(11, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    labels = torch.tensor([4, 4, 7, 7, 9, 9, 9, 1, 1, 4, 7])
    for forward in (
        TripletForward(IDENTITY, 0.5, manhattan),
        PairForward(IDENTITY, "distance", distance=manhattan),
        QuadrupletForward(IDENTITY, 0.5, distance=manhattan),
    ):
        check_hardest(forward, e, labels, 4)


def all_tuples(forward: MetricForward, labels: Tensor, anchor: int) -> list[tuple[int, ...]]:
    return tuples_of_roles(forward.reference_roles, tuple(labels.tolist()), anchor)


@cache
def tuples_of_roles(
    roles: tuple[str, ...], labels: tuple[int, ...], anchor: int
) -> list[tuple[int, ...]]:
    def fits(references: tuple[int, ...]) -> bool:
        own, others = labels[anchor], []
        for role, label in zip(roles, (labels[i] for i in references), strict=True):
            if role == "same" and label != own:
                return False
            if role == "different":
                if label == own or label in others:
                    return False
                others.append(label)
        return anchor not in references

    return [each for each in itertools.permutations(range(len(labels)), len(roles)) if fits(each)]


def losses_of(
    forward: MetricForward, e: Tensor, labels: Tensor, anchor: int, tuples: Sequence[Sequence[int]]
) -> list[float]:
    if not tuples:
        return []
    columns = torch.tensor(tuples).unbind(1)
    arguments = [e[column] for column in columns]
    if forward.reference_roles == ("any",):
        arguments.append(labels[anchor] == labels[columns[0]])
    losses: list[float] = forward.tuple_loss(e[anchor].expand(len(tuples), -1), *arguments).tolist()
    return losses


def mined_losses(
    forward: MetricForward, e: Tensor, labels: Tensor, tuples: MinedTuples, anchor: int
) -> list[float]:
    kept = tuples.references[anchor][tuples.active[anchor]].tolist()
    assert len(set(map(tuple, kept))) == len(kept)
    assert set(map(tuple, kept)) <= set(all_tuples(forward, labels, anchor))
    return losses_of(forward, e, labels, anchor, kept)


def check_hardest(forward: MetricForward, e: Tensor, labels: Tensor, count: int) -> None:
    tuples = mine_tuples(forward, e, labels, num_tuples=count, mining="hardest", seed=0)
    assert tuples.references.shape == (len(e), count, len(forward.reference_roles))
    for anchor in range(len(e)):
        losses = losses_of(forward, e, labels, anchor, all_tuples(forward, labels, anchor))
        expected = [loss for loss in sorted(losses, reverse=True)[:count] if loss != 0]
        actual = mined_losses(forward, e, labels, tuples, anchor)
        assert actual == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("block_numbers", [1, 2**20])
@pytest.mark.parametrize("count", [1, 3, 12, 500])
@pytest.mark.parametrize("forward", FORWARDS, ids=name)
def test_hardest_tuples_are_those_of_a_loop_over_all(
    forward: MetricForward, count: int, block_numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuples, "BLOCK_NUMBERS", block_numbers)
    generator = torch.Generator().manual_seed(count)
    e = torch.randn(11, 3, generator=generator, dtype=torch.float64) / 2
    labels = torch.tensor([4, 4, 7, 7, 9, 9, 9, 1, 1, 4, 7])
    check_hardest(forward, e, labels, count)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_hardest_tuples_survive_ties_and_any_class_sizes(data: st.DataObject) -> None:
    forward = data.draw(st.sampled_from(FORWARDS), label="forward")
    sizes = data.draw(st.lists(st.integers(2, 3), min_size=3, max_size=4))
    labels = torch.tensor([c for c, size in enumerate(sizes) for _ in range(size)])
    labels = labels[torch.tensor(data.draw(st.permutations(range(len(labels)))))]
    grid = st.integers(-1, 1).map(float)
    rows = st.lists(grid, min_size=2, max_size=2)
    e = torch.tensor(
        data.draw(st.lists(rows, min_size=len(labels), max_size=len(labels))), dtype=torch.float64
    )
    check_hardest(forward, e, labels, data.draw(st.integers(1, 20)))


@pytest.mark.parametrize("forward", FORWARDS, ids=name)
def test_random_tuples_are_distinct_tuples_of_the_anchor(forward: MetricForward) -> None:
    e = torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 3, 3, 0])
    for count in (1, 9, 1000):
        tuples = mine_tuples(forward, e, labels, num_tuples=count, mining="random", seed=3)
        for anchor in range(9):
            losses = mined_losses(forward, e, labels, tuples, anchor)
            every = losses_of(forward, e, labels, anchor, all_tuples(forward, labels, anchor))
            assert len(losses) <= min(count, len(every))
            if count == 1000:  # all there are, and so all that have a loss
                assert sorted(losses) == pytest.approx(sorted(x for x in every if x != 0))


@pytest.mark.parametrize("forward", [FORWARDS[0], FORWARDS[4], FORWARDS[6]], ids=name)
def test_random_tuples_are_uniform(forward: MetricForward) -> None:
    labels = torch.tensor([5, 6, 6, 5, 8, 6, 8, 9])
    draw = RandomTuples(labels, forward.reference_roles)
    generator = torch.Generator().manual_seed(0)
    for anchor in (0, 5):
        every = all_tuples(forward, labels, anchor)
        counts = Counter(
            tuple(refs) for _ in range(600) for refs in draw(anchor, 3, generator).tolist()
        )
        assert set(counts) <= set(every)
        assert chisquare([counts[refs] for refs in every]).pvalue > 1e-3


def test_random_tuples_depend_on_seed_and_anchor_alone() -> None:
    forward = TripletForward(IDENTITY, margin=100.0)
    e = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 4

    def mine(seed: int) -> Tensor:
        state = torch.get_rng_state()
        tuples = mine_tuples(forward, e, labels, num_tuples=5, mining="random", seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        assert tuples.active.all()
        return tuples.references

    torch.manual_seed(1)
    first = mine(0)
    torch.manual_seed(2)
    assert torch.equal(mine(0), first)
    assert not torch.equal(mine(1), first)
    assert not torch.equal(first[0], first[4])  # same class, same tuples but for themselves


def test_only_tuples_with_a_loss_are_active() -> None:
    e = torch.tensor([[0.0], [0.1], [5.0], [0.2], [5.1]])
    labels = torch.tensor([0, 0, 1, 1, 1])
    tuples = mine_tuples(
        TripletForward(IDENTITY, margin=0.2), e, labels, num_tuples=9, mining="hardest", seed=0
    )
    # Of image 0 only (1, 3) violates the margin, of its other tuples none.
    assert tuples.references[0][tuples.active[0]].tolist() == [[1, 3]]
    assert tuples.active.any(1).tolist() == [True, True, False, True, False]


def test_half_precision_embeddings_are_compared_in_single() -> None:
    generator = torch.Generator().manual_seed(0)
    e = torch.randn(12, 4, generator=generator).half()
    labels = torch.arange(12) % 3
    forward = TripletForward(IDENTITY)
    half, single = (
        mine_tuples(forward, each, labels, num_tuples=4, mining="hardest", seed=0)
        for each in (e, e.float())
    )
    assert torch.equal(half.references, single.references)


def test_a_callable_chooses_the_tuples() -> None:
    calls = []

    def mine(anchor: int, e: Tensor, labels: Tensor, count: int, generator: Any) -> Tensor:
        calls.append((anchor, tuple(e.shape), labels.tolist(), count, generator.initial_seed()))
        one = torch.tensor([[(anchor + 2) % 4, (anchor + 1) % 4]])
        return one[: anchor % 2]

    e = torch.zeros(4, 3)
    labels = torch.tensor([0, 1, 0, 1])
    tuples = mine_tuples(
        TripletForward(IDENTITY),
        e,
        labels,
        num_tuples=3,
        mining=mine,
        seed=0,
    )
    assert tuples.active.tolist() == [[False] * 3, [True, False, False]] * 2
    assert tuples.references[1, 0].tolist() == [3, 2]
    assert [call[:4] for call in calls] == [(i, (4, 3), [0, 1, 0, 1], 3) for i in range(4)]
    assert len({call[4] for call in calls}) == 4


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([[2, 1]], "returned list for image 0"),
        (torch.tensor([[2.0, 1.0]]), r"torch\.float32 of shape \(1, 2\)"),
        (torch.tensor([2, 1]), r"shape \(2,\) for image 0; expected integers \(M, 2\)"),
        (torch.tensor([[2, 1, 1]]), r"shape \(1, 3\)"),
        (torch.tensor([[2, 1]] * 4), "M at most num_tuples, which is 3"),
        (torch.tensor([[2, 4]]), "indices from 2 to 4 for image 0; expected 0 to 3"),
        (torch.tensor([[-2, 1]]), "indices from -2 to 1"),
        (torch.tensor([[0, 1]]), "image 0 as a reference of itself"),
        (torch.tensor([[1, 3]]), "reference 1, an image that is not of the 'same' role"),
        (torch.tensor([[2, 1], [2, 2]]), "reference 2, an image that is not of the 'different'"),
    ],
)
def test_what_a_callable_returns_is_checked(returned: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        mine_tuples(
            TripletForward(IDENTITY),
            torch.zeros(4, 3),
            torch.tensor([0, 1, 0, 1]),
            num_tuples=3,
            mining=lambda *arguments: returned,
            seed=0,
        )


def test_losses_are_those_of_the_forward_and_differentiable_in_the_anchor_alone() -> None:
    e = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    references = torch.tensor([[[1, 3], [2, 4]]] * 6)
    anchors = torch.tensor([0])
    own = e[anchors].detach().requires_grad_()
    forward = TripletForward(IDENTITY, margin=9.0)
    losses = tuple_losses(forward, own, e.detach(), labels, anchors, references)
    expected = losses_of(forward, e.detach(), labels, 0, [[1, 3], [2, 4]])
    assert losses[0].tolist() == pytest.approx(expected, rel=1e-5)
    losses.sum().backward()
    torch.testing.assert_close(own.grad, 2 * (e[3] + e[4] - e[1] - e[2]).detach()[None])


@pytest.mark.parametrize(
    ("forward", "labels", "message"),
    [
        (FORWARDS[0], [3, 3, 3], r"1 class\(es\), \[3\]; .*need 2"),
        (FORWARDS[0], [3, 3, 8, 4, 4], r"class\(es\) \[8\] have a single image"),
        (FORWARDS[6], [3, 3, 8, 8], r"2 class\(es\), \[3, 8\]; .*need 3"),
        (FORWARDS[3], [3], "one image"),
    ],
)
def test_labels_that_leave_an_image_without_tuples_are_refused(
    forward: MetricForward, labels: list[int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        require_minable(forward, torch.tensor(labels))


def test_pairs_need_neither_two_classes_nor_two_images_of_one() -> None:
    require_minable(FORWARDS[3], torch.tensor([3, 3]))
    require_minable(FORWARDS[3], torch.tensor([3, 4]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, "hardest", 0), "num_tuples is 0"),
        ((1.5, "hardest", 0), "num_tuples is 1.5"),
        ((True, "hardest", 0), "num_tuples is True"),
        ((5, "hardest", -1), "seed is -1"),
        ((5, "hardest", None), "seed is None"),
        ((5, "semi-hard", 0), "mining is 'semi-hard'"),
        ((5, None, 0), "mining is None"),
        ((5, "all", 0), "num_tuples is 5, and mining='all' has no use for it"),
        ((5, "random", 0, 100), "reference_pool is 100, and mining='random' has no use"),
        ((5, "hardest", 0, 1), "reference_pool is 1; expected an integer of at least 2"),
    ],
)
def test_settings_that_mean_nothing_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        require_mining(FORWARDS[0], *arguments)


def test_other_roles_need_a_callable() -> None:
    class TwoPositives(MetricForward):
        reference_roles = ("same", "same")

    with pytest.raises(InputError, match=r"TwoPositives has reference_roles .*pass a callable"):
        require_mining(TwoPositives(IDENTITY), 5, "hardest", 0)
    require_mining(TwoPositives(IDENTITY), 5, lambda *arguments: None, 0)
    with pytest.raises(InputError, match="MetricForward has reference_roles"):
        require_mining(MetricForward(IDENTITY), 5, lambda *arguments: None, 0)
