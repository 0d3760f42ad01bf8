"""Metric forwards against losses written out, and against pytorch-metric-learning."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from captum_embed import (
    EmbeddingLayerGradCam,
    PairForward,
    QuadrupletForward,
    SimilarityForward,
    TripletForward,
)
from captum_embed.errors import InputError
from captum_embed.metric_forwards import MetricForward, mean_of_nonzero

DISTANCES = {
    "squared_euclidean": lambda x, y: sum((a - b) ** 2 for a, b in zip(x, y, strict=True)),
    "euclidean": lambda x, y: sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) ** 0.5,
    "cosine": lambda x, y: 1 - x @ y / (x.norm() * y.norm()),
}


class CountingEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.batches = []

    def forward(self, images):
        self.batches.append(len(images))
        return self.conv(images).tanh().mean((2, 3))


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return CountingEncoder()


def images(count, n=3, seed=1):
    return torch.randn(count, n, 3, 6, 6, generator=torch.Generator().manual_seed(seed)).unbind()


@pytest.mark.parametrize("distance", DISTANCES)
def test_losses_are_those_written_out(encoder, distance):
    a, p, n, m = images(4)
    ea, ep, en, em = (encoder(x) for x in (a, p, n, m))
    d = DISTANCES[distance]
    triplet = TripletForward(encoder, 0.1, distance, explains="loss")(a, p, n)
    quadruplet = QuadrupletForward(encoder, 0.1, 0.05, distance, explains="loss")(a, p, n, m)
    same = torch.tensor([True, False, False])
    contrastive = PairForward(encoder, "contrastive", 0.3, distance, "loss")(a, p, same)
    similarity = PairForward(encoder, "similarity", distance=distance)(a, p)
    for i in range(3):
        near, far, apart = d(ea[i], ep[i]), d(ea[i], en[i]), d(en[i], em[i])
        torch.testing.assert_close(triplet[i], (near - far + 0.1).clamp(min=0))
        torch.testing.assert_close(
            quadruplet[i], (near - far + 0.1).clamp(min=0) + (near - apart + 0.05).clamp(min=0)
        )
        torch.testing.assert_close(contrastive[i], near if same[i] else (0.3 - near).clamp(min=0))
        torch.testing.assert_close(similarity[i], 1 - near if distance == "cosine" else -near)


def test_triplet_agrees_with_pytorch_metric_learning(encoder):
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    reducers = pytest.importorskip("pytorch_metric_learning.reducers")
    loss = losses.TripletMarginLoss(
        margin=0.2,
        distance=distances.LpDistance(normalize_embeddings=False, power=2),
        reducer=reducers.DoNothingReducer(),
    )
    embeddings = encoder(torch.cat(images(3)))
    indices = tuple(torch.arange(9).split(3))
    expected = loss(embeddings, indices_tuple=indices)["loss"]["losses"]
    torch.testing.assert_close(TripletForward(encoder, explains="loss")(*images(3)), expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda encoder, **how: TripletForward(encoder, 0.3, **how),
        lambda encoder, **how: QuadrupletForward(encoder, 0.3, **how),
        lambda encoder, **how: PairForward(encoder, margin=3.0, **how),
        lambda encoder, **how: PairForward(encoder, "similarity", distance="cosine", **how),
        lambda encoder, **how: PairForward(encoder, "distance", **how),
    ],
)
def test_a_match_is_minus_the_loss_and_the_default(encoder, make):
    forwards = make(encoder), make(encoder, explains="match"), make(encoder, explains="loss")
    assert [forward.explains for forward in forwards] == ["match", "match", "loss"]
    same = [torch.tensor([1, 0, 1])] if getattr(forwards[0], "loss", "") == "contrastive" else []
    count = 1 + len(forwards[0].reference_roles)
    default, match, loss = (forward(*images(count), *same) for forward in forwards)
    assert loss.abs().min() > 0
    assert torch.equal(default, -loss)
    assert torch.equal(match, -loss)
    many = torch.randn(count - 1, 3, 5, 4)
    same = [torch.rand(3, 5) > 0.5] if same else []
    match, loss = (forward(images(1)[0], *many, *same) for forward in forwards[1:])
    assert torch.equal(match, -loss)


def test_a_distance_is_a_pair_s_loss_and_a_similarity_its_match(encoder):
    x, y = images(2)
    d = F.pairwise_distance(encoder(x), encoder(y), eps=0)
    near = PairForward(encoder, "similarity", distance="euclidean")
    torch.testing.assert_close(near(x, y), -d)
    far = PairForward(encoder, "distance", distance="euclidean", explains="loss")
    torch.testing.assert_close(far(x, y), d)


@pytest.mark.parametrize("name", ["LpDistance", "CosineSimilarity", "DotProductSimilarity"])
def test_distances_of_pytorch_metric_learning_are_taken_as_they_are(encoder, name):
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    reducers = pytest.importorskip("pytorch_metric_learning.reducers")
    power = {"power": 2} if name == "LpDistance" else {}
    distance = getattr(distances, name)(**power)
    loss = losses.TripletMarginLoss(0.2, distance=distance, reducer=reducers.DoNothingReducer())
    embeddings = encoder(torch.cat(images(3)))
    expected = loss(embeddings, indices_tuple=tuple(torch.arange(9).split(3)))["loss"]["losses"]
    actual = TripletForward(encoder, 0.2, distance, "loss")(*images(3))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    many = torch.randn(3, 5, 4)
    assert TripletForward(encoder, 0.2, distance)(images(1)[0], many, many[:1]).shape == (3,)


def test_a_distance_may_be_any_callable(encoder):
    def manhattan(first, second):
        return (first - second).abs().sum(-1)

    a, p, n = images(3)
    ea, ep, en = (encoder(x) for x in (a, p, n))
    expected = (manhattan(ea, ep) - manhattan(ea, en) + 0.2).clamp(min=0)
    actual = TripletForward(encoder, 0.2, manhattan, "loss")(a, p, n)
    torch.testing.assert_close(actual, expected)


def test_the_arguments_that_are_encoded_are_named(encoder):
    a, p, n = images(3)
    assert TripletForward(encoder).image_inputs(a, p, n) == (0, 1, 2)
    assert TripletForward(encoder).image_inputs(a, encoder(p), n) == (0, 2)
    assert TripletForward(encoder).image_inputs(a, encoder(p), torch.randn(3, 7, 4)) == (0,)
    assert PairForward(encoder).image_inputs(a, p, torch.ones(3)) == (0, 1)


def test_all_images_are_encoded_in_one_batch(encoder):
    QuadrupletForward(encoder)(*images(4))
    assert encoder.batches == [12]


@pytest.mark.parametrize("given", ["positive", "negative", "both"])
def test_references_may_be_embeddings(encoder, given):
    a, p, n = images(3)
    expected = TripletForward(encoder, 1.0)(a, p, n)
    assert expected.abs().min() > 0
    encoder.batches.clear()
    p_or_e = encoder(p) if given in ("positive", "both") else p
    n_or_e = encoder(n) if given in ("negative", "both") else n
    encoder.batches.clear()
    torch.testing.assert_close(TripletForward(encoder, 1.0)(a, p_or_e, n_or_e), expected)
    assert sum(encoder.batches) == (3 if given == "both" else 6)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 4), m=st.integers(1, 6), margin=st.floats(0, 2), seed=st.integers(0, 99))
def test_many_tuples_are_the_mean_of_those_with_loss(n, m, margin, seed):
    generator = torch.Generator().manual_seed(seed)
    forward = TripletForward(nn.Flatten(), margin, explains="loss")
    anchor = torch.randn(n, 5, 1, 1, generator=generator)
    positives, negatives = torch.randn(2, n, m, 5, generator=generator)
    actual = forward(anchor, positives, negatives)
    for i in range(n):
        losses = [
            float(forward(anchor[i : i + 1], positives[i, j : j + 1], negatives[i, j : j + 1]))
            for j in range(m)
        ]
        active = [loss for loss in losses if loss > 0]
        expected = sum(active) / len(active) if active else 0.0
        assert float(actual[i]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_pairs_of_one_image_with_many_take_labels_for_each(encoder):
    first, _ = images(2)
    others = torch.randn(3, 5, 4)
    same = torch.rand(3, 5) > 0.5
    actual = PairForward(encoder, explains="loss")(first, others, same)
    losses = PairForward(encoder).tuple_loss(encoder(first)[:, None], others, same)
    torch.testing.assert_close(actual, mean_of_nonzero(losses))


def test_euclidean_distance_has_a_gradient_at_zero():
    x = torch.ones(1, 4, 1, 1, requires_grad=True)
    TripletForward(nn.Flatten(), 5.0, "euclidean")(x, x.detach(), -x.detach()).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_hand_computed_triplet_gradient():
    a = torch.tensor([[1.0, 0.0]], requires_grad=True)
    p, n = torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0, 1.0]])
    # d/da of |a-p|^2 - |a-n|^2 + margin is 2(n - p), where the loss is above zero
    TripletForward(nn.Identity(), margin=1.0).tuple_loss(a, p, n).sum().backward()
    assert a.grad.tolist() == [[6.0, -2.0]]


class TestBadInput:
    def test_unknown_distance_lists_the_known(self, encoder):
        with pytest.raises(InputError, match=r"'manhattan'.*'cosine'.*'euclidean'"):
            TripletForward(encoder, distance="manhattan")

    def test_unknown_pair_loss(self, encoder):
        with pytest.raises(InputError, match="'hinge'"):
            PairForward(encoder, loss="hinge")

    def test_unknown_direction(self, encoder):
        with pytest.raises(InputError, match=r"explains is 'score'; expected 'match' .* 'loss'"):
            TripletForward(encoder, explains="score")

    def test_labels_that_are_no_numbers(self, encoder):
        with pytest.raises(InputError, match="same cannot be made a tensor"):
            PairForward(encoder)(*torch.rand(2, 3, 3, 8, 8), ["a", "b", "a"])

    @pytest.mark.parametrize("same", [[-1, 1, 1], [0.5, 1.0, 0.0], [4, 4, 7]])
    def test_labels_that_are_not_yes_or_no(self, encoder, same):
        with pytest.raises(InputError, match=r"same holds \[.*expected True and False, or 1 and 0"):
            PairForward(encoder)(*images(2), torch.tensor(same))

    def test_contrastive_without_labels(self, encoder):
        with pytest.raises(InputError, match="pass `same`"):
            PairForward(encoder)(*images(2))

    def test_labels_of_another_number(self, encoder):
        with pytest.raises(InputError, match=r"\(2,\) for 3 pairs"):
            PairForward(encoder)(*images(2), torch.tensor([True, False]))

    def test_fewer_references_than_anchors(self, encoder):
        a, p, n = images(3)
        with pytest.raises(InputError, match="reference 2 holds 1 images for 3 anchors"):
            TripletForward(encoder)(a, p, n[:1])

    def test_embeddings_of_another_width(self, encoder):
        a, p, _ = images(3)
        with pytest.raises(InputError, match=r"reference 2 has embeddings of shape \(3, 7\)"):
            TripletForward(encoder)(a, p, torch.randn(3, 7))

    @pytest.mark.parametrize("shape", [(2, 6), (4, 6), (2, 5, 6), (4, 5, 6)])
    def test_embeddings_of_another_number(self, encoder, shape):
        a, p, _ = images(3)
        width = encoder(a).shape[1]
        with pytest.raises(InputError, match="as many rows"):
            TripletForward(encoder)(a, p, torch.randn(*shape[:-1], width))

    def test_references_of_no_known_kind(self, encoder):
        a, p, _ = images(3)
        with pytest.raises(InputError, match="reference 2 has shape"):
            TripletForward(encoder)(a, p, torch.randn(3, 1, 3, 6, 6))

    def test_images_without_a_batch(self, encoder):
        a, p, _ = images(3)
        forward = PairForward(encoder, "similarity")
        message = r"fails on inputs of shape \(3, 6, 6\) .* give image\[None\]"
        with pytest.raises(InputError, match=message):
            EmbeddingLayerGradCam(forward, encoder.conv).attribute((a[0], p[0]))
        with pytest.raises(InputError, match=message):
            SimilarityForward(encoder, torch.ones(1, 4))(a[0])
        with pytest.raises(RuntimeError, match="to have 3 channels"):
            forward(a[:, :2], p[:, :2])

    def test_encoder_that_does_not_pool(self):
        with pytest.raises(InputError, match="pool and flatten"):
            TripletForward(nn.Conv2d(3, 4, 3))(*images(3))

    def test_a_loss_must_say_what_a_tuple_costs(self, encoder):
        with pytest.raises(NotImplementedError):
            F.relu(MetricForward(encoder).tuple_loss(torch.ones(1, 2)))
