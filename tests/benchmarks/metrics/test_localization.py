import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import find_objects
from skimage.measure import label
from skimage.transform import resize

from benchmarks.metrics import components
from benchmarks.metrics.boxes import iou
from benchmarks.metrics.localization import (
    THRESHOLDS,
    accuracy_at,
    accuracy_curve,
    is_correct,
    is_correct_v2,
    max_box_acc,
    max_box_acc_v2,
    mean_accuracy,
    threshold_sweep,
)
from captum_embed.errors import InputError


def brute_force(heatmap, box, thresholds):
    """One labelling per threshold: boxes and IoU of the largest, best IoU of all."""
    scaled = np.asarray(heatmap, dtype=np.float64) / np.max(heatmap)
    known = {}
    boxes, best = [], []
    for threshold in thresholds:
        foreground = scaled >= threshold
        pixels = foreground.tobytes()
        if pixels not in known:
            # Labels are given in raster order of their first pixels, and argmax keeps the first.
            labels = label(foreground, connectivity=2)
            tight = [(x.start, y.start, x.stop, y.stop) for y, x in find_objects(labels)]
            largest = np.bincount(labels.ravel())[1:].argmax()
            known[pixels] = tight[largest], iou(tight, box).max()
        boxes.append(known[pixels][0])
        best.append(known[pixels][1])
    return np.array(boxes), iou(boxes, box), np.array(best)


def assert_equals_brute_force(heatmap, box, thresholds=THRESHOLDS):
    sweep = threshold_sweep(heatmap, box, thresholds)
    boxes, ious, best = brute_force(heatmap, box, thresholds)
    assert not sweep.empty
    np.testing.assert_array_equal(sweep.boxes, boxes)
    np.testing.assert_array_equal(sweep.iou, ious)
    np.testing.assert_array_equal(sweep.best_iou, best)


sizes = st.tuples(st.integers(1, 14), st.integers(1, 14))
pixels = st.one_of(
    # Plateaus and ties in area; values on, just below and just above a threshold; anything.
    st.sampled_from([0.0, 1.0, 2.0, 3.0]),
    st.sampled_from([0.0, 0.29, 0.3, np.nextafter(0.3, 0), np.nextafter(0.3, 1), 1.0]),
    st.floats(0, 1e300, allow_subnormal=True),
)


@st.composite
def heatmaps_and_boxes(draw):
    shape = draw(sizes)
    kind = draw(st.sampled_from([np.float64, np.float32, np.uint8]))
    values = pixels if kind == np.float64 else st.integers(0, 7)
    heatmap = draw(arrays(kind, shape, elements=values))
    peak = draw(st.integers(0, shape[0] - 1)), draw(st.integers(0, shape[1] - 1))
    heatmap[peak] = draw(st.sampled_from([1, 7]))
    spans = []
    for side in (shape[1], shape[0]):
        start = draw(st.floats(0, side - 0.5))
        spans.append((start, draw(st.floats(start + 0.25, side))))
    (x0, x1), (y0, y1) = spans
    return heatmap, (x0, y0, x1, y1)


@settings(max_examples=150, deadline=None)
@given(heatmaps_and_boxes())
@example((np.ones((5, 7)), (1.5, 0.5, 4.0, 3.0)))
@example((np.ones((1, 1)), (0.0, 0.0, 1.0, 1.0)))
@example((np.eye(6), (0.0, 0.0, 6.0, 6.0)))
def test_sweep_is_identical_to_one_labelling_per_threshold(case):
    assert_equals_brute_force(*case)


@settings(max_examples=40, deadline=None)
@given(heatmaps_and_boxes(), st.sets(st.floats(0, 1), min_size=1, max_size=6))
def test_sweep_takes_any_increasing_thresholds(case, thresholds):
    assert_equals_brute_force(*case, sorted(thresholds))


@pytest.mark.parametrize("limit", [0, 10_000])
@settings(max_examples=75, deadline=None)
@given(case=heatmaps_and_boxes())
def test_cells_of_basins_and_cells_of_pixels_give_the_same(limit, case):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(components, "MAX_CELLS_PER_PIXEL", limit)
        assert_equals_brute_force(*case)


