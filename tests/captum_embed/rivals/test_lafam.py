"""LaFAM against a loop over channels, and against Grad-CAM with uniform weights."""

import torch
from torch import nn

from captum_embed import EmbeddingLayerGradCam, PairForward
from captum_embed.rivals import LaFAM


def encoder():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).double()


def test_is_the_mean_of_the_channels():
    network, images = encoder(), torch.randn(2, 3, 7, 9).double()
    expected = torch.zeros(2, 1, 5, 7).double()
    for channel in network[:2](images).detach().unbind(1):
        expected[:, 0] += channel / 5
    torch.testing.assert_close(LaFAM(network, network[1]).attribute(images), expected)


def test_is_grad_cam_with_uniform_weights():
    network, images = encoder(), torch.randn(2, 3, 7, 9).double()
    uniform = EmbeddingLayerGradCam(
        PairForward(network, "similarity"), network[1], channel_filter=torch.ones_like
    )
    expected = uniform.attribute(images, additional_forward_args=torch.randn(2, 5).double())
    torch.testing.assert_close(LaFAM(network, network[1]).attribute(images) * 5, expected)


def test_layer_input_relu_and_no_trace():
    network, images = encoder(), torch.randn(2, 3, 7, 9).double()
    layer = network[1]
    raw = LaFAM(network, layer).attribute(images, attribute_to_layer_input=True)
    torch.testing.assert_close(raw, network[0](images).detach().mean(1, keepdim=True))
    assert raw.min() < 0
    rectified = LaFAM(network, layer).attribute(
        images, attribute_to_layer_input=True, relu_attributions=True
    )
    torch.testing.assert_close(rectified, raw.clamp(min=0))
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks
