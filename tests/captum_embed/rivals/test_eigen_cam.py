"""EigenCAM against numpy's singular value decomposition, image by image."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from captum_embed import TripletForward
from captum_embed.errors import LayerError
from captum_embed.rivals import EigenCAM


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_numpy(activations, center):
    """First projection of each image, and its sign by a second, separate computation."""
    maps = []
    for activation in activations.numpy():
        features = activation.reshape(len(activation), -1).T
        used = features - features.mean(0) if center else features
        _, _, rows = np.linalg.svd(used, full_matrices=True)
        sign = -1.0 if (features @ rows[0]).sum() < 0 else 1.0
        maps.append((used @ rows[0] * sign).reshape(activation.shape[1:]))
    return torch.from_numpy(np.stack(maps))[:, None]


@pytest.mark.parametrize("center", [False, True])
@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 3),
    channels=st.integers(1, 7),
    height=st.integers(1, 6),
    width=st.integers(2, 6),
    seed=st.integers(0, 99),
)
def test_equals_numpys_decomposition(center, n, channels, height, width, seed):
    activations = normal(n, channels, height, width, seed=seed) + 0.5
    layer = nn.Identity()
    actual = EigenCAM(layer, layer, center=center).attribute(activations)
    torch.testing.assert_close(actual, by_numpy(activations, center), atol=1e-9, rtol=1e-9)


def test_map_sums_to_zero_or_more():
    layer = nn.Identity()
    for seed in range(20):
        map_ = EigenCAM(layer, layer).attribute(normal(2, 4, 5, 6, seed=seed))
        assert (map_.sum((1, 2, 3)) >= 0).all()


def test_map_of_rectified_activations_is_not_negative():
    layer = nn.ReLU()
    for seed in range(20):
        map_ = EigenCAM(layer, layer).attribute(normal(2, 4, 5, 6, seed=seed))
        assert map_.min() >= -1e-12
        assert map_.max() > 0


def test_centred_map_sums_to_zero_and_is_positive_where_activations_are_strong():
    layer = nn.Identity()
    activations = torch.full((1, 3, 4, 5), 0.1, dtype=torch.float64)
    activations[:, :, 1, 2] = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    map_ = EigenCAM(layer, layer, center=True).attribute(activations)
    assert map_.sum().abs() < 1e-12
    assert map_.flatten().argmax() == 1 * 5 + 2


def test_rank_one_activations_give_their_spatial_factor():
    space, channels = normal(4, 5).abs(), normal(3, seed=2)
    activations = (channels[:, None, None] * space)[None]
    layer = nn.Identity()
    map_ = EigenCAM(layer, layer).attribute(activations)
    torch.testing.assert_close(map_[0, 0], space * channels.norm())


def test_zero_activations_give_a_zero_map():
    layer = nn.Identity()
    for center in (False, True):
        map_ = EigenCAM(layer, layer, center=center).attribute(torch.zeros(2, 4, 3, 3))
        assert torch.equal(map_, torch.zeros(2, 1, 3, 3))


def test_every_execution_of_a_shared_encoder_has_a_map():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    encoder.double()
    triplet = tuple(normal(3, 2, 3, 7, 8))
    maps = EigenCAM(TripletForward(encoder), encoder[1]).attribute(triplet)
    apart = EigenCAM(lambda *images: [encoder(one) for one in images], encoder[1])
    for map_, again, images in zip(maps, apart.attribute(triplet), triplet, strict=True):
        expected = by_numpy(encoder[:2](images).detach(), center=False)
        torch.testing.assert_close(map_, expected)
        torch.testing.assert_close(again, expected)
        assert not map_.requires_grad


def test_half_precision_is_decomposed_in_single():
    layer = nn.Identity()
    activations = normal(2, 4, 5, 6).to(torch.bfloat16)
    map_ = EigenCAM(layer, layer).attribute(activations)
    assert map_.dtype == torch.bfloat16
    expected = by_numpy(activations.double(), center=False)
    torch.testing.assert_close(map_.double(), expected, atol=2e-2, rtol=1e-2)


def test_relu_attributions_and_layer_input():
    layer = nn.ReLU()
    inputs = normal(2, 4, 5, 6)
    raw = EigenCAM(layer, layer).attribute(inputs, attribute_to_layer_input=True)
    torch.testing.assert_close(raw, by_numpy(inputs, center=False))
    assert raw.min() < 0
    rectified = EigenCAM(layer, layer).attribute(
        inputs, attribute_to_layer_input=True, relu_attributions=True
    )
    torch.testing.assert_close(rectified, raw.clamp(min=0))


def test_refuses_layers_without_positions_and_values_that_are_not_finite():
    layer = nn.Identity()
    with pytest.raises(LayerError, match="no positions"):
        EigenCAM(layer, layer).attribute(normal(2, 4))
    with pytest.raises(LayerError, match="NaN"):
        EigenCAM(layer, layer).attribute(torch.full((1, 2, 3, 3), float("inf")))
    assert not layer._forward_hooks
