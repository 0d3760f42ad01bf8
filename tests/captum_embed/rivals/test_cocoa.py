"""COCOA against the paper's formula, in loops over corpus and foil."""

import functools

import pytest
import torch
from captum.attr import IntegratedGradients, Saliency
from torch import nn

from captum_embed import EmbeddingLayerGradCam
from captum_embed.errors import InputError
from captum_embed.rivals import COCOA


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    return nn.Sequential(*layers).double()


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def by_loops(encoder, images, corpus, foils):
    def one(x, y):
        return sum(x[d] * y[d] for d in range(len(x))) / (x.norm() * y.norm())

    def mean(x, others):
        return sum(one(x, other) for other in others) / len(others)

    rows = [mean(x, corpus) - (mean(x, foils) if foils is not None else 0) for x in encoder(images)]
    return torch.stack(rows)


@pytest.mark.parametrize("with_foils", [True, False])
def test_attributions_are_those_of_the_formula(encoder, with_foils):
    images, corpus = normal(2, 3, 6, 7).requires_grad_(), normal(4, 3, seed=2)
    foils = normal(5, 3, seed=3) if with_foils else None
    by_loops(encoder, images, corpus, foils).sum().backward()
    cocoa = COCOA(encoder, Saliency, corpus, foils)
    actual = cocoa.attribute(images.detach(), abs=False)
    torch.testing.assert_close(actual, images.grad)


def test_integrated_gradients_sum_to_the_contrast_with_the_baseline(encoder):
    images, corpus, foils = normal(2, 3, 6, 7), normal(4, 3, seed=2), normal(5, 3, seed=3)
    actual = COCOA(encoder, IntegratedGradients, corpus, foils).attribute(images, n_steps=100)
    ends = torch.cat([images, torch.zeros_like(images)])
    at_image, at_zero = by_loops(encoder, ends, corpus, foils).detach().chunk(2)
    torch.testing.assert_close(actual.sum((1, 2, 3)), at_image - at_zero, atol=1e-6, rtol=1e-6)


def test_images_serve_as_their_embeddings(encoder):
    images, corpus, foils = normal(2, 3, 6, 7), normal(4, 3, 8, 8, seed=2), normal(5, 3, 5, 6)
    grad_cam = functools.partial(EmbeddingLayerGradCam, layer=encoder[0])
    with torch.no_grad():
        embedded = encoder(corpus), encoder(foils)
    actual = COCOA(encoder, grad_cam, corpus, foils).attribute(images)
    torch.testing.assert_close(actual, COCOA(encoder, grad_cam, *embedded).attribute(images))
    assert not encoder[0]._forward_hooks
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_foils_that_are_the_corpus_leave_nothing(encoder):
    corpus = normal(4, 3, seed=2)
    actual = COCOA(encoder, Saliency, corpus, corpus).attribute(normal(2, 3, 6, 7))
    torch.testing.assert_close(actual, torch.zeros_like(actual))


@pytest.mark.parametrize(
    ("corpus", "foils", "message"),
    [
        (normal(4), None, r"references are \(4,\)"),
        ([1.0], None, "references are list"),
        (normal(4, 3), normal(0, 3), r"foils are \(0, 3\)"),
    ],
)
def test_refuses_sets_that_do_not_fit(encoder, corpus, foils, message):
    with pytest.raises(InputError, match=message):
        COCOA(encoder, Saliency, corpus, foils)


def test_refuses_a_corpus_of_another_encoder(encoder):
    with pytest.raises(InputError, match="expected equal widths"):
        COCOA(encoder, Saliency, normal(4, 5)).attribute(normal(2, 3, 6, 7))
