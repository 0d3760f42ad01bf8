"""ActivationDecomposition against loops over positions and channels, and against autograd."""

import itertools

import numpy as np
import pytest
import torch
from captum.attr import NoiseTunnel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from captum_embed import TripletForward
from captum_embed.errors import InputError
from captum_embed.rivals import ActivationDecomposition

POOLS = {"average": nn.AdaptiveAvgPool2d, "max": nn.AdaptiveMaxPool2d}


class Encoder(nn.Module):
    """Convolution, ReLU6, global pooling, linear head, perhaps the L2 norm; in float64."""

    def __init__(self, pooling="average", bias=True, normalized=True, channels=5, width=4):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, channels, 3), nn.ReLU6())
        self.pool = POOLS[pooling](1)
        self.head = nn.Linear(channels, width, bias=bias)
        self.normalized = normalized
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.double()

    def unnormalized(self, images):
        return self.head(self.pool(self.features(images)).flatten(1))

    def forward(self, images):
        embeddings = self.unnormalized(images)
        return nn.functional.normalize(embeddings, dim=1) if self.normalized else embeddings


def images(n, height, width, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, height, width, generator=generator, dtype=torch.float64)


def built(encoder, pooling="average", similarity="cosine"):
    return ActivationDecomposition(
        encoder, encoder.features, encoder.head, pooling, similarity=similarity
    )


def by_loops(encoder, image, pooling):
    """Vectors of each position by loops over positions and channels, and the head's bias."""
    activation = encoder.features(image[None])[0].detach().numpy()
    weight = encoder.head.weight.detach().numpy()
    channels, height, width = activation.shape
    vectors = np.zeros((height, width, len(weight)))
    for c, y, x in np.ndindex(channels, height, width):
        if pooling == "average":
            share = activation[c, y, x] / (height * width)
        else:
            maximum = activation[c].max()
            ties = int((activation[c] == maximum).sum())
            share = maximum / ties if activation[c, y, x] == maximum else 0.0
        for d in range(len(weight)):
            vectors[y, x, d] += weight[d, c] * share
    bias = encoder.head.bias
    return vectors, np.zeros(len(weight)) if bias is None else bias.detach().numpy()


