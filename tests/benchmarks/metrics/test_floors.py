import numpy as np
import pytest

from benchmarks.metrics.floors import (
    centre_box,
    edge_heatmap,
    uniform_heatmap,
    whole_image_box,
)
from benchmarks.metrics.localization import threshold_sweep
from captum_embed.errors import InputError


def test_centre_box_takes_65_percent_of_each_side():
    x0, y0, x1, y1 = centre_box(500, 333)
    assert (x1 - x0, y1 - y0) == pytest.approx((0.65 * 500, 0.65 * 333))
    assert (x0 + x1, y0 + y1) == pytest.approx((500, 333))


def test_centre_box_of_the_whole_side_is_the_whole_image():
    assert centre_box(7, 5, fraction=1) == whole_image_box(7, 5)


def test_uniform_heatmap_localizes_the_whole_image_at_every_threshold():
    heatmap = uniform_heatmap(7, 5)
    assert heatmap.shape == (5, 7)
    sweep = threshold_sweep(heatmap, (0, 0, 3, 3))
    assert np.unique(sweep.boxes, axis=0).tolist() == [list(whole_image_box(7, 5))]


@pytest.mark.parametrize("fraction", [0, 1.01, -1, float("nan")])
def test_centre_box_refuses_fractions_out_of_range(fraction):
    with pytest.raises(InputError, match="fraction"):
        centre_box(10, 10, fraction)


@pytest.mark.parametrize("floor", [centre_box, whole_image_box, uniform_heatmap])
def test_floors_refuse_an_image_without_pixels(floor):
    with pytest.raises(InputError, match="0 x 5"):
        floor(0, 5)


def test_edges_are_those_of_the_sobel_filter() -> None:
    image = np.random.default_rng(0).normal(size=(2, 6, 7))
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
    across, smooth = np.array([-1, 0, 1]), np.array([1, 2, 1])
    expected = np.zeros((6, 7))
    for channel in padded:
        for row in range(6):
            for column in range(7):
                window = channel[row : row + 3, column : column + 3]
                slopes = smooth @ window @ across, across @ window @ smooth
                expected[row, column] += np.hypot(*slopes)
    np.testing.assert_allclose(edge_heatmap(image), expected)


def test_edges_of_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="finite image"):
        edge_heatmap(np.full((3, 4, 4), np.nan))
