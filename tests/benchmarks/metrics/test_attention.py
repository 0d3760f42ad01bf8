import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from benchmarks.metrics.attention import attention_score, attention_score_mask
from benchmarks.metrics.floors import centre_box, uniform_heatmap, whole_image_box
from captum_embed.errors import InputError

# Boxes on a grid of eighths of a pixel, so that subpixels can be counted exactly.
FINE = 8


@st.composite
def heatmaps_and_boxes(draw):
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    heatmap = draw(arrays(np.float64, (height, width), elements=st.floats(0, 1e6)))
    x0, y0 = draw(st.integers(0, width * FINE - 1)), draw(st.integers(0, height * FINE - 1))
    x1 = draw(st.integers(x0 + 1, width * FINE))
    y1 = draw(st.integers(y0 + 1, height * FINE))
    return heatmap, (x0, y0, x1, y1)


@given(heatmaps_and_boxes())
@settings(max_examples=100)
def test_score_is_that_of_counting_subpixels(case):
    heatmap, (x0, y0, x1, y1) = case
    fine = np.kron(heatmap, np.ones((FINE, FINE)))
    expected = fine[y0:y1, x0:x1].sum() / fine.sum() if fine.any() else 0.0
    actual = attention_score(heatmap, np.array((x0, y0, x1, y1)) / FINE)
    assert actual == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(heatmaps_and_boxes())
@settings(max_examples=50)
def test_scores_of_an_integer_box_and_of_its_mask_agree(case):
    heatmap, (x0, y0, x1, y1) = case
    height, width = heatmap.shape
    box = (x0 // FINE, y0 // FINE, -(-x1 // FINE), -(-y1 // FINE))
    mask = np.zeros((height, width), dtype=bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    on_mask = attention_score_mask(heatmap, mask)
    assert attention_score(heatmap, box) == pytest.approx(on_mask, abs=1e-12)


@given(arrays(np.float64, (5, 7), elements=st.floats(0, 1e300)))
def test_a_box_around_everything_scores_exactly_one_or_is_empty(heatmap):
    assert attention_score(heatmap, whole_image_box(7, 5)) == (1.0 if heatmap.any() else 0.0)


def test_a_uniform_heatmap_scores_the_area_of_the_box():
    score = attention_score(uniform_heatmap(40, 20), centre_box(40, 20, fraction=0.65))
    assert score == pytest.approx(0.65**2)


def test_an_empty_heatmap_scores_zero():
    assert attention_score(np.zeros((3, 3)), (0, 0, 3, 3)) == 0.0
    assert attention_score_mask(np.zeros((3, 3)), np.ones((3, 3))) == 0.0


def test_huge_values_do_not_overflow():
    assert attention_score(np.full((2, 2), 1.7e308), (0, 0, 1, 2)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((3, 2)), r"differ in shape: \(3, 2\) and \(2, 3\)"),
        (np.full((2, 3), 255), "only 0 and 1, got values from 255 to 255"),
        (np.full((2, 3), np.nan), "only 0 and 1"),
        (np.zeros((2, 3)), "no pixel set"),
    ],
)
def test_what_is_not_a_mask_is_refused(mask, message):
    with pytest.raises(InputError, match=message):
        attention_score_mask(np.ones((2, 3)), mask)


@pytest.mark.parametrize("heatmap", [np.full((2, 3), np.nan), -np.ones((2, 3)), np.ones(3)])
def test_what_is_not_a_heatmap_is_refused(heatmap):
    with pytest.raises(InputError, match="a heatmap"):
        attention_score(heatmap, (0, 0, 1, 1))
    with pytest.raises(InputError, match="a heatmap"):
        attention_score_mask(heatmap, np.ones((2, 3)))