@pytest.mark.parametrize("limit", [0, 10_000])
def test_the_largest_component_is_that_of_most_pixels_not_of_most_rows(limit, monkeypatch):
    monkeypatch.setattr(components, "MAX_CELLS_PER_PIXEL", limit)
    heatmap = [[1, 1, 1, 1, 0, 1], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1]]
    for flipped in (np.array(heatmap), np.fliplr(heatmap), np.flipud(heatmap)):
        assert_equals_brute_force(flipped, (0, 0, 2, 2), [0.5])


def milliseconds(heatmap, limit):
    times = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(components, "MAX_CELLS_PER_PIXEL", limit)
        for _ in range(10):
            started = time.process_time()
            threshold_sweep(heatmap, (0, 0, 5, 5))
            times.append(time.process_time() - started)
    return 1000 * min(times)


def test_smooth_maps_are_swept_by_basins_and_noise_by_pixels():
    """The way not taken, which a limit forces, is three times as slow or more."""
    generator, limit = np.random.default_rng(0), components.MAX_CELLS_PER_PIXEL
    smooth = resize(generator.random((7, 7)), (224, 224), order=1)
    assert milliseconds(smooth, limit) < 0.6 * milliseconds(smooth, 0)
    noise = generator.random((224, 224))
    assert milliseconds(noise, limit) < 0.6 * milliseconds(noise, 10_000)


@pytest.mark.parametrize("seed", range(10))
def test_sweep_is_identical_to_brute_force_on_plateaus_of_a_smooth_map(seed):
    # Ties along slopes, ridges and valleys, and summits of many pixels.
    generator = np.random.default_rng(seed)
    smooth = resize(generator.random((4, 5)), (24, 32), order=1)
    assert_equals_brute_force(np.round(smooth, 1), (5.5, 3.25, 20.0, 18.0))


@pytest.mark.parametrize("num_thresholds", [2, 3, 4, 40])
def test_sweep_tells_thresholds_apart_that_lie_close_together(num_thresholds):
    generator = np.random.default_rng(0)
    thresholds = 0.5 + np.sort(generator.choice(4000, num_thresholds, replace=False)) * 1e-7
    near = 0.5 + generator.integers(-500, 4500, (12, 13)) * 1e-7
    near[0, 0] = 1
    near[1, :num_thresholds] = thresholds[:13]
    assert_equals_brute_force(near, (1.0, 2.0, 9.0, 10.0), thresholds)


@pytest.mark.parametrize("shape", [(1, 60), (60, 1), (31, 47), (40, 40)])
@pytest.mark.parametrize("seed", range(3))
def test_sweep_is_identical_to_brute_force_on_pixel_noise(shape, seed):
    noise = np.random.default_rng(seed).random(shape)
    assert_equals_brute_force(noise, (0.0, 0.25, shape[1] * 0.6, shape[0] * 0.7))


@pytest.mark.parametrize("cells", [(3, 4), (12, 16)])
@pytest.mark.parametrize("relu", [False, True])
def test_sweep_is_identical_to_brute_force_on_upsampled_maps(cells, relu):
    values = np.random.default_rng(0).normal(size=cells)
    values = np.maximum(values, 0) if relu else np.abs(values)
    heatmap = np.maximum(resize(values, (45, 60), order=1), 0)
    assert_equals_brute_force(heatmap, (5.5, 10.25, 40.0, 35.0))


def test_sweep_is_identical_to_brute_force_on_few_levels():
    blocks = np.random.default_rng(0).integers(0, 4, (30, 40)).astype(np.float32)
    assert_equals_brute_force(blocks, (5.0, 5.0, 35.0, 25.0))


@pytest.mark.parametrize("num_thresholds", [1, 300])
def test_sweep_is_not_bound_to_99_thresholds(num_thresholds):
    noise = np.random.default_rng(0).random((12, 13))
    thresholds = np.arange(1, num_thresholds + 1) / (num_thresholds + 1)
    assert_equals_brute_force(noise, (1.0, 2.0, 9.0, 10.0), thresholds)


