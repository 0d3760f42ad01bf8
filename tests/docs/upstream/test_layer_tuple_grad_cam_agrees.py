"""What is proposed to Captum gives the maps of this package, where both explain."""

import pytest
import torch
from torch import nn

from captum_embed import EmbeddingLayerGradCam, PairForward, TripletForward
from captum_embed.errors import LayerError
from docs.upstream.layer_tuple_grad_cam import LayerTupleGradCam


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_it_gives_the_maps_of_this_package(encoder, number):
    pair, triplet = PairForward(encoder, "similarity"), TripletForward(encoder, margin=9.0)
    forwards = {1: encoder, 2: pair, 3: triplet}
    images = tuple(torch.rand(number, 2, 3, 8, 8))
    given, target = (images[0], 1) if number == 1 else (images, None)
    settings = {"target": target, "relu_attributions": True}
    theirs = LayerTupleGradCam(forwards[number], encoder[0]).attribute(given, **settings)
    ours = EmbeddingLayerGradCam(forwards[number], encoder[0]).attribute(given, **settings)
    torch.testing.assert_close(theirs, ours)


def test_inputs_encoded_in_another_order_are_told_apart_here_only(encoder):
    # docs/upstream/index.md says so.
    def backwards(first, second):
        later, earlier = encoder(second), encoder(first)
        return later[:, 0] + 2 * earlier[:, 1]

    images = tuple(torch.rand(2, 2, 3, 8, 8))
    ours = EmbeddingLayerGradCam(backwards, encoder[0]).attribute(images)
    theirs = LayerTupleGradCam(backwards, encoder[0]).attribute(images)
    torch.testing.assert_close(theirs, ours[::-1])


def test_what_one_refuses_the_other_refuses(encoder):
    def twice(image):
        return encoder(image)[:, 0] + encoder(image.flip(3))[:, 1]

    image = torch.rand(2, 3, 8, 8)
    with pytest.raises(ValueError, match="ran 2 times"):
        LayerTupleGradCam(twice, encoder[0]).attribute(image)
    with pytest.raises(LayerError):
        EmbeddingLayerGradCam(twice, encoder[0]).attribute(image)
