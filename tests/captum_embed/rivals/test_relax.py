"""RELAX against its authors' running mean, pixel by pixel, and its masks against their rule."""

import numpy as np
import pytest
import torch
from torch import nn

from captum_embed import PairForward
from captum_embed.errors import InputError
from captum_embed.rivals import RELAX


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def similarity(seed=0):
    torch.manual_seed(seed)
    encoder = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    return PairForward(encoder, "similarity", distance="cosine")


def masks_of(**settings):
    """The masks themselves: what is left of an image of ones."""
    seen = []

    def record(images):
        seen.append(images[:, 0])
        return images.mean((1, 2, 3))

    RELAX(record).attribute(torch.ones(1, 1, *settings.pop("size")), **settings)
    return torch.cat(seen)


def test_importance_and_uncertainty_are_the_authors_running_mean():
    score, images, references = similarity(), normal(2, 3, 9, 11), normal(2, 3, seed=2)
    masks = masks_of(size=(9, 11), num_masks=25).double().numpy()
    importance, uncertainty = RELAX(score).attribute(
        images, references, num_masks=25, return_uncertainty=True
    )
    for n in range(2):
        mean, spread, weights = (np.zeros((9, 11)) for _ in range(3))
        weights += 1e-10
        for mask in masks:
            hidden = images[n : n + 1] * torch.from_numpy(mask).float()
            with torch.no_grad():
                measured = score(hidden, references[n : n + 1]).item()
            weights += mask
            before = mean.copy()
            mean += mask * (measured - mean) / weights
            spread += (measured - mean) * (measured - before) * mask
        np.testing.assert_allclose(importance[n, 0], mean, atol=1e-5)
        np.testing.assert_allclose(uncertainty[n, 0], spread / weights, atol=1e-5)


def test_masks_are_smooth_grids_of_bernoulli_variables():
    masks = masks_of(size=(20, 35), num_masks=800, grid_size=5, keep_probability=0.3)
    assert masks.shape == (800, 20, 35)
    torch.testing.assert_close(masks.aminmax(), (torch.tensor(0.0), torch.tensor(1.0)))
    # Bilinear: from cell to cell the mask climbs by one at most, over cells of 4 and 7 pixels
    # that are enlarged by 6 / 5, because the grid reaches one cell beyond the image.
    assert masks.diff(dim=1).abs().max() <= 1 / 4 * 5 / 6 + 1e-6
    assert masks.diff(dim=2).abs().max() <= 1 / 7 * 5 / 6 + 1e-6
    assert abs(masks.mean().item() - 0.3) < 0.02
    assert (masks.mean(0) - 0.3).abs().max() < 0.08


def test_masks_are_moved_within_a_cell():
    # A grid of one cell cannot move; of two, the edge between them lies anywhere.
    whole = masks_of(size=(6, 6), num_masks=50, grid_size=1)
    torch.testing.assert_close(whole, whole.round())
    assert 10 < whole[:, 0, 0].sum() < 40
    edges = {
        int((mask[0] - 0.5).abs().argmin())
        for mask in masks_of(size=(1, 16), num_masks=300, grid_size=2)
        if mask.max() - mask.min() > 0.3
    }
    # Cells of 8 pixels: eight places.
    assert len(edges) == 8


def test_depends_on_the_seed_and_not_on_the_batch():
    score, images, references = similarity(), normal(3, 3, 9, 11), normal(3, 3, seed=2)
    relax = RELAX(score)
    whole = relax.attribute(images, references, num_masks=20)
    apart = [
        relax.attribute(*pair, num_masks=20, perturbations_per_eval=7)
        for pair in zip(images.split(1), references.split(1), strict=True)
    ]
    torch.testing.assert_close(torch.cat(apart), whole)
    assert not torch.allclose(relax.attribute(images, references, num_masks=20, seed=1), whole)


def test_one_reference_serves_all_images():
    score, images, reference = similarity(), normal(3, 3, 9, 11), normal(1, 3, seed=2)
    torch.testing.assert_close(
        RELAX(score).attribute(images, reference, num_masks=10),
        RELAX(score).attribute(images, reference.expand(3, 3), num_masks=10),
    )


def test_what_the_score_ignores_is_of_no_importance_and_a_constant_score_certain():
    corner = RELAX(lambda images: images[:, 0, :4, :4].mean((1, 2)))
    map_ = corner.attribute(torch.ones(1, 1, 16, 16), num_masks=400)[0, 0]
    assert map_[:4, :4].min() > map_[8:, 8:].max()
    constant = RELAX(lambda images: torch.full((len(images),), 0.7))
    importance, uncertainty = constant.attribute(
        torch.ones(1, 1, 8, 8), num_masks=200, return_uncertainty=True
    )
    torch.testing.assert_close(importance, torch.full((1, 1, 8, 8), 0.7))
    assert uncertainty.max() < 1e-9


def test_leaves_no_trace():
    score, references = similarity(), normal(2, 3)
    images = normal(2, 3, 9, 11).requires_grad_()
    before, state = images.detach().clone(), torch.get_rng_state()
    map_ = RELAX(score).attribute(images, references, num_masks=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, before)
    assert not map_.requires_grad


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_masks": 0}, "num_masks is 0"),
        ({"grid_size": 0}, "grid_size is 0"),
        ({"perturbations_per_eval": 0}, "perturbations_per_eval is 0"),
        ({"keep_probability": 1.0}, "keep_probability is 1.0"),
    ],
)
def test_refuses_settings_out_of_range(settings, message):
    with pytest.raises(InputError, match=message):
        RELAX(similarity()).attribute(normal(1, 3, 8, 8), normal(1, 3), **settings)


def test_refuses_what_is_no_image_and_no_score():
    with pytest.raises(InputError, match=r"inputs are \(2, 3\)"):
        RELAX(similarity()).attribute(normal(2, 3), normal(2, 3))
    with pytest.raises(InputError, match=r"returned shape \(4, 3\) for 4 images"):
        RELAX(similarity().encoder).attribute(
            normal(2, 3, 8, 8), num_masks=2, perturbations_per_eval=2
        )