def test_thresholds_are_exact_hundredths():
    assert THRESHOLDS.tolist() == [float(f"0.{i:02d}") for i in range(1, 100)]


@pytest.mark.parametrize("hundredths", range(1, 101))
def test_a_pixel_exactly_at_a_threshold_is_foreground(hundredths):
    tau = hundredths / 100
    heatmap = np.array([[1.0, tau, np.nextafter(tau, 0)]])
    sweep = threshold_sweep(heatmap, (0, 0, 2, 1), [tau])
    assert sweep.boxes.tolist() == [[0, 0, 2, 1]]


def test_components_join_across_corners():
    sweep = threshold_sweep(np.eye(4), (0, 0, 4, 4), [0.5])
    assert sweep.boxes.tolist() == [[0, 0, 4, 4]]


def test_of_components_as_large_the_first_in_raster_order_is_taken():
    # The right component starts in the upper row, the left one reaches further left.
    heatmap = [[0, 0, 0, 1], [1, 0, 0, 1], [1, 0, 0, 0]]
    assert threshold_sweep(heatmap, (0, 0, 1, 1), [0.5]).boxes.tolist() == [[3, 0, 4, 2]]


def test_a_component_that_grows_upwards_moves_its_first_pixel():
    # Of two pairs of pixels the right one comes first, by the pixel that it gains at 0.5.
    heatmap = [[0, 0, 0, 0, 1], [1, 1, 0, 0, 2]]
    sweep = threshold_sweep(heatmap, (0, 0, 1, 1), [0.5, 0.6])
    assert sweep.boxes.tolist() == [[4, 0, 5, 2], [4, 1, 5, 2]]


def test_best_iou_sees_a_small_component_that_the_largest_hides():
    heatmap = np.zeros((10, 10))
    heatmap[0:2, 0:2] = 1
    heatmap[5:10, 5:10] = 1
    sweep = threshold_sweep(heatmap, (0, 0, 2, 2), [0.5])
    assert sweep.iou.tolist() == [0.0]
    assert sweep.best_iou.tolist() == [1.0]


def test_the_scale_of_a_heatmap_does_not_matter():
    heatmap = np.random.default_rng(0).random((9, 11))
    for factor in (2.0**-1000, 2.0**-20, 2.0**900):
        scaled = threshold_sweep(heatmap * factor, (0, 0, 5, 5))
        plain = threshold_sweep(heatmap, (0, 0, 5, 5))
        np.testing.assert_array_equal(scaled.boxes, plain.boxes)


def test_an_empty_heatmap_misses_everywhere_and_says_so():
    sweep = threshold_sweep(np.zeros((5, 6)), (0, 0, 3, 3))
    assert sweep.empty
    assert sweep.iou.shape == sweep.best_iou.shape == (99,)
    assert not sweep.iou.any()
    assert not sweep.best_iou.any()
    assert sweep.boxes.shape == (99, 4)


def test_sweep_leaves_its_arguments_alone():
    heatmap, box, thresholds = (
        np.random.default_rng(0).random((8, 9)),
        np.array([1.0, 1, 5, 5]),
        [0.5],
    )
    before = heatmap.copy(), box.copy()
    threshold_sweep(heatmap, box, thresholds)
    np.testing.assert_array_equal(heatmap, before[0])
    np.testing.assert_array_equal(box, before[1])


def test_sweep_takes_views_and_read_only_arrays():
    heatmap = np.random.default_rng(0).random((20, 30))[::2, ::-3]
    expected = threshold_sweep(heatmap.copy(), (0, 0, 5, 5))
    heatmap.setflags(write=False)
    np.testing.assert_array_equal(threshold_sweep(heatmap, (0, 0, 5, 5)).iou, expected.iou)


