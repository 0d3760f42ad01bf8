import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score

from benchmarks.metrics.floors import uniform_heatmap
from benchmarks.metrics.pxap import pixel_histograms, precision_recall, pxap
from captum_embed.errors import InputError


def brute_force(heatmaps, masks, num_bins):
    """Threshold every pixel of the data set at each b / B, and sum precision x gain in recall."""
    scores = np.concatenate([(h / h.max() if h.max() > 0 else h).ravel() for h in heatmaps])
    inside = np.concatenate([np.asarray(mask).ravel() for mask in masks]).astype(bool)
    total, recall_before = 0.0, 0.0
    for b in range(num_bins, -1, -1):
        passed = scores >= b / num_bins
        hits = (passed & inside).sum()
        recall = hits / inside.sum()
        if passed.any():
            total += hits / passed.sum() * (recall - recall_before)
        recall_before = recall
    return total


images = st.lists(
    st.tuples(
        arrays(np.float64, (4, 5), elements=st.floats(0, 1e9) | st.sampled_from([0.0, 0.3, 1.0])),
        arrays(np.bool_, (4, 5)).filter(np.any),
    ),
    min_size=1,
    max_size=4,
)


@given(images, st.sampled_from([1, 7, 10, 100]))
@settings(max_examples=60, deadline=None)
def test_pxap_is_that_of_thresholding_every_pixel(cases, num_bins):
    histograms = [pixel_histograms(*case, num_bins=num_bins) for case in cases]
    expected = brute_force(*zip(*cases, strict=True), num_bins)
    assert pxap(np.sum(histograms, axis=0)) == pytest.approx(expected)
    assert pxap(np.mean(histograms, axis=0)) == pytest.approx(expected)


def test_pxap_is_scikit_learns_average_precision_of_scores_rounded_down():
    generator = np.random.default_rng(0)
    heatmaps, masks = generator.random((5, 20, 30)) ** 3, generator.random((5, 20, 30)) < 0.3
    heatmaps[masks] += 0.2
    histograms = [pixel_histograms(*case) for case in zip(heatmaps, masks, strict=True)]
    scores = heatmaps / heatmaps.max(axis=(1, 2), keepdims=True)
    expected = average_precision_score(masks.ravel(), np.floor(scores * 1000).ravel())
    assert pxap(np.sum(histograms, axis=0)) == pytest.approx(expected)
    assert 0.3 < expected < 0.9


@pytest.mark.parametrize("num_bins", [1, 3, 10, 100, 1000])
def test_bins_hold_their_lower_edge_exactly(num_bins):
    edges = np.arange(num_bins + 1) / num_bins
    ones = np.ones((1, num_bins + 1))
    np.testing.assert_array_equal(pixel_histograms(edges[None], ones, num_bins=num_bins)[0], 1)
    below = np.nextafter(edges[1:], 0)
    scores = np.append(below, 1.0)[None]
    np.testing.assert_array_equal(pixel_histograms(scores, ones, num_bins=num_bins)[0], 1)


def test_a_perfect_heatmap_has_pxap_one_and_a_uniform_one_the_objects_area():
    mask = np.zeros((8, 10), dtype=bool)
    mask[2:5, 3:9] = True
    assert pxap(pixel_histograms(mask.astype(float), mask)) == 1.0
    assert pxap(pixel_histograms(uniform_heatmap(10, 8), mask)) == pytest.approx(mask.mean())
    assert pxap(pixel_histograms(np.zeros((8, 10)), mask)) == pytest.approx(mask.mean())


def test_ignored_pixels_count_neither_way_unless_they_are_the_objects():
    heatmap, mask = np.array([[4.0, 3.0, 2.0, 1.0]]), np.array([[1, 0, 1, 0]])
    ignored = pixel_histograms(heatmap, mask, ignore=[[1, 1, 0, 0]], num_bins=4)
    assert ignored.tolist() == [[0, 0, 1, 0, 1], [0, 1, 0, 0, 0]]
    np.testing.assert_array_equal(
        pixel_histograms(heatmap, mask, ignore=np.zeros((1, 4))), pixel_histograms(heatmap, mask)
    )


def test_histograms_of_many_resamples_are_scored_at_once():
    histograms = np.random.default_rng(0).integers(1, 9, (6, 2, 11))
    np.testing.assert_allclose(pxap(histograms), [pxap(one) for one in histograms])


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="no pixel set"):
        pixel_histograms(np.ones((2, 2)), np.zeros((2, 2)))
    with pytest.raises(InputError, match="differ in shape"):
        pixel_histograms(np.ones((2, 2)), np.ones((2, 2)), ignore=np.ones((3, 2)))
    with pytest.raises(InputError, match="num_bins=0"):
        pixel_histograms(np.ones((2, 2)), np.ones((2, 2)), num_bins=0)
    with pytest.raises(InputError, match=r"shape \(\.\.\., 2, bins\), got \(3,\)"):
        precision_recall([1, 2, 3])
    with pytest.raises(InputError, match="at least one pixel on an object"):
        pxap([[0, 0], [1, 1]])
