"""SecondOrderAttribution against Captum, full Jacobians, and the sums that it must have."""

import pytest
import torch
from captum.attr import LayerIntegratedGradients
from torch import nn

from captum_embed.errors import InputError, LayerError
from captum_embed.rivals import ActivationDecomposition, SecondOrderAttribution


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


class Encoder(nn.Module):
    """A smooth network, so that few points integrate it well, with or without the L2 norm."""

    def __init__(self, normalized=False):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 4, 3)
        self.above = nn.Sequential(nn.Softplus(), nn.Conv2d(4, 5, 2), nn.Tanh())
        self.head = nn.Linear(5, 3)
        self.normalized = normalized
        self.double()

    def unnormalized(self, activations):
        return self.head(self.above(activations).mean((2, 3)))

    def forward(self, images):
        embeddings = self.unnormalized(self.layer(images))
        return nn.functional.normalize(embeddings, dim=1) if self.normalized else embeddings


def embeddings(encoder, images, baseline):
    """Unnormalized, of the images and of the baseline."""
    with torch.no_grad():
        reached = encoder.layer(images)
        start = torch.zeros_like(reached) if baseline is None else encoder.layer(baseline)
        return encoder.unnormalized(reached), encoder.unnormalized(start)


@pytest.mark.parametrize("baseline", [None, normal(1, 3, 6, 7, seed=5)])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("normalized", [False, True])
def test_sums_to_the_similarity_less_that_of_the_baselines(baseline, similarity, normalized):
    encoder = Encoder(normalized)
    images, references = normal(2, 3, 6, 7), normal(2, 3, 6, 7, seed=2)
    map_, pairs = SecondOrderAttribution(
        encoder, encoder.layer, encoder.head, similarity=similarity
    ).attribute(images, references, baseline, n_steps=30, return_pairs=True)
    assert map_.shape == (2, 1, 4, 5)
    assert pairs.shape == (2, 4, 5, 4, 5)
    (x, x0), (r, r0) = (embeddings(encoder, one, baseline) for one in (images, references))

    def dot(a, b):
        return (a * b).sum(1)

    expected = dot(x, r) - dot(x0, r) - dot(x, r0) + dot(x0, r0)
    if similarity == "cosine":
        expected = expected / (x.norm(dim=1) * r.norm(dim=1))
    torch.testing.assert_close(pairs.sum((1, 2, 3, 4)), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(map_.sum((1, 2, 3)), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(pairs.sum((3, 4)), map_[:, 0], atol=1e-6, rtol=1e-5)


def test_map_is_captums_integrated_gradients_of_the_product_with_the_references_change():
    encoder, baseline = Encoder(), normal(1, 3, 6, 7, seed=5)
    images, references = normal(2, 3, 6, 7), normal(2, 3, 6, 7, seed=2)
    r, r0 = embeddings(encoder, references, baseline)

    def product(images, change):
        return (encoder(images) * change).sum(1)

    expected = LayerIntegratedGradients(product, encoder.layer).attribute(
        images,
        baselines=baseline.expand_as(images),
        additional_forward_args=r - r0,
        n_steps=7,
    )
    actual = SecondOrderAttribution(encoder, encoder.layer, similarity="dot").attribute(
        images, references, baseline, n_steps=7
    )
    torch.testing.assert_close(actual, expected.sum(1, keepdim=True), atol=1e-6, rtol=1e-5)


def test_pairs_are_products_of_averaged_jacobians():
    encoder = Encoder()
    image, reference = normal(1, 3, 5, 5), normal(1, 3, 6, 4, seed=2)

    def vectors(image):
        reached = encoder.layer(image).detach()
        total = 0
        for i in range(400):  # midpoints
            at = reached * (i + 0.5) / 400
            jacobian = torch.autograd.functional.jacobian(encoder.unnormalized, at)
            total = total + jacobian[0, :, 0] / 400
        return (total * reached[0]).sum(1)

    expected = torch.einsum("dhw,dxy->hwxy", vectors(image), vectors(reference))
    method = SecondOrderAttribution(encoder, encoder.layer, similarity="dot")
    for at_once in (3, 32):
        _, pairs = method.attribute(
            image, reference, internal_batch_size=at_once, return_pairs=True
        )
        torch.testing.assert_close(pairs[0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_is_the_activation_decomposition_after_average_pooling(similarity):
    torch.manual_seed(0)
    features, head = nn.Conv2d(3, 5, 3), nn.Linear(5, 4, bias=False)

    class Normalized(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.head = features, head

        def forward(self, images):
            return nn.functional.normalize(self.head(self.features(images).mean((2, 3))), dim=1)

    encoder = Normalized().double()
    images, references = normal(2, 3, 7, 9), normal(1, 3, 8, 6, seed=2)
    decomposition = ActivationDecomposition(encoder, features, head, similarity=similarity)
    method = SecondOrderAttribution(encoder, features, head, similarity=similarity)
    map_, pairs = method.attribute(images, references, n_steps=1, return_pairs=True)
    torch.testing.assert_close(map_, decomposition.attribute(images, references))
    torch.testing.assert_close(pairs, decomposition.decompose(images, references).pairs)
    torch.testing.assert_close(
        method.attribute(images, encoder(references), n_steps=1),
        decomposition.attribute(images, encoder(references)),
    )


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_reference_embeddings_are_averaged(similarity):
    encoder = Encoder()
    images, references = normal(2, 3, 6, 7), normal(3, 3, 6, 7, seed=2)
    method = SecondOrderAttribution(encoder, encoder.layer, similarity=similarity)
    one_by_one = [method.attribute(images, reference) for reference in references.split(1)]
    actual = method.attribute(images, encoder(references)[None])
    torch.testing.assert_close(actual, sum(one_by_one) / 3)


def test_without_a_reference_each_image_is_compared_with_itself():
    encoder = Encoder()
    images = normal(2, 3, 6, 7)
    method = SecondOrderAttribution(encoder, encoder.layer)
    _, pairs = method.attribute(images, return_pairs=True)
    torch.testing.assert_close(pairs, pairs.permute(0, 3, 4, 1, 2))
    torch.testing.assert_close(method.attribute(images), method.attribute(images, images.clone()))


def test_relu_in_place_successors_and_no_trace():
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).double()
    encoder.requires_grad_(False)
    images, references = normal(2, 3, 6, 7), normal(2, 3, 6, 7, seed=2)
    before = images.clone()
    method = SecondOrderAttribution(encoder, encoder[0])
    with torch.no_grad():
        map_ = method.attribute(images, references)
        assert not torch.is_grad_enabled()
    # From zero, a rectified channel counts in full where it is positive, and not elsewhere.
    expected = encoder[:2](images).mean((2, 3)), encoder[:2](references).mean((2, 3))
    torch.testing.assert_close(map_.sum((1, 2, 3)), torch.cosine_similarity(*expected))
    rectified = method.attribute(images, references, relu_attributions=True)
    torch.testing.assert_close(rectified, map_.clamp(min=0))
    assert not map_.requires_grad
    assert not encoder[0]._forward_hooks
    assert torch.equal(images, before)


class TestRefuses:
    def test_to_integrate_a_normalized_embedding_from_zero(self):
        torch.manual_seed(0)
        features = nn.Conv2d(3, 4, 3)

        def encoder(images):
            return nn.functional.normalize(features(images).mean((2, 3)), dim=1)

        method = SecondOrderAttribution(encoder, features)
        with pytest.raises(InputError, match=r"misses the change.*embedding_layer"):
            method.attribute(torch.rand(1, 3, 6, 7), torch.rand(1, 3, 6, 7))

    def test_embeddings_of_unknown_length_against_a_baseline(self):
        encoder = Encoder(normalized=True)
        method = SecondOrderAttribution(encoder, encoder.layer, encoder.head)
        with pytest.raises(InputError, match="pass the reference as images"):
            method.attribute(normal(1, 3, 6, 7), normal(1, 3))

    def test_pairs_with_embeddings_and_baselines_that_do_not_fit(self):
        encoder = Encoder()
        method = SecondOrderAttribution(encoder, encoder.layer)
        images = normal(2, 3, 6, 7)
        with pytest.raises(InputError, match="as images"):
            method.attribute(images, normal(2, 3), return_pairs=True)
        with pytest.raises(InputError, match="hold 2 images; expected one"):
            method.attribute(images, images, images)
        with pytest.raises(InputError, match="expected a baseline of its size"):
            method.attribute(images, images, normal(1, 3, 8, 8))
        with pytest.raises(InputError, match="n_steps is 0"):
            method.attribute(images, images, n_steps=0)
        with pytest.raises(InputError, match="'cosine' or 'dot'"):
            SecondOrderAttribution(encoder, encoder.layer, similarity="euclidean")

    def test_an_encoder_without_a_graph(self):
        encoder = Encoder()
        method = SecondOrderAttribution(lambda x: encoder(x).detach(), encoder.layer)
        with pytest.raises(LayerError, match="through a graph"):
            method.attribute(normal(1, 3, 6, 7))
        assert not encoder.layer._forward_hooks