@pytest.mark.parametrize(
    ("heatmap", "message"),
    [
        (np.full((3, 3), np.nan), "9 of 9 pixels are NaN"),
        (np.array([[1.0, np.inf]]), "1 of 2 pixels are NaN or infinite"),
        (np.array([[1.0, -np.inf]]), "1 of 2 pixels are NaN or infinite"),
        (np.array([[1.0, -0.5]]), "lowest pixel is -0.5: apply the ReLU"),
        (np.ones(3), r"got \(3,\)"),
        (np.ones((1, 3, 3)), r"got \(1, 3, 3\)"),
        (np.ones((0, 3)), "at least one pixel"),
        (np.array([["a"]]), "real numbers"),
        (np.ones((2, 2), dtype=complex), "real numbers"),
    ],
)
def test_sweep_refuses_what_is_not_a_heatmap(heatmap, message):
    with pytest.raises(InputError, match=message):
        threshold_sweep(heatmap, (0, 0, 1, 1))


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((0, 0, 1), "four numbers"),
        ((2, 0, 2, 3), "no area"),
        ((3, 0, 1, 3), "no area"),
        ((0, 0, 4.5, 3), "sticks out of the image of 4 x 3"),
        ((-0.1, 0, 4, 3), "sticks out"),
        ((0, 0, np.nan, 3), "finite"),
    ],
)
def test_sweep_refuses_what_is_not_an_objects_box(box, message):
    with pytest.raises(InputError, match=message):
        threshold_sweep(np.ones((3, 4)), box)


@pytest.mark.parametrize(
    "thresholds", [[], [0.5, 0.5], [0.6, 0.5], [1.1], [-0.1], [np.nan], [[0.5]]]
)
def test_sweep_refuses_thresholds_that_do_not_increase_in_0_to_1(thresholds):
    with pytest.raises(InputError, match="thresholds"):
        threshold_sweep(np.ones((3, 4)), (0, 0, 1, 1), thresholds)


@given(arrays(np.float64, st.tuples(st.integers(1, 6), st.just(99)), elements=st.floats(0, 1)))
@settings(max_examples=25, deadline=None)
def test_figures_agree_with_counting(ious):
    curve = [sum(row[t] >= 0.5 for row in ious) / len(ious) for t in range(99)]
    np.testing.assert_allclose(accuracy_curve(ious), curve)
    assert accuracy_at(ious, 0.2) == pytest.approx(curve[19])
    assert mean_accuracy(ious, 0.15, 0.25) == pytest.approx(sum(curve[14:25]) / 11)
    highest, threshold = max_box_acc(ious)
    assert highest == pytest.approx(max(curve))
    assert threshold == (curve.index(max(curve)) + 1) / 100
    of_deltas = [
        max(sum(row[t] >= delta for row in ious) / len(ious) for t in range(99))
        for delta in (0.3, 0.5, 0.7)
    ]
    assert max_box_acc_v2(ious) == pytest.approx(sum(of_deltas) / 3)


def test_an_iou_exactly_at_delta_is_correct():
    assert is_correct([[0.5, np.nextafter(0.5, 0)]]).tolist() == [[True, False]]
    assert is_correct_v2([[0.3, 0.7]]).tolist() == [[[True, True], [False, True], [False, True]]]


@pytest.mark.parametrize("ious", [[0.5], [], [[]], [[0.5, np.nan]], [[1.5]], [[-0.1]]])
def test_figures_refuse_what_is_not_iou_of_images_at_thresholds(ious):
    with pytest.raises(InputError, match="IoU"):
        accuracy_curve(ious)


def test_figures_refuse_thresholds_that_were_not_swept():
    ious = np.zeros((2, 99))
    with pytest.raises(InputError, match="none of the 99 thresholds lies"):
        accuracy_at(ious, 0.205)
    with pytest.raises(InputError, match="IoU at 98 thresholds"):
        max_box_acc(ious[:, 1:])
    with pytest.raises(InputError, match="delta"):
        accuracy_curve(ious, delta=0)
    with pytest.raises(InputError, match="at least one delta"):
        max_box_acc_v2(ious, deltas=())
