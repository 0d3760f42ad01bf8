"""EmbeddingLayerCAM against its definition, with gradients by full autograd."""

import pytest
import torch
from captum.attr import NoiseTunnel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from captum_embed import EmbeddingLayerGradCam, PairForward, TripletForward, channel_filters
from captum_embed.errors import InputError, LayerError
from captum_embed.rivals import EmbeddingLayerCAM


class Encoder(nn.Module):
    """Its gradients differ from position to position."""

    def __init__(self, channels=5):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.features = nn.Conv2d(3, channels, 3)
        self.head = nn.Linear(channels, 4)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.double()

    def above(self, activation):
        pooled = activation.mean((2, 3)) + activation.square().mean((2, 3))
        return nn.functional.normalize(self.head(pooled), dim=1)

    def forward(self, images):
        return self.above(self.features(images))


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_definition(encoder, batches, loss_of):
    """sum_c relu(gradient) * activation of each batch, by loops over channels."""
    activations = [encoder.features(batch).detach().requires_grad_() for batch in batches]
    loss_of(*(encoder.above(activation) for activation in activations)).sum().backward()
    maps = []
    for activation in activations:
        map_ = torch.zeros_like(activation[:, :1])
        for c in range(activation.shape[1]):
            gradient = activation.grad[:, c]
            map_[:, 0] += torch.where(gradient > 0, gradient, 0) * activation[:, c].detach()
        maps.append(map_.detach())
    return tuple(maps)


def triplet_loss(a, p, n, margin=4.0):
    return ((a - p).square().sum(1) - (a - n).square().sum(1) + margin).relu()


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 3),
    channels=st.integers(1, 6),
    height=st.integers(3, 8),
    width=st.integers(3, 8),
)
def test_explains_every_image_of_a_triplet(n, channels, height, width):
    encoder = Encoder(channels)
    triplets = tuple(normal(n, 3, height, width, seed=seed) for seed in range(3))
    forward = TripletForward(encoder, margin=4.0, explains="loss")
    layer_cam = EmbeddingLayerCAM(forward, encoder.features)
    actual = layer_cam.attribute(triplets)
    torch.testing.assert_close(actual, by_definition(encoder, triplets, triplet_loss))


def test_encoder_that_runs_once_for_each_image_gives_the_same():
    encoder = Encoder()
    triplets = tuple(normal(2, 3, 7, 8, seed=seed) for seed in range(3))
    actual = EmbeddingLayerCAM(
        lambda a, p, n: triplet_loss(encoder(a), encoder(p), encoder(n)), encoder.features
    ).attribute(triplets)
    torch.testing.assert_close(actual, by_definition(encoder, triplets, triplet_loss))


def test_single_input_gives_one_map_and_keeps_channels_on_request():
    encoder = Encoder()
    images, references = normal(2, 3, 7, 8), normal(2, 4, seed=2)
    forward = PairForward(encoder, "distance", explains="loss")
    layer_cam = EmbeddingLayerCAM(forward, encoder.features)
    (expected,) = by_definition(encoder, [images], lambda e: (e - references).square().sum(1))
    actual = layer_cam.attribute(images, additional_forward_args=references)
    torch.testing.assert_close(actual, expected)
    channels = layer_cam.attribute(
        images, additional_forward_args=references, attr_dim_summation=False
    )
    assert channels.shape == (2, 5, 5, 6)
    torch.testing.assert_close(channels.sum(1, keepdim=True), expected)
    assert actual.min() < 0
    rectified = layer_cam.attribute(
        images, additional_forward_args=references, relu_attributions=True
    )
    torch.testing.assert_close(rectified, expected.clamp(min=0))


def test_is_grad_cam_with_positive_weights_after_global_average_pooling():
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)
    ).double()
    forward, images = TripletForward(encoder, margin=9.0), tuple(normal(3, 2, 3, 7, 8))
    expected = EmbeddingLayerGradCam(
        forward, encoder[1], channel_filter=channel_filters.positive
    ).attribute(images)
    actual = EmbeddingLayerCAM(forward, encoder[1]).attribute(images)
    torch.testing.assert_close(actual, expected)


def test_target_selects_an_output_and_flat_layers_give_one_value():
    torch.manual_seed(0)
    net = nn.Sequential(layer := nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    inputs = normal(5, 4)
    activation = layer(inputs).detach().requires_grad_()
    net[1:](activation)[:, 1].sum().backward()
    expected = (activation.grad.clamp(min=0) * activation.detach()).sum(1, keepdim=True)
    torch.testing.assert_close(EmbeddingLayerCAM(net, layer).attribute(inputs, 1), expected)


def test_layer_input_can_be_explained():
    encoder = Encoder()
    images = normal(2, 3, 7, 8)
    below = images.clone().requires_grad_()
    encoder(below).sum().backward()
    expected = (below.grad.clamp(min=0) * images).sum(1, keepdim=True)
    actual = EmbeddingLayerCAM(lambda x: encoder(x).sum(1), encoder.features).attribute(
        images, attribute_to_layer_input=True
    )
    torch.testing.assert_close(actual, expected)


def test_works_inside_noise_tunnel_and_leaves_no_trace():
    encoder = Encoder().requires_grad_(False)
    images = normal(2, 3, 7, 8)
    layer_cam = EmbeddingLayerCAM(lambda x: encoder(x).sum(1), encoder.features)
    expected = layer_cam.attribute(images)
    assert not expected.requires_grad
    quiet = NoiseTunnel(layer_cam).attribute(images, nt_samples=2, stdevs=0.0)
    torch.testing.assert_close(quiet, expected)
    assert not encoder.features._forward_hooks
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_refuses_several_values_per_example_and_values_that_are_not_finite():
    encoder = Encoder()
    with pytest.raises(InputError, match="several values"):
        EmbeddingLayerCAM(encoder, encoder.features).attribute(normal(2, 3, 7, 8))
    layer_cam = EmbeddingLayerCAM(lambda x: encoder(x).sum(1), encoder.features)
    with pytest.raises(LayerError, match=r"activations of the layer.*NaN"):
        layer_cam.attribute(torch.full((1, 3, 7, 8), float("nan"), dtype=torch.float64))
    with pytest.raises(LayerError, match="did not run"):
        EmbeddingLayerCAM(encoder, nn.ReLU()).attribute(normal(2, 3, 7, 8))


def test_an_execution_without_influence_counts_as_zero_on_request():
    encoder = Encoder()

    def forward(x, y):
        value = encoder(x).sum(1)
        encoder(y)
        return value

    layer_cam = EmbeddingLayerCAM(forward, encoder.features)
    pair = normal(2, 3, 7, 8), normal(2, 3, 7, 8, seed=2)
    with pytest.raises(InputError, match="materialize_grads"):
        layer_cam.attribute(pair)
    _, unused = layer_cam.attribute(pair, grad_kwargs={"materialize_grads": True})
    assert unused.abs().sum() == 0
