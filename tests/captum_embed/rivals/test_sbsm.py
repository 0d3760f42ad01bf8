"""SBSM against xaitk-saliency, and its formula with scipy's distances, window by window."""

import numpy as np
import pytest
import torch
from captum.attr import Occlusion
from scipy.spatial.distance import cdist
from torch import nn

from captum_embed import PairForward
from captum_embed.errors import InputError
from captum_embed.rivals import SBSM


@pytest.fixture
def score():
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    return PairForward(encoder.double(), "similarity", distance="euclidean")


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def places(side, window, stride):
    """Where Captum puts windows: step by step, until the far border is reached."""
    count = -(-(side - window) // stride) + 1
    return [(stride * i, min(stride * i + window, side)) for i in range(count)]


def by_xaitk(encoder, image, reference, window, stride, fill):
    """`SimilarityScoring` with `weight_regions_by_scalar`, before its final scaling."""
    height, width = image.shape[1:]
    masks, embedded = [], []
    for top, bottom in places(height, window[0], stride[0]):
        for left, right in places(width, window[1], stride[1]):
            mask = np.ones((height, width), bool)
            mask[top:bottom, left:right] = False
            masks.append(~mask)
            hidden = torch.where(torch.from_numpy(mask), image, torch.tensor(fill).double())
            embedded.append(encoder(hidden[None])[0].detach().numpy())
    reference = reference[None].numpy()
    near = cdist(encoder(image[None]).detach().numpy(), reference, "euclidean")
    gained = np.clip(cdist(np.stack(embedded), reference, "euclidean") - near, 0, None)[:, 0]
    covered = np.stack(masks).astype(float)
    return (gained[:, None, None] * covered).sum(0) / covered.sum(0)


@pytest.mark.parametrize("window", [(3, 4), (2, 2), (9, 11)])
@pytest.mark.parametrize("stride", [(2, 2), (1, 2)])
@pytest.mark.parametrize("fill", [0.0, 0.5])
def test_equals_xaitks_formula(score, window, stride, fill):
    images, references = normal(2, 3, 9, 11), normal(2, 3, seed=2)
    actual = SBSM(score).attribute(
        images, references, window=window, stride=stride, baselines=fill, perturbations_per_eval=3
    )
    assert actual.shape == (2, 1, 9, 11)
    for n in range(2):
        expected = by_xaitk(score.encoder, images[n], references[n], window, stride, fill)
        np.testing.assert_allclose(actual[n, 0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("window", "stride"), [((3, 4), (3, 4)), ((3, 4), (2, 3)), ((4, 2), (1, 2))]
)
def test_equals_the_installed_xaitk_saliency(score, window, stride):
    scoring = pytest.importorskip(
        "xaitk_saliency.impls.gen_descriptor_sim_sal.similarity_scoring",
        reason="xaitk-saliency is not installed",
    )
    from xaitk_saliency.impls.perturb_image.sliding_window import SlidingWindow

    image, references = normal(1, 3, 9, 12), normal(2, 3, seed=2)
    if window == stride:  # Theirs and ours lie at the same places.
        masks = SlidingWindow(window, stride).perturb(np.zeros((9, 12)))
    else:
        masks = np.ones((0, 9, 12), bool)
        for top, bottom in places(9, window[0], stride[0]):
            for left, right in places(12, window[1], stride[1]):
                masks = np.concatenate([masks, np.ones((1, 9, 12), bool)])
                masks[-1, top:bottom, left:right] = False
    with torch.no_grad():
        hidden = score.encoder(image * torch.from_numpy(masks)[:, None]).numpy()
        own = score.encoder(image)[0].numpy()
    theirs = scoring.SimilarityScoring().generate(own, references.numpy(), hidden, masks)
    for reference, expected in zip(references, theirs, strict=True):
        actual = SBSM(score).attribute(image, reference[None], window=window, stride=stride)
        np.testing.assert_allclose((actual / actual.max())[0, 0], expected, atol=1e-6)


def test_drops_the_gains_that_occlusion_keeps(score):
    images, references = normal(2, 3, 9, 11), normal(2, 3, seed=2)
    occlusion = Occlusion(score).attribute(
        images, additional_forward_args=references, sliding_window_shapes=(3, 1, 1)
    )
    actual = SBSM(score).attribute(images, references, window=(1, 1), stride=(1, 1))
    assert occlusion.min() < 0
    torch.testing.assert_close(actual, occlusion[:, :1].clamp(min=0).double())


def test_one_reference_serves_all_images_and_no_trace_is_left(score):
    images, reference = normal(3, 3, 9, 11).requires_grad_(), normal(1, 3, seed=2)
    before, state = images.detach().clone(), torch.get_rng_state()
    settings = {"window": (3, 3), "stride": (3, 3)}
    actual = SBSM(score).attribute(images, reference, **settings)
    expected = SBSM(score).attribute(images, reference.expand(3, 3), **settings)
    torch.testing.assert_close(actual, expected)
    assert torch.equal(images, before)
    assert not actual.requires_grad
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": (10, 3)}, "expected a window within the image"),
        ({"window": (3, 3), "stride": (4, 1)}, "stride within the window"),
        ({"window": (0, 3)}, "window is 0"),
        ({"window": (3, 3), "stride": (1, 0)}, "stride is 0"),
        ({}, r"window is \(50, 50\)"),
    ],
)
def test_refuses_windows_that_leave_pixels_out(score, settings, message):
    with pytest.raises(InputError, match=message):
        SBSM(score).attribute(normal(1, 3, 9, 11), normal(1, 3), **settings)
