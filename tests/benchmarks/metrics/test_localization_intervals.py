import numpy as np
import pytest

from benchmarks.metrics.localization import (
    accuracy_at,
    accuracy_curve,
    max_box_acc,
    max_box_acc_v2,
    mean_accuracy,
)
from benchmarks.metrics.localization_intervals import (
    localization_differences,
    localization_intervals,
)
from captum_embed.errors import InputError

FIGURES = {
    "accuracy_curve": lambda ious, best: accuracy_curve(ious),
    "accuracy_at": lambda ious, best: accuracy_at(ious),
    "mean_accuracy": lambda ious, best: mean_accuracy(ious),
    "max_box_acc": lambda ious, best: max_box_acc(ious).accuracy,
    "max_box_acc_v2": lambda ious, best: max_box_acc_v2(best),
}


def random_ious(seed, num_images=30):
    generator = np.random.default_rng(seed)
    ious = np.clip(generator.normal(0.5, 0.2, (num_images, 99)), 0, 1)
    return ious, np.maximum(ious, generator.random((num_images, 99)))


def resample_in_loops(cases, figure, num_resamples, seed):
    generator = np.random.default_rng(seed)
    num_images = len(cases[0][0])
    drawn = generator.integers(num_images, size=(num_resamples, num_images))
    return [np.array([figure(i[d], b[d]) for d in drawn]) for i, b in cases]


@pytest.mark.parametrize("name", FIGURES)
def test_intervals_are_those_of_computing_each_figure_on_resampled_images(name):
    ious, best = random_ious(0)
    found = getattr(localization_intervals(ious, best, num_resamples=100, seed=7), name)
    (resampled,) = resample_in_loops([(ious, best)], FIGURES[name], 100, seed=7)
    np.testing.assert_allclose(found.estimate, FIGURES[name](ious, best))
    np.testing.assert_allclose(found.low, np.percentile(resampled, 2.5, axis=0))
    np.testing.assert_allclose(found.high, np.percentile(resampled, 97.5, axis=0))


@pytest.mark.parametrize("name", FIGURES)
def test_differences_are_those_of_both_methods_on_the_same_resamples(name):
    cases = [random_ious(0), random_ious(1)]
    found = getattr(localization_differences(*cases, num_resamples=100, seed=7), name)
    first, second = resample_in_loops(cases, FIGURES[name], 100, seed=7)
    np.testing.assert_allclose(found.low, np.percentile(first - second, 2.5, axis=0), atol=1e-12)
    np.testing.assert_allclose(found.high, np.percentile(first - second, 97.5, axis=0), atol=1e-12)


def test_best_threshold_is_picked_anew_in_each_resample():
    # Each image is right at one threshold of its own: a fixed threshold finds 1 of 99 images,
    # but each resample has one threshold that finds all repetitions of one image.
    ious = np.eye(99)
    found = localization_intervals(ious, ious, num_resamples=200)
    assert found.max_box_acc.estimate == pytest.approx(1 / 99)
    assert found.max_box_acc.low > 2 / 99


def test_ious_of_other_images_than_best_ious_are_refused():
    with pytest.raises(InputError, match="same images"):
        localization_intervals(np.zeros((3, 99)), np.zeros((2, 99)))
