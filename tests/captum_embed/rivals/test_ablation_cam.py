"""Ablation-CAM against Captum's own ablation of a layer, and the forward pass behind it."""

import threading

import pytest
import torch
from captum.attr import LayerFeatureAblation
from torch import nn

from captum_embed import PairForward
from captum_embed.errors import InputError, LayerError
from captum_embed.rivals import AblationCAM
from captum_embed.rivals.layer_replacement import run_with_replacement


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.fixture
def score():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.Conv2d(6, 5, 3), nn.Tanh()
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)
    encoder = nn.Sequential(*layers, *head).double()
    return PairForward(encoder, "similarity", distance="cosine")


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("at_once", [1, 4, 64])
def test_weighs_channels_by_captums_ablation(score, place, at_once):
    layer, images, references = score.encoder[place], normal(2, 3, 9, 8), normal(2, 3, seed=2)
    activations = score.encoder[: place + 1](images).detach()
    channels = torch.arange(activations.shape[1])[None, :, None, None].expand_as(activations)
    drops = LayerFeatureAblation(score, layer).attribute(
        images, additional_forward_args=references, layer_mask=channels
    )
    actual = AblationCAM(score, layer).attribute(images, references, perturbations_per_eval=at_once)
    expected = (drops.double() * activations).sum(1, keepdim=True)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)


def test_is_grad_cam_of_a_linear_score():
    # Without a channel the mean of its activations is lost, times what it weighs.
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    images, direction = normal(2, 3, 6, 7), normal(4, seed=2)
    activations = encoder[0](images).detach()
    weights = activations.mean((2, 3)) * direction
    expected = (weights[..., None, None] * activations).sum(1, keepdim=True)
    actual = AblationCAM(lambda images: encoder(images) @ direction, encoder[0]).attribute(images)
    torch.testing.assert_close(actual, expected)


def test_weighs_the_largest_channels_and_runs_nothing_for_those_at_zero(score):
    images, reference = normal(1, 3, 9, 8), normal(1, 3, seed=2)
    score.encoder[2].weight.data[1:3] = 0
    score.encoder[2].bias.data[1:3] = 0
    rows = []
    score.encoder[3].register_forward_hook(lambda _, __, output: rows.append(len(output)))
    ablation_cam = AblationCAM(score, score.encoder[2])
    whole = ablation_cam.attribute(images, reference)
    assert rows[-1] == 3
    torch.testing.assert_close(ablation_cam.attribute(images, reference, max_channels=3), whole)
    ablation_cam.attribute(images, reference, max_channels=1)
    assert rows[-1] == 1


def test_one_reference_serves_all_images_and_relu(score):
    images, reference = normal(2, 3, 9, 8), normal(1, 3, seed=2)
    ablation_cam = AblationCAM(score, score.encoder[2])
    raw = ablation_cam.attribute(images, reference)
    assert raw.min() < 0
    rectified = ablation_cam.attribute(images, reference.expand(2, 3), relu_attributions=True)
    torch.testing.assert_close(rectified, raw.clamp(min=0))


def test_leaves_no_trace_even_after_an_exception(score):
    images, layer = normal(2, 3, 9, 8).requires_grad_(), score.encoder[2]
    before = images.detach().clone()
    assert not AblationCAM(score, layer).attribute(images, normal(1, 3)).requires_grad
    with pytest.raises(InputError, match="returned shape"):
        AblationCAM(score.encoder, layer).attribute(images)
    assert not layer._forward_hooks
    assert torch.equal(images, before)


def test_refuses_layers_and_references_that_do_not_fit(score):
    images = normal(2, 3, 9, 8)
    with pytest.raises(LayerError, match="pass references as embeddings"):
        AblationCAM(score, score.encoder[2]).attribute(images, images)
    with pytest.raises(InputError, match="max_channels is 0"):
        AblationCAM(score, score.encoder[2]).attribute(images, normal(1, 3), max_channels=0)


class TestReplacement:
    def test_acts_in_its_own_thread_alone(self, score):
        encoder, image, meanwhile = score.encoder, normal(1, 3, 9, 8), []

        def forward(image):
            other = threading.Thread(target=lambda: meanwhile.append(encoder(image).detach()))
            other.start()
            other.join()
            return encoder(image)

        expected = encoder(image)
        replaced = run_with_replacement(
            forward, encoder[2], image, torch.zeros(4, 5, 5, 4).double()
        )
        torch.testing.assert_close(meanwhile[0], expected)
        torch.testing.assert_close(replaced, encoder[6].bias.expand(4, 3))

    def test_refuses_a_layer_that_runs_twice_or_never_and_leaves_no_hook(self, score):
        encoder, image = score.encoder, normal(1, 3, 9, 8)
        zeros = torch.zeros(4, 5, 5, 4).double()
        with pytest.raises(LayerError, match="run 2 of the layer"):
            run_with_replacement(lambda x: encoder(x) + encoder(x), encoder[2], image, zeros)
        with pytest.raises(LayerError, match="did not run"):
            run_with_replacement(lambda x: x.mean((1, 2, 3)), encoder[2], image, zeros)
        with pytest.raises(LayerError, match=r"expected it to run once, with shape \(1, 5, 9, 9\)"):
            run_with_replacement(encoder, encoder[2], image, torch.zeros(4, 5, 9, 9))
        assert not encoder[2]._forward_hooks

    def test_refuses_a_forward_function_that_mixes_examples(self, score):
        encoder, image = score.encoder, normal(1, 3, 9, 8)
        with pytest.raises(LayerError, match="one row for each"):
            run_with_replacement(
                lambda x: encoder(x).mean(0, keepdim=True),
                encoder[2],
                image,
                torch.zeros(4, 5, 5, 4).double(),
            )
