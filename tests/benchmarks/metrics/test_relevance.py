import numpy as np
import pytest

from benchmarks.metrics.pointing import pointing_game_mask
from benchmarks.metrics.relevance import relevance_mass_accuracy, relevance_rank_accuracy
from captum_embed.errors import InputError


def mass_as_published(heatmap, mask):
    """Arras et al. 2022, equation for the relevance mass accuracy."""
    within = sum(heatmap[pixel] for pixel in np.ndindex(mask.shape) if mask[pixel])
    return within / sum(heatmap[pixel] for pixel in np.ndindex(mask.shape))


def rank_as_published(heatmap, mask):
    """Arras et al. 2022: of the K pixels of highest relevance, the share inside, K = |GT|."""
    ranked = sorted(np.ndindex(mask.shape), key=lambda pixel: -heatmap[pixel])
    size = int(mask.sum())
    return sum(bool(mask[pixel]) for pixel in ranked[:size]) / size


def random_case(seed, height=9, width=13):
    generator = np.random.default_rng(seed)
    heatmap = generator.random((height, width))
    mask = generator.random((height, width)) < generator.uniform(0.1, 0.9)
    mask[0, 0] = True
    return heatmap, mask


@pytest.mark.parametrize("seed", range(10))
def test_accuracies_follow_their_published_definitions(seed):
    heatmap, mask = random_case(seed)
    expected = mass_as_published(heatmap, mask), rank_as_published(heatmap, mask)
    assert relevance_mass_accuracy(heatmap, mask) == pytest.approx(expected[0])
    assert relevance_rank_accuracy(heatmap, mask) == pytest.approx(expected[1])


@pytest.mark.parametrize("name", ["mass", "rank", "pointing"])
def test_accuracies_agree_with_quantus(name):
    # Its OpenCV may lack a system library.
    quantus = pytest.importorskip(
        "quantus", reason="the extra 'crosscheck' is not installed", exc_type=ImportError
    )
    theirs, ours = {
        "mass": (quantus.RelevanceMassAccuracy, relevance_mass_accuracy),
        "rank": (quantus.RelevanceRankAccuracy, relevance_rank_accuracy),
        "pointing": (quantus.PointingGame, pointing_game_mask),
    }[name]
    cases = [random_case(seed) for seed in range(20)]
    heatmaps, masks = (np.stack(parts)[:, None] for parts in zip(*cases, strict=True))
    metric = theirs(disable_warnings=True, display_progressbar=False)
    expected = metric.evaluate_batch(a_batch=heatmaps, s_batch=masks)
    np.testing.assert_allclose([ours(*case) for case in cases], expected)


@pytest.mark.parametrize("seed", range(8))
def test_rank_accuracy_is_the_mean_over_orders_of_tied_pixels(seed):
    generator = np.random.default_rng(seed)
    heatmap, mask = generator.integers(0, 3, (3, 4)) * 1.0, generator.random((3, 4)) < 0.5
    heatmap[0, 0], mask[0, 0] = 2, True
    orders = [generator.permutation(12) for _ in range(2000)]
    shares = [
        rank_as_published(heatmap.flat[order][None], mask.flat[order][None]) for order in orders
    ]
    assert relevance_rank_accuracy(heatmap, mask) == pytest.approx(np.mean(shares), abs=0.03)


def test_rank_accuracy_shares_the_last_places_among_tied_pixels():
    # Two places, one taken by the 5; the other goes to one of three pixels, one of them inside.
    assert relevance_rank_accuracy([[5, 1, 1, 1, 0]], [[1, 1, 0, 0, 0]]) == pytest.approx(2 / 3)


def test_an_empty_heatmap_has_no_accuracy():
    assert relevance_mass_accuracy(np.zeros((2, 2)), np.ones((2, 2))) == 0.0
    assert relevance_rank_accuracy(np.zeros((2, 2)), np.ones((2, 2))) == 0.0


def test_an_empty_mask_is_refused():
    for accuracy in (relevance_mass_accuracy, relevance_rank_accuracy):
        with pytest.raises(InputError, match="no pixel set"):
            accuracy(np.ones((2, 2)), np.zeros((2, 2)))
