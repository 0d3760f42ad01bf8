"""Score-CAM against a loop over images and channels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captum_embed import PairForward
from captum_embed.errors import InputError, LayerError
from captum_embed.rivals import LaFAM, ScoreCAM


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.fixture
def score():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    encoder = nn.Sequential(*layers, nn.Linear(6, 3)).double()
    encoder[0].bias.data[2] = -100  # a channel that is zero everywhere
    return PairForward(encoder, "similarity", distance="cosine")


def by_loops(score, layer, images, references, softmax, channels):
    maps = []
    for image, reference in zip(images.split(1), references.split(1), strict=True):
        activation = layer(image)[0].detach()
        order = np.argsort([-channel.norm().item() for channel in activation])[:channels]
        with torch.no_grad():
            black = score(torch.zeros_like(image), reference).item()
            gains = []
            for c in order:
                mask = F.interpolate(activation[c][None, None], image.shape[2:], mode="bilinear")
                if mask.max() > mask.min():
                    mask = (mask - mask.min()) / (mask.max() - mask.min())
                gains.append(score(image * mask, reference).item() - black)
        weights = np.exp(gains) / np.exp(gains).sum() if softmax else gains
        maps.append(sum(w * activation[c] for w, c in zip(weights, order, strict=True)))
    return torch.stack(maps)[:, None]


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("channels", [None, 4])
@pytest.mark.parametrize("at_once", [1, 4, 50])
def test_equals_a_loop_over_channels(score, softmax, channels, at_once):
    layer, images, references = score.encoder[:2], normal(2, 3, 9, 11), normal(2, 3, seed=2)
    actual = ScoreCAM(score, score.encoder[1], softmax=softmax).attribute(
        images, references, max_channels=channels, perturbations_per_eval=at_once
    )
    expected = by_loops(score, layer, images, references, softmax, channels)
    torch.testing.assert_close(actual, expected)


def test_softmax_of_a_similarity_is_nearly_the_mean_of_the_channels(score):
    images, references = normal(2, 3, 9, 11), normal(2, 3, seed=2)
    layer = score.encoder[1]
    mean = LaFAM(score.encoder, layer).attribute(images)
    map_ = ScoreCAM(score, layer).attribute(images, references)
    assert torch.cosine_similarity(map_.flatten(1), mean.flatten(1)).min() > 0.95


def test_relu_and_one_reference_for_all_images(score):
    images, reference = normal(2, 3, 9, 11), normal(1, 3, seed=2)
    score_cam = ScoreCAM(score, score.encoder[0], softmax=False)
    raw = score_cam.attribute(images, reference)
    assert raw.min() < 0
    rectified = score_cam.attribute(images, reference.expand(2, 3), relu_attributions=True)
    torch.testing.assert_close(rectified, raw.clamp(min=0))


def test_leaves_no_trace(score):
    images, reference = normal(2, 3, 9, 11).requires_grad_(), normal(1, 3, seed=2)
    before, state = images.detach().clone(), torch.get_rng_state()
    map_ = ScoreCAM(score, score.encoder[1]).attribute(images, reference)
    assert not map_.requires_grad
    assert not score.encoder[1]._forward_hooks
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_refuses_layers_and_numbers_that_do_not_fit(score):
    images, reference = normal(2, 3, 9, 11), normal(1, 3, seed=2)
    with pytest.raises(LayerError, match=r"put out shape \(2, 3\)"):
        ScoreCAM(score, score.encoder[4]).attribute(images, reference)
    with pytest.raises(LayerError, match=r"shape \(4, 6, 4, 5\) for 2 images"):
        ScoreCAM(score, score.encoder[1]).attribute(images, images)
    with pytest.raises(InputError, match="max_channels is 0"):
        ScoreCAM(score, score.encoder[1]).attribute(images, reference, max_channels=0)
