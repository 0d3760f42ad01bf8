"""LabelFree against the authors' other formula, autograd, and plain loops."""

import functools

import pytest
import torch
from captum.attr import IntegratedGradients, NoiseTunnel, Occlusion, Saliency
from torch import nn

from captum_embed import EmbeddingLayerGradCam, PairForward
from captum_embed.errors import InputError
from captum_embed.rivals import RELAX, LabelFree


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    return nn.Sequential(*layers).double()


@pytest.fixture
def images():
    return torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(1)).double()


def test_weighs_the_attributions_of_all_dimensions_by_the_embedding(encoder, images):
    # Crabbé and van der Schaar's definition 2.1: b(f, x) = sum over d of f_d(x) a(f_d, x).
    own = encoder(images).detach()
    by_dimension = [
        IntegratedGradients(encoder).attribute(images, target=d, n_steps=7) for d in range(3)
    ]
    expected = sum(own[:, d, None, None, None] * each for d, each in enumerate(by_dimension))
    actual = LabelFree(encoder, IntegratedGradients).attribute(images, n_steps=7)
    torch.testing.assert_close(actual, expected)


def test_own_embedding_is_held_constant(encoder, images):
    leaf = images.clone().requires_grad_()
    (encoder(leaf) * encoder(images).detach()).sum().backward()
    actual = LabelFree(encoder, Saliency).attribute(images, abs=False)
    torch.testing.assert_close(actual, leaf.grad)


def test_cosine_and_layer_methods(encoder, images):
    grad_cam = functools.partial(EmbeddingLayerGradCam, layer=encoder[0])
    expected = EmbeddingLayerGradCam(
        PairForward(encoder, "similarity", distance="cosine"), encoder[0]
    ).attribute(images, additional_forward_args=encoder(images).detach())
    actual = LabelFree(encoder, grad_cam, similarity="cosine").attribute(images)
    torch.testing.assert_close(actual, expected)


def test_each_image_meets_its_own_embedding_however_captum_repeats_it(encoder, images):
    plain = LabelFree(encoder, Saliency).attribute(images)
    tunnel = LabelFree(encoder, lambda score: NoiseTunnel(Saliency(score)))
    torch.testing.assert_close(tunnel.attribute(images, nt_samples=3, stdevs=0.0), plain)

    own = encoder(images).detach()
    expected = torch.zeros(2, 1, 6, 7).double()
    for y in range(6):
        for x in range(7):
            hidden = images.clone()
            hidden[:, :, y, x] = 0
            expected[:, 0, y, x] = ((own - encoder(hidden).detach()) * own).sum(1)
    actual = LabelFree(encoder, Occlusion).attribute(
        images, sliding_window_shapes=(3, 1, 1), perturbations_per_eval=5
    )
    # Captum's occlusion answers in single precision.
    torch.testing.assert_close(actual.double(), expected.expand_as(actual), atol=1e-6, rtol=1e-5)


def test_further_arguments_reach_the_encoder_and_a_metric_forward_gives_its_own(encoder, images):
    def scaled(images, scale):
        return encoder(images) * scale

    actual = LabelFree(scaled, Saliency).attribute(images, 2.0)
    torch.testing.assert_close(actual, 4 * LabelFree(encoder, Saliency).attribute(images))
    of_pair = LabelFree(PairForward(encoder), Saliency).attribute(images)
    torch.testing.assert_close(of_pair, LabelFree(encoder, Saliency).attribute(images))


def test_with_relax_is_relax_as_published(encoder, images):
    score = PairForward(encoder, "similarity", distance="cosine")
    expected = RELAX(score).attribute(images, encoder(images).detach(), num_masks=9)
    actual = LabelFree(encoder, RELAX, similarity="cosine").attribute(images, num_masks=9)
    torch.testing.assert_close(actual, expected)


def test_refuses_unknown_similarities_and_encoders_without_embeddings(encoder, images):
    with pytest.raises(InputError, match="'cosine' or 'dot'"):
        LabelFree(encoder, Saliency, similarity="euclidean")
    with pytest.raises(InputError, match=r"the encoder gives shape \(2, 4, 4, 5\)"):
        LabelFree(encoder[0], Saliency).attribute(images)
