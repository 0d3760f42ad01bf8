"""Our boxes, IoU and PxAP beside the definitions of Choe et al.'s published evaluation.

The definitions are restated here from github.com/clovaai/wsolevaluation, ``evaluation.py``; the
two score maps with the boxes expected of them are those of its ``evaluation_test.py``.
"""

import numpy as np
import pytest

from benchmarks.metrics.boxes import iou
from benchmarks.metrics.localization import accuracy_curve, max_box_acc_v2, threshold_sweep
from benchmarks.metrics.pxap import pixel_histograms, pxap

UNIMODAL = np.array(
    [
        [0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.4, 0.4, 0.4, 0.6],
        [0.0, 0.4, 1.0, 0.8, 0.6],
        [0.0, 0.4, 0.4, 0.4, 0.6],
    ]
)
MULTIMODAL = np.array(
    [
        [0.4, 0.0, 0.2, 0.2, 0.2],
        [0.4, 0.4, 0.0, 0.4, 0.0],
        [0.0, 0.0, 0.0, 0.4, 0.0],
        [1.0, 0.6, 0.8, 0.2, 0.2],
    ]
)
THEIR_TAUS = (0.0, 0.2, 0.4, 0.6, 0.8)


def their_iou(first, second):
    """Ends are inclusive: each side is longer by 1 than the difference of its ends."""

    def area(x0, y0, x1, y1):
        return max(0, x1 - x0 + 1) * max(0, y1 - y0 + 1)

    shared = area(*np.maximum(first[:2], second[:2]), *np.minimum(first[2:], second[2:]))
    return shared / (area(*first) + area(*second) - shared)


def same_threshold(tau):
    """Our threshold for their foreground, ``floor(255 * map) > int(255 * tau)``."""
    return (int(tau * 255) + 1) / 255


def our_boxes(scoremap):
    rounded = np.floor(scoremap * 255) / 255
    height, width = scoremap.shape
    thresholds = [same_threshold(tau) for tau in THEIR_TAUS]
    return threshold_sweep(rounded, (0, 0, width, height), thresholds).boxes


def in_their_convention(boxes, width, height):
    """They keep the exclusive end x + width as x1, but no further than the last pixel."""
    return np.minimum(boxes, [width, height, width - 1, height - 1]).tolist()


@pytest.mark.parametrize("seed", range(20))
def test_iou_agrees_with_theirs_on_boxes_of_whole_pixels(seed):
    starts, sides = np.random.default_rng(seed).integers(1, 30, (2, 2, 2))
    inclusive = np.concatenate([starts, starts + sides - 1], axis=1)
    exclusive = np.concatenate([starts, starts + sides], axis=1)
    assert iou(*exclusive) == pytest.approx(their_iou(*inclusive))


def test_iou_agrees_with_the_value_in_their_test():
    assert their_iou(np.array([1, 2, 5, 6]), np.array([3, 1, 4, 5])) == pytest.approx(8 / 27)
    assert iou((1, 2, 6, 7), (3, 1, 5, 6)) == pytest.approx(8 / 27)


def test_iou_of_degenerate_boxes_differs_from_theirs():
    # To them (0, 0, 0, 0) is the first pixel, and what is predicted where nothing is found.
    assert their_iou(np.zeros(4), np.zeros(4)) == 1.0
    assert iou(np.zeros(4), np.zeros(4)) == 0.0


def test_boxes_agree_with_theirs_on_one_blob():
    expected = [[1, 1, 4, 3], [1, 1, 4, 3], [2, 1, 4, 3], [2, 2, 4, 3], [2, 2, 3, 3]]
    assert in_their_convention(our_boxes(UNIMODAL), 5, 4) == expected


def test_boxes_of_several_blobs_differ_where_lines_have_no_area_to_them():
    theirs = [[0, 0, 4, 3], [0, 0, 2, 2], [0, 3, 3, 3], [2, 3, 3, 3], [0, 3, 1, 3]]
    ours = in_their_convention(our_boxes(MULTIMODAL), 5, 4)
    # At 0.2 the lower blob has five pixels, but it is a line, whose contour encloses nothing; the
    # upper one has three, in an L. At 0.6 both blobs are single pixels: they take the last, we
    # the first.
    assert ours == [theirs[0], [0, 1, 4, 3], theirs[2], [0, 3, 1, 3], theirs[4]]


def test_their_predictions_are_a_pixel_too_large_inside_the_image():
    heatmap = np.zeros((20, 20))
    heatmap[5:9, 5:9] = 1
    box = threshold_sweep(heatmap, (5, 5, 9, 9), [0.5]).boxes[0]
    theirs = np.array(in_their_convention(box, 20, 20))
    truth = np.array([5, 5, 8, 8])
    assert iou(box, (5, 5, 9, 9)) == 1.0
    assert their_iou(theirs, truth) == pytest.approx(16 / 25)


def their_max_box_acc_v2(best_ious):
    """Count per delta and threshold, then the maximum, then the mean over deltas."""
    of_deltas = []
    for percent in (30, 50, 70):
        correct = np.zeros(best_ious.shape[1])
        for image in best_ious:
            correct[np.where(image >= percent / 100)[0]] += 1
        of_deltas.append((correct / len(best_ious)).max())
    return np.mean(of_deltas)


def test_accuracies_agree_with_theirs():
    ious = np.round(np.random.default_rng(0).random((25, 99)), 2)
    assert max_box_acc_v2(ious) == pytest.approx(their_max_box_acc_v2(ious))
    counted = [(ious[:, t] >= 50 / 100).sum() / 25 for t in range(99)]
    np.testing.assert_allclose(accuracy_curve(ious), counted)


def their_pxap(heatmaps, masks):
    """Histograms with the edges 0, 0.001, ..., 0.999, 1, 2, 3, cumulated from above."""
    edges = np.append(np.arange(0, 1, 0.001), [1.0, 2.0, 3.0])
    on, off = (np.histogram(heatmaps[part], bins=edges)[0] for part in (masks, ~masks))
    true_positives, false_positives = on[::-1].cumsum(), off[::-1].cumsum()
    recall = true_positives / on.sum()
    selected = true_positives + false_positives
    precision = true_positives / np.maximum(selected, 1)
    return (precision[1:] * np.diff(recall))[selected[1:] > 0].sum()


def test_pxap_agrees_with_theirs_on_maps_that_span_0_to_1():
    generator = np.random.default_rng(0)
    heatmaps, masks = generator.random((4, 15, 20)), generator.random((4, 15, 20)) < 0.3
    heatmaps[masks] **= 0.5
    heatmaps[:, 0, 0], heatmaps[:, 0, 1] = 0, 1
    histograms = [pixel_histograms(*case) for case in zip(heatmaps, masks, strict=True)]
    assert pxap(np.sum(histograms, axis=0)) == pytest.approx(their_pxap(heatmaps, masks))
