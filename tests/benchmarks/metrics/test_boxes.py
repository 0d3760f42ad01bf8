import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from benchmarks.metrics.boxes import check_box, iou
from captum_embed.errors import InputError

SIDE = 12


@st.composite
def integer_boxes(draw):
    spans = [sorted(draw(st.lists(st.integers(0, SIDE), min_size=2, max_size=2))) for _ in "xy"]
    (x0, x1), (y0, y1) = spans
    return x0, y0, x1, y1


def draw_pixels(box):
    x0, y0, x1, y1 = box
    canvas = np.zeros((SIDE, SIDE), dtype=bool)
    canvas[y0:y1, x0:x1] = True
    return canvas


@given(integer_boxes(), integer_boxes())
def test_iou_of_integer_boxes_is_that_of_their_pixels(first, second):
    a, b = draw_pixels(first), draw_pixels(second)
    expected = (a & b).sum() / (a | b).sum() if (a | b).any() else 0.0
    assert iou(first, second) == pytest.approx(expected, abs=1e-12)


@given(integer_boxes(), integer_boxes(), st.floats(0.1, 10), st.floats(-5, 5))
@settings(max_examples=50)
def test_iou_is_continuous_symmetric_and_free_of_scale(first, second, scale, shift):
    moved = [np.array(box) * scale + shift for box in (first, second)]
    assert iou(*moved) == pytest.approx(float(iou(second, first)), abs=1e-9)


def test_iou_counts_fractions_of_pixels():
    assert iou((0, 0, 1, 1), (0.25, 0, 1.25, 1)) == pytest.approx(0.75 / 1.25)


def test_iou_broadcasts_leading_axes():
    boxes = np.random.default_rng(0).random((3, 1, 5, 2))
    first = np.concatenate([boxes, boxes + 0.5], axis=-1)
    second = first[0, 0, :1]
    expected = [[iou(first[i, 0, j], second[0]) for j in range(5)] for i in range(3)]
    assert_array_equal(iou(first, second), np.array(expected)[:, None])


def test_iou_of_boxes_that_touch_or_have_no_area_is_zero():
    assert iou((0, 0, 1, 1), (1, 0, 2, 1)) == 0
    assert iou((1, 1, 1, 1), (1, 1, 1, 1)) == 0


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((0, 0, 1), "shape"),
        (3.0, "shape"),
        ((0, 0, np.inf, 1), "finite"),
        ((2, 0, 1, 1), "x0 <= x1"),
    ],
)
def test_iou_refuses_what_is_not_a_box(box, message):
    with pytest.raises(InputError, match=message):
        iou(box, (0, 0, 1, 1))


def test_an_objects_box_may_fill_its_image_to_the_last_fraction():
    assert check_box((0, 0, 10, 20.0), 10, 20).tolist() == [0, 0, 10, 20]
    with pytest.raises(InputError, match="clip it first"):
        check_box((0, 0, np.nextafter(10, 11), 20), 10, 20)
    with pytest.raises(InputError, match="sticks out of the image of 10 x 20 pixels"):
        check_box((0, 0, 20, 10), 10, 20)
