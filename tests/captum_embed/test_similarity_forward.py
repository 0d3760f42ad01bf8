"""The similarity to references and foils against cosines written out."""

import copy

import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn
from torch.nn import functional as F

from captum_embed import EmbeddingLayerGradCam, SimilarityForward
from captum_embed.errors import InputError


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layer = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.layer.weight.data = torch.randn(4, 3, 3, 3, generator=generator)
        self.runs = []

    def forward(self, images):
        self.runs.append((len(images), self.training, torch.is_grad_enabled()))
        return self.norm(self.layer(images)).tanh().mean((2, 3))


@pytest.fixture
def encoder():
    return Encoder().eval()


def images(n, seed=1):
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def cosines(encoder, x, references):
    return F.cosine_similarity(encoder(x)[:, None], encoder(references)[None], dim=-1)


def test_it_is_the_mean_cosine_to_references_less_that_to_foils(encoder):
    x, references, foils = images(3), images(5, 2), images(2, 3)
    near, far = cosines(encoder, x, references).mean(1), cosines(encoder, x, foils).mean(1)
    torch.testing.assert_close(SimilarityForward(encoder, references)(x), near)
    torch.testing.assert_close(SimilarityForward(encoder, references, foils)(x), near - far)
    given = SimilarityForward(encoder, encoder(references), encoder(foils))
    torch.testing.assert_close(given(x), near - far)
    assert given.explains == "match"
    assert given.image_inputs(x) == (0,)


def test_each_image_may_have_references_of_its_own(encoder):
    x, references = images(3), torch.randn(3, 5, 4)
    actual = SimilarityForward(encoder, references, torch.randn(1, 4))(x)
    for i in range(3):
        alone = SimilarityForward(encoder, references[i])(x[i : i + 1])
        both = SimilarityForward(encoder, references)(x)[i]
        torch.testing.assert_close(both, alone[0])
    assert actual.shape == (3,)
    for fewer in (references, references[:2]):
        with pytest.raises(InputError, match="one set for all images or one for each"):
            SimilarityForward(encoder, fewer)(x if fewer is not references else x[:2])


@pytest.mark.parametrize("distance", ["squared_euclidean", "euclidean"])
def test_other_distances_are_taken_to_the_mean(encoder, distance):
    x, r, f = images(3), torch.randn(5, 4), torch.randn(2, 4)
    d = [((encoder(x) - mean) ** 2).sum(1) for mean in (r.mean(0), f.mean(0))]
    d = [one.sqrt() for one in d] if distance == "euclidean" else d
    torch.testing.assert_close(SimilarityForward(encoder, r, f, distance)(x), d[1] - d[0])


def test_images_are_encoded_once_in_evaluation_mode_and_nothing_is_left_changed():
    encoder = Encoder().train()
    before = copy.deepcopy(encoder.state_dict())
    forward = SimilarityForward(encoder, images(40))
    assert encoder.runs == [(32, False, False), (8, False, False)]
    assert encoder.training
    assert encoder.norm.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    encoder.eval()
    forward(images(2))
    assert encoder.runs[2:] == [(2, False, True)]
    assert list(forward.state_dict()) == [f"encoder.{name}" for name in before]


def test_an_encoder_that_was_trained_further_is_noticed(encoder):
    by_image = SimilarityForward(encoder, images(2))
    by_embedding = SimilarityForward(encoder, torch.ones(1, 4))
    x = images(3)
    for one in (by_image, copy.deepcopy(by_image), nn.DataParallel(by_image)):
        assert one(x).shape == (3,)
    by_image.double()
    assert by_image(x.double()).dtype is torch.float64
    by_image.float()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    by_embedding(x).sum().backward()
    optimizer.step()
    with pytest.raises(InputError, match="changed since the references were encoded"):
        by_image(x)
    by_embedding(x)
    SimilarityForward(encoder, images(2))(x)


def test_its_grad_cam_is_that_of_captum_on_the_cosine(encoder):
    x, reference = images(2), encoder(images(1, 5)).detach()
    ours = EmbeddingLayerGradCam(SimilarityForward(encoder, images(1, 5)), encoder.layer)
    captum = LayerGradCam(lambda x: F.cosine_similarity(encoder(x), reference), encoder.layer)
    torch.testing.assert_close(ours.attribute(x), captum.attribute(x))


@pytest.mark.parametrize(
    ("references", "message"),
    [
        (torch.ones(4), r"references are \(4,\); expected images"),
        (torch.ones(0, 4), r"references are \(0, 4\)"),
        ([torch.ones(1, 4)], "references are list"),
    ],
)
def test_what_is_no_reference_is_refused(encoder, references, message):
    with pytest.raises(InputError, match=message):
        SimilarityForward(encoder, references)


def test_references_of_another_width_and_unknown_distances_are_refused(encoder):
    with pytest.raises(InputError, match=r"\(1, 7\), the images embeddings of shape \(2, 4\)"):
        SimilarityForward(encoder, torch.ones(2, 7))(images(2))
    with pytest.raises(InputError, match="distance is 'manhattan'"):
        SimilarityForward(encoder, torch.ones(2, 4), distance="manhattan")


def test_signals_are_not_taken_for_sets_of_embeddings():
    # Four channels of length four, and four numbers in an embedding: either reading fits.
    encoder = nn.Sequential(nn.Conv1d(4, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    signals, reference = torch.rand(2, 4, 4), torch.rand(2, 4, 4)
    with pytest.raises(InputError, match=r"shape of the inputs, \(N, 4, 4\).*encoder\(references"):
        SimilarityForward(encoder, reference)(signals)
    embeddings = encoder(reference).detach()
    expected = F.cosine_similarity(encoder(signals)[:, None], embeddings, dim=2).mean(1)
    torch.testing.assert_close(SimilarityForward(encoder, embeddings)(signals), expected)
