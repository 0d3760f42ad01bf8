"""What an encoder may return, and what may be given to it."""

import pytest
import torch
from torch import nn

from captum_embed import PairForward, SimilarityForward, TripletForward
from captum_embed.errors import InputError


@pytest.mark.parametrize(
    "kept",
    [
        lambda e: e[:1],
        lambda e: e.reshape(2, -1),
        lambda e: e.T,
        lambda e: e[:0],
        lambda e: torch.cat([e, e[:1]]),
    ],
)
def test_an_encoder_that_gives_another_number_of_embeddings_is_refused(kept):
    class Encoder(nn.Module):
        def forward(self, images):
            return kept(images.mean((2, 3)))

    images = torch.rand(4, 3, 5, 5)
    for forward in (PairForward(Encoder()), SimilarityForward(Encoder(), torch.rand(1, 3))):
        inputs = (images, images) if isinstance(forward, PairForward) else (images,)
        with pytest.raises(InputError, match="expected one for each"):
            forward(*inputs)


def test_images_in_a_list_are_refused():
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.rand(2, 3, 5, 5)
    for inputs in ((list(images), images, images), (images, images, list(images))):
        with pytest.raises(InputError, match="of type list; expected a tensor"):
            TripletForward(encoder)(*inputs)
