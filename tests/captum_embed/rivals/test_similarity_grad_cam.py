"""SimilarityGradCam against full autograd written out."""

import pytest
import torch
from torch import nn

from captum_embed import EmbeddingLayerGradCam, PairForward
from captum_embed.errors import InputError
from captum_embed.rivals import ActivationDecomposition, SimilarityGradCam


class Encoder(nn.Module):
    """A nonlinear embedding, in `head`, before the L2 norm."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.features = nn.Conv2d(3, 5, 3)
        self.head = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 4
        self.double()

    def above(self, activation, scale=1.0):
        return self.head(activation.mean((2, 3)) * scale + activation.square().mean((2, 3)))

    def forward(self, images, scale=1.0):
        return nn.functional.normalize(self.above(self.features(images), scale), dim=1)


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_full_autograd(encoder, images, references, scale=1.0):
    """Grad-CAM of u . r with references (N or 1, M, D), one image and reference at a time."""
    maps = []
    for n in range(len(images)):
        activation = encoder.features(images[n : n + 1]).detach().requires_grad_()
        embedding = encoder.above(activation, scale)[0]
        others = references[n if len(references) > 1 else 0]
        sum(embedding @ other for other in others).div(len(others)).backward()
        weights = activation.grad[0].mean((1, 2))
        maps.append(sum(w * a for w, a in zip(weights, activation[0].detach(), strict=True)))
    return torch.stack(maps)[:, None]


def unnormalized(encoder, images, scale=1.0):
    return encoder.above(encoder.features(images), scale).detach()


@pytest.mark.parametrize("shape", [(3, 4), (1, 4), (3, 7, 4), (1, 7, 4)])
def test_reference_embeddings_are_averaged_dot_products(shape):
    encoder = Encoder()
    images, references = normal(3, 3, 7, 9), normal(*shape, seed=2)
    grad_cam = SimilarityGradCam(encoder, encoder.features, encoder.head)
    rows = references if references.dim() == 3 else references[:, None]
    torch.testing.assert_close(
        grad_cam.attribute(images, references), by_full_autograd(encoder, images, rows)
    )


def test_images_give_their_unnormalized_embeddings_and_a_pair_gives_both_maps():
    encoder = Encoder()
    first, second = normal(2, 3, 7, 9), normal(2, 3, 8, 6, seed=2)
    grad_cam = SimilarityGradCam(encoder, encoder.features, encoder.head)
    u, v = (unnormalized(encoder, one)[:, None] for one in (first, second))
    expected = by_full_autograd(encoder, first, v), by_full_autograd(encoder, second, u)
    torch.testing.assert_close(grad_cam.attribute((first, second)), expected)
    torch.testing.assert_close(grad_cam.attribute(first, second), expected[0])
    torch.testing.assert_close(
        grad_cam.attribute(first, second[:1]), by_full_autograd(encoder, first, v[:1])
    )


def test_without_a_reference_the_own_embedding_is_held_constant():
    encoder = Encoder()
    images = normal(2, 3, 7, 9)
    own = unnormalized(encoder, images)[:, None]
    grad_cam = SimilarityGradCam(encoder, encoder.features, encoder.head)
    torch.testing.assert_close(grad_cam.attribute(images), by_full_autograd(encoder, images, own))


def test_bypasses_the_norm_that_grad_cam_of_the_cosine_goes_through():
    encoder = Encoder()
    images, references = normal(2, 3, 7, 9), normal(2, 4, seed=2)
    through = EmbeddingLayerGradCam(
        PairForward(encoder, "similarity", distance="cosine"), encoder.features
    ).attribute(images, additional_forward_args=references)
    bypassing = SimilarityGradCam(encoder, encoder.features, encoder.head)
    maps = bypassing.attribute(images, references)
    alike = torch.cosine_similarity(maps.flatten(1), through.flatten(1))
    assert alike.abs().max() < 0.99


def test_encoder_without_norm_needs_no_embedding_layer():
    encoder = Encoder()
    plain = nn.Sequential(encoder.features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), encoder.head)
    images, references = normal(2, 3, 7, 9), normal(2, 4, seed=2)
    torch.testing.assert_close(
        SimilarityGradCam(plain, encoder.features).attribute(images, references),
        SimilarityGradCam(plain, encoder.features, encoder.head).attribute(images, references),
    )


@pytest.mark.parametrize("bias", [True, False])
def test_is_the_decomposition_with_bias_for_average_pooling_and_a_linear_head(bias):
    torch.manual_seed(0)
    features, head = nn.Conv2d(3, 5, 3), nn.Linear(5, 4, bias=bias)
    encoder = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).double()
    pair = normal(2, 3, 7, 9), normal(2, 3, 8, 6, seed=2)
    decomposition = ActivationDecomposition(encoder, features, head, similarity="dot")
    torch.testing.assert_close(
        SimilarityGradCam(encoder, features, head).attribute(pair),
        decomposition.attribute(pair, include_bias=True),
    )


def test_additional_forward_args_reach_the_encoder():
    encoder = Encoder()
    images, other = normal(2, 3, 7, 9), normal(2, 3, 7, 9, seed=2)
    grad_cam = SimilarityGradCam(encoder, encoder.features, encoder.head)
    v = unnormalized(encoder, other, scale=3.0)[:, None]
    expected = by_full_autograd(encoder, images, v, scale=3.0)
    torch.testing.assert_close(
        grad_cam.attribute(images, other, additional_forward_args=3.0), expected
    )


def test_encoder_of_a_metric_forward_is_explained_and_relu_applied():
    encoder = Encoder()
    images, references = normal(2, 3, 7, 9), normal(2, 4, seed=2)
    raw = SimilarityGradCam(encoder, encoder.features, encoder.head).attribute(images, references)
    rectified = SimilarityGradCam(PairForward(encoder), encoder.features, encoder.head).attribute(
        images, references, relu_attributions=True
    )
    assert raw.min() < 0
    torch.testing.assert_close(rectified, raw.clamp(min=0))


def test_leaves_no_trace():
    encoder = Encoder().requires_grad_(False)
    images = normal(2, 3, 7, 9)
    grad_cam = SimilarityGradCam(encoder, encoder.features, encoder.head)
    with torch.no_grad():
        map_ = grad_cam.attribute((images, images))[0]
        assert not torch.is_grad_enabled()
    assert not map_.requires_grad
    assert not encoder.features._forward_hooks
    assert not encoder.head._forward_hooks


class TestRefuses:
    def test_a_normalized_encoder_without_embedding_layer(self):
        encoder = Encoder()
        with pytest.raises(InputError, match=r"unit length.*embedding_layer"):
            SimilarityGradCam(encoder, encoder.features).attribute(normal(2, 3, 7, 9))
        assert not encoder.features._forward_hooks

    def test_an_embedding_layer_that_gives_no_embeddings(self):
        encoder = Encoder()
        grad_cam = SimilarityGradCam(encoder, encoder.features, encoder.features)
        with pytest.raises(InputError, match=r"the embedding layer gives shape \(2, 5, 5, 7\)"):
            grad_cam.attribute(normal(2, 3, 7, 9))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (((normal(2, 3, 7, 9),) * 2, normal(2, 4)), "pair alone"),
            ((normal(2, 3, 7, 9), normal(2, 5)), "same width"),
            ((normal(2, 3, 7, 9), normal(3, 3, 7, 9)), "3 rows for 2"),
            ((normal(2, 3, 7, 9), normal(4)), r"shape \(4,\)"),
        ],
    )
    def test_inputs_and_references_that_do_not_fit(self, arguments, message):
        encoder = Encoder()
        grad_cam = SimilarityGradCam(encoder, encoder.features, encoder.head)
        with pytest.raises(InputError, match=message):
            grad_cam.attribute(*arguments)