@pytest.mark.parametrize("pooling", ["average", "max"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@settings(max_examples=5, deadline=None)
@given(
    height=st.integers(3, 7),
    width=st.integers(3, 7),
    other_height=st.integers(3, 7),
    other_width=st.integers(3, 7),
    seed=st.integers(0, 99),
)
def test_terms_equal_loops_over_pairs_of_positions(
    pooling, bias, similarity, height, width, other_height, other_width, seed
):
    encoder = Encoder(pooling, bias)
    first, second = images(2, height, width, seed), images(2, other_height, other_width, seed + 1)
    terms = built(encoder, pooling, similarity).decompose(first, second)
    for n in range(2):
        u, b = by_loops(encoder, first[n], pooling)
        v, _ = by_loops(encoder, second[n], pooling)
        whole, other = u.sum((0, 1)) + b, v.sum((0, 1)) + b
        scale = 1.0
        if similarity == "cosine":
            lengths = [max(np.linalg.norm(one), 1e-12) for one in (whole, other)]
            scale = 1 / (lengths[0] * lengths[1])
        for y, x, i, j in np.ndindex(*u.shape[:2], *v.shape[:2]):
            expected = sum(u[y, x, d] * v[i, j, d] for d in range(len(b))) * scale
            assert terms.pairs[n, y, x, i, j].item() == pytest.approx(expected, abs=1e-9)
        np.testing.assert_allclose(terms.inputs_bias[n], u @ b * scale, atol=1e-9)
        np.testing.assert_allclose(terms.reference_bias[n], v @ b * scale, atol=1e-9)
        assert terms.bias[n].item() == pytest.approx(b @ b * scale, abs=1e-9)


@pytest.mark.parametrize("pooling", ["average", "max"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_terms_sum_to_the_similarity(pooling, bias, normalized, similarity):
    encoder = Encoder(pooling, bias, normalized)
    first, second = images(3, 8, 9), images(3, 6, 11, seed=2)
    terms = built(encoder, pooling, similarity).decompose(first, second)
    e, f = encoder.unnormalized(first), encoder.unnormalized(second)
    expected = torch.cosine_similarity(e, f) if similarity == "cosine" else (e * f).sum(1)
    total = (
        terms.pairs.sum((1, 2, 3, 4))
        + terms.inputs_bias.sum((1, 2))
        + terms.reference_bias.sum((1, 2))
        + terms.bias
    )
    torch.testing.assert_close(total, expected.detach())
    torch.testing.assert_close(terms.similarity, expected.detach())


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_overall_maps_sum_to_the_cosine_of_the_benchmarks_network(pooling):
    encoder = Encoder(pooling, bias=False, channels=1280, width=512).float()
    first, second = images(2, 9, 12).float(), images(2, 7, 8, seed=2).float()
    maps = built(encoder, pooling).attribute((first, second))
    expected = torch.cosine_similarity(encoder(first), encoder(second))
    for one in maps:
        torch.testing.assert_close(one.sum((1, 2, 3)), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_overall_map_sums_pairs_over_the_other_image(pooling):
    encoder = Encoder(pooling)
    first, second = images(2, 7, 8), images(2, 9, 6, seed=2)
    decomposition = built(encoder, pooling)
    terms = decomposition.decompose(first, second)
    ours, theirs = decomposition.attribute((first, second))
    torch.testing.assert_close(ours[:, 0], terms.pairs.sum((3, 4)))
    torch.testing.assert_close(theirs[:, 0], terms.pairs.sum((1, 2)))
    ours, theirs = decomposition.attribute((first, second), include_bias=True)
    torch.testing.assert_close(ours[:, 0], terms.pairs.sum((3, 4)) + terms.inputs_bias)
    torch.testing.assert_close(theirs[:, 0], terms.pairs.sum((1, 2)) + terms.reference_bias)


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_overall_map_with_bias_is_gradient_times_activation_of_the_dot_product(pooling):
    encoder = Encoder(pooling, normalized=False)
    encoder.features[0].weight.data /= 10  # below ReLU6's ceiling, where maxima would tie
    first, second = images(2, 7, 8), images(2, 9, 6, seed=2)
    activation = encoder.features(first).detach().requires_grad_()
    embedding = encoder.head(encoder.pool(activation).flatten(1))
    (embedding * encoder(second)).sum().backward()
    expected = (activation.grad * activation.detach()).sum(1, keepdim=True)
    if pooling == "max":
        assert (activation.flatten(2) == activation.amax((2, 3))[..., None]).sum(2).max() == 1
    actual = built(encoder, pooling, "dot").attribute(first, second, include_bias=True)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_relu_pairs_drops_negative_pairs_before_summing(pooling):
    encoder = Encoder(pooling)
    first, second = images(1, 6, 7), images(1, 8, 5, seed=2)
    u, b = by_loops(encoder, first[0], pooling)
    v, _ = by_loops(encoder, second[0], pooling)
    expected = np.zeros(u.shape[:2])
    for y, x, i, j in np.ndindex(*u.shape[:2], *v.shape[:2]):
        expected[y, x] += max(0.0, float(u[y, x] @ v[i, j]))
    expected /= np.linalg.norm(u.sum((0, 1)) + b) * np.linalg.norm(v.sum((0, 1)) + b)
    actual = built(encoder, pooling).attribute(first, second, relu_pairs=True)
    np.testing.assert_allclose(actual[0, 0], expected)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("pooling", ["average", "max"])
def test_reference_embeddings_are_averaged_similarities(similarity, rows, pooling):
    encoder = Encoder(pooling)
    inputs = images(3, 7, 8)
    references = images(rows, 2, 4, seed=3).flatten(2)[:, :, :4]
    actual = built(encoder, pooling, similarity).attribute(inputs, references)
    e = encoder.unnormalized(inputs)[:, None]
    measured = (
        torch.cosine_similarity(e, references, dim=2)
        if similarity == "cosine"
        else (e * references).sum(2)
    )
    directions = references
    if similarity == "cosine":
        directions = nn.functional.normalize(references, dim=2) / e.norm(dim=2, keepdim=True)
    bias = (directions * encoder.head.bias).sum(2).mean(1)
    torch.testing.assert_close(actual.sum((1, 2, 3)) + bias, measured.mean(1))


def test_embedding_of_an_image_gives_its_map_with_bias():
    encoder = Encoder()
    first, second = images(2, 7, 8), images(2, 9, 6, seed=2)
    decomposition = built(encoder)
    by_image = decomposition.attribute(first, second, include_bias=True)
    torch.testing.assert_close(decomposition.attribute(first, encoder(second)), by_image)


def test_without_a_reference_each_image_is_compared_with_itself():
    encoder = Encoder(bias=False)
    inputs = images(2, 7, 8)
    map_ = built(encoder).attribute(inputs)
    torch.testing.assert_close(map_, built(encoder).attribute(inputs, inputs))
    torch.testing.assert_close(map_.sum((1, 2, 3)), torch.ones(2, dtype=torch.float64))


def test_a_tuple_of_one_batch_gives_a_tuple_of_one_map():
    encoder = Encoder()
    (map_,) = built(encoder).attribute((images(2, 7, 8),))
    torch.testing.assert_close(map_, built(encoder).attribute(images(2, 7, 8)))


def test_one_reference_image_serves_all_inputs():
    encoder = Encoder("max")
    inputs, reference = images(3, 7, 8), images(1, 9, 6, seed=2)
    decomposition = built(encoder, "max")
    together = decomposition.attribute(inputs, reference)
    pairs = decomposition.decompose(inputs, reference).pairs
    point = decomposition.point_map(inputs, reference, (3, 2))
    for n in range(3):
        alone = inputs[n : n + 1]
        torch.testing.assert_close(together[n : n + 1], decomposition.attribute(alone, reference))
        torch.testing.assert_close(
            pairs[n : n + 1], decomposition.decompose(alone, reference).pairs
        )
        torch.testing.assert_close(
            point[n : n + 1], decomposition.point_map(alone, reference, (3, 2))
        )


class TestMaxTies:
    def test_positions_that_tie_share_the_maximum_equally(self):
        encoder = Encoder("max")
        flat = torch.ones(1, 3, 6, 6, dtype=torch.float64)
        map_ = built(encoder, "max").attribute(flat, images(1, 8, 8))
        torch.testing.assert_close(map_, map_.mean().expand_as(map_))

    def test_ties_keep_the_sum(self):
        encoder = Encoder("max", bias=False)
        tied = images(1, 4, 8)
        tied = torch.cat([tied, tied.flip(2)], 2)  # ReLU6 also ties its channels at 0 and 6
        other = images(1, 8, 8, seed=2)
        cosine = torch.cosine_similarity(encoder(tied), encoder(other)).item()
        assert built(encoder, "max").attribute(tied, other).sum().item() == pytest.approx(cosine)


def published_point_map(pairs, point, size):
    """`Point_Specific` of Zhu et al.'s Image_Retrieval/demo.py: rectify, pad, interpolate."""
    padded = np.pad(np.maximum(pairs, 0), ((1, 1), (1, 1), (0, 0), (0, 0)), mode="edge")
    y, x = (
        (at + 0.5) / side * n + 0.5
        for at, side, n in zip(point, size, pairs.shape[:2], strict=True)
    )
    total = 0
    for i, j in itertools.product((int(y), int(y) + 1), (int(x), int(x) + 1)):
        total = total + padded[i, j] * (1 - abs(y - i)) * (1 - abs(x - j))
    return total


class TestPointMap:
    def test_at_the_centre_of_a_position_is_its_row_of_pairs(self):
        encoder = Encoder()
        first, second = images(2, 8, 12), images(2, 7, 5, seed=2)
        decomposition = built(encoder)
        pairs = decomposition.decompose(first, second).pairs
        height, width = pairs.shape[1:3]
        total = 0
        for y, x in itertools.product(range(height), range(width)):
            pixel = ((y + 0.5) * 8 / height - 0.5, (x + 0.5) * 12 / width - 0.5)
            map_ = decomposition.point_map(first, second, pixel)
            torch.testing.assert_close(map_[:, 0], pairs[:, y, x])
            total = total + map_
        torch.testing.assert_close(total, decomposition.attribute((first, second))[1])

    def test_between_two_positions_is_their_mean_and_the_border_is_clamped(self):
        encoder = Encoder()
        first, second = images(1, 8, 12), images(1, 7, 5, seed=2)
        decomposition = built(encoder)
        pairs = decomposition.decompose(first, second).pairs
        row, column = 3 * 8 / 6 - 0.5, 5 * 12 / 10 - 0.5
        expected = pairs[0, 2:4, 4:6].mean((0, 1))
        torch.testing.assert_close(
            decomposition.point_map(first, second, (row, column))[0, 0], expected
        )
        torch.testing.assert_close(
            decomposition.point_map(first, second, (0, 11))[0, 0], pairs[0, 0, -1]
        )

    def test_relu_attributions_clamps_pairs_before_it_interpolates_as_the_published_code(self):
        encoder = Encoder()
        first, second = images(1, 8, 12), images(1, 7, 5, seed=2)
        raw = built(encoder).point_map(first, second, (4.3, 6.6))
        rectified = built(encoder).point_map(first, second, (4.3, 6.6), relu_attributions=True)
        pairs = built(encoder).decompose(first, second).pairs[0]
        expected = published_point_map(pairs.numpy(), (4.3, 6.6), (8, 12))
        np.testing.assert_allclose(rectified[0, 0], expected, atol=1e-12)
        assert not torch.allclose(rectified, raw.clamp(min=0))

    @pytest.mark.parametrize("position", [(-1, 0), (0, 12), (8, 0), (1,), (1, 1, 1)])
    def test_refuses_a_position_outside_the_image(self, position):
        encoder = Encoder()
        with pytest.raises(InputError, match="8 rows and 12 columns"):
            built(encoder).point_map(images(1, 8, 12), None, position)

    def test_refuses_a_reference_without_positions(self):
        encoder = Encoder()
        with pytest.raises(InputError, match="pass images"):
            built(encoder).point_map(images(1, 8, 12), torch.randn(1, 4).double(), (0, 0))


def test_relu_attributions_sets_negative_values_to_zero():
    encoder = Encoder()
    first, second = images(2, 7, 8), images(2, 9, 6, seed=2)
    raw = built(encoder).attribute(first, second)
    assert raw.min() < 0
    rectified = built(encoder).attribute(first, second, relu_attributions=True)
    torch.testing.assert_close(rectified, raw.clamp(min=0))


def test_encoder_of_a_metric_forward_is_decomposed():
    encoder = Encoder()
    forward = TripletForward(encoder)
    first, second = images(2, 7, 8), images(2, 9, 6, seed=2)
    actual = ActivationDecomposition(forward, encoder.features, encoder.head).attribute(
        first, second
    )
    torch.testing.assert_close(actual, built(encoder).attribute(first, second))


def test_works_inside_noise_tunnel():
    encoder = Encoder()
    inputs, reference = images(2, 7, 8), images(1, 9, 6, seed=2)
    tunnel = NoiseTunnel(built(encoder))
    torch.manual_seed(0)
    quiet = tunnel.attribute(inputs, nt_samples=3, stdevs=0.0, reference=reference)
    torch.testing.assert_close(quiet, built(encoder).attribute(inputs, reference))


def test_leaves_no_trace():
    encoder = Encoder().train()
    inputs = images(2, 7, 8).requires_grad_()
    state = torch.get_rng_state()
    map_ = built(encoder).attribute(inputs, encoder(images(2, 7, 8)))
    assert not map_.requires_grad
    assert torch.is_grad_enabled()
    assert encoder.training
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder.features._forward_hooks
    assert torch.equal(state, torch.get_rng_state())


class TestRefuses:
    def test_unknown_pooling_and_similarity(self):
        encoder = Encoder()
        with pytest.raises(InputError, match="'gem'; expected 'average' or 'max'"):
            built(encoder, "gem")
        with pytest.raises(InputError, match="'l2'; expected 'cosine' or 'dot'"):
            built(encoder, similarity="l2")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (((images(2, 7, 8), images(2, 7, 8)), images(2, 7, 8)), "pair alone"),
            (((images(2, 7, 8), images(1, 7, 8)),), "row by row"),
            (((images(2, 7, 8),) * 3,), "tuple of two"),
            ((images(0, 7, 8),), "at least one image"),
            ((images(2, 7, 8), images(3, 7, 8)), "3 rows for 2 images"),
            ((images(2, 7, 8), torch.randn(2, 5).double()), "same width"),
            ((images(2, 7, 8), torch.randn(3, 4).double()), "3 rows for 2 images"),
            ((images(2, 7, 8), torch.randn(2, 0, 4).double()), "expected embeddings"),
            ((images(2, 7, 8), torch.randn(4).double()), r"shape \(4,\)"),
            ((images(2, 7, 8), [1.0]), "list"),
            (("image",), "str"),
        ],
    )
    def test_inputs_and_references_that_do_not_fit(self, arguments, message):
        encoder = Encoder()
        with pytest.raises(InputError, match=message):
            built(encoder).attribute(*arguments)

    def test_relu_pairs_where_there_are_none(self):
        encoder = Encoder()
        with pytest.raises(InputError, match="pass images"):
            built(encoder).attribute(images(2, 7, 8), torch.randn(2, 4).double(), relu_pairs=True)
        with pytest.raises(InputError, match="either"):
            built(encoder).attribute(images(2, 7, 8), relu_pairs=True, include_bias=True)
