import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.metrics import bootstrap
from benchmarks.metrics.bootstrap import bootstrap_interval, paired_auroc, paired_difference
from benchmarks.metrics.pxap import pixel_histograms, pxap
from captum_embed.errors import InputError


def resample_in_loops(values, statistic, num_resamples, seed):
    generator = np.random.default_rng(seed)
    values = np.asarray(values, dtype=np.float64)
    drawn = generator.integers(len(values), size=(num_resamples, len(values)))
    return np.array([statistic(values[images].mean(axis=0)[None])[0] for images in drawn])


@pytest.mark.parametrize("shape", [(1,), (7,), (25, 4), (9, 2, 3)])
@pytest.mark.parametrize("statistic", [lambda m: m, lambda m: m.reshape(len(m), -1).max(axis=1)])
def test_interval_is_that_of_resampling_images_in_a_loop(shape, statistic):
    values = np.random.default_rng(3).random(shape)
    interval = bootstrap_interval(values, statistic, num_resamples=200, seed=5)
    resampled = resample_in_loops(values, statistic, 200, seed=5)
    np.testing.assert_allclose(interval.estimate, statistic(values.mean(axis=0)[None])[0])
    np.testing.assert_allclose(interval.low, np.percentile(resampled, 2.5, axis=0))
    np.testing.assert_allclose(interval.high, np.percentile(resampled, 97.5, axis=0))


def test_interval_agrees_with_scipys_percentile_bootstrap():
    values = np.random.default_rng(0).normal(size=60)
    ours = bootstrap_interval(values, num_resamples=20_000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    spread = values.std() / np.sqrt(60)
    assert ours.low == pytest.approx(theirs.low, abs=0.05 * spread)
    assert ours.high == pytest.approx(theirs.high, abs=0.05 * spread)


def test_95_percent_intervals_hold_the_truth_about_95_times_in_100():
    generator = np.random.default_rng(0)
    held = 0
    for seed in range(300):
        interval = bootstrap_interval(generator.random(100) < 0.7, num_resamples=500, seed=seed)
        held += bool(interval.low <= 0.7 <= interval.high)
    assert 0.91 <= held / 300 <= 0.98


def test_a_seed_decides_the_interval_and_blocks_do_not(monkeypatch):
    values = np.random.default_rng(0).random((11, 3))
    whole = bootstrap_interval(values, num_resamples=101, seed=1)
    again = bootstrap_interval(values, num_resamples=101, seed=1)
    other = bootstrap_interval(values, num_resamples=101, seed=2)
    monkeypatch.setattr(bootstrap, "BLOCK_SIZE", 60)
    in_blocks = bootstrap_interval(values, num_resamples=101, seed=1)
    np.testing.assert_array_equal(whole.low, again.low)
    np.testing.assert_allclose(whole.low, in_blocks.low, rtol=1e-12)
    assert (whole.low != other.low).any()


def test_numpys_global_generator_is_left_alone():
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    bootstrap_interval([0.0, 1.0], num_resamples=10)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_confidence_widens_the_interval():
    values = np.random.default_rng(0).random(30)
    narrow, wide = (bootstrap_interval(values, confidence=c) for c in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_pxap_is_resampled_by_its_histograms():
    generator = np.random.default_rng(0)
    masks = generator.random((8, 6, 6)) < 0.4
    histograms = [pixel_histograms(generator.random((6, 6)) + m, m, num_bins=20) for m in masks]
    interval = bootstrap_interval(histograms, pxap, num_resamples=100)
    assert interval.estimate == pytest.approx(float(pxap(np.sum(histograms, axis=0))))
    resampled = resample_in_loops(histograms, pxap, 100, seed=0)
    assert interval.low == pytest.approx(np.percentile(resampled, 2.5))


def test_paired_difference_resamples_both_methods_together():
    generator = np.random.default_rng(0)
    hardness = generator.normal(size=200)
    first, second = hardness + 0.1, hardness + 0.01 * generator.normal(size=200)
    paired = paired_difference(first, second, num_resamples=500)
    assert paired.low > 0.09
    # Apart, each mean moves by far more than the methods differ.
    apart = bootstrap_interval(first, num_resamples=500)
    assert apart.high - apart.low > 0.2


def test_paired_difference_of_a_mean_is_the_bootstrap_of_differences():
    first, second = np.random.default_rng(0).random((2, 40))
    paired = paired_difference(first, second, seed=4)
    plain = bootstrap_interval(first - second, seed=4)
    np.testing.assert_allclose(paired.as_floats(), plain.as_floats())


def test_paired_difference_of_a_statistic_applies_it_to_each_method():
    first, second = np.random.default_rng(0).random((2, 12, 5))
    paired = paired_difference(first, second, lambda m: m.max(axis=1), num_resamples=150, seed=6)
    expected = [resample_in_loops(v, lambda m: m.max(axis=1), 150, 6) for v in (first, second)]
    low, high = np.percentile(expected[0] - expected[1], [2.5, 97.5])
    assert paired.as_floats()[1:] == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": []}, "at least one image"),
        ({"values": 0.5}, "at least one image"),
        ({"values": [0.5, np.nan]}, "NaN"),
        ({"values": [0.5], "num_resamples": 0}, "num_resamples=0"),
        ({"values": [0.5], "confidence": 1.0}, "confidence"),
        ({"values": [0.5, 0.6], "statistic": np.mean}, "a row for each of 1 resamples"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        bootstrap_interval(**arguments)


def test_paired_values_of_different_images_are_refused():
    with pytest.raises(InputError, match=r"\(3,\), \(2,\)"):
        paired_difference([1, 2, 3], [1, 2])


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=8),
    st.integers(0, 1000),
)
def test_auroc_of_a_resample_is_scipys_u_statistic_of_its_images(
    pairs: list[tuple[int, int]], seed: int
) -> None:
    values = np.array(pairs, dtype=float)
    drawn = np.random.default_rng(seed).integers(len(values), size=len(values))
    counts = np.bincount(drawn, minlength=len(values))[None].astype(float)
    wins = stats.mannwhitneyu(*values[drawn].T, method="asymptotic").statistic
    assert paired_auroc(values, counts) == pytest.approx([wins / len(values) ** 2])
