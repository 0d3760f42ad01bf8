import numpy as np
import pytest
import torch
from skimage.transform import resize

from captum_embed.errors import InputError
from captum_embed.visualization import grid, heatmap, overlay


def test_heatmap_is_relu_then_bilinear_then_divided_by_its_maximum():
    attribution = torch.randn(1, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    positive = attribution[0, 0].clamp(min=0).numpy()
    expected = resize(positive, (16, 20), order=1, mode="edge", anti_aliasing=False)
    np.testing.assert_allclose(heatmap(attribution, (16, 20)), expected / expected.max(), atol=1e-5)


def test_square_root_is_taken_before_upsampling():
    attribution = torch.tensor([[0.0, 4.0]])
    assert heatmap(attribution, (1, 4), sqrt=True).tolist() == [[0.0, 0.25, 0.75, 1.0]]


def test_empty_heatmap_stays_zero():
    assert heatmap(-torch.ones(2, 2), (4, 4)).max() == 0


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (1, 3, 4, 4), (4,), (0, 4), (1, 768), (1, 1, 197)])
def test_heatmap_refuses_what_is_not_one_map(shape):
    with pytest.raises(InputError, match="expected one map"):
        heatmap(torch.ones(shape), (8, 8))


def test_heatmap_refuses_nan():
    with pytest.raises(InputError, match="NaN"):
        heatmap(torch.full((2, 2), float("nan")), (8, 8))


def test_overlay_mixes_image_and_colours_by_alpha():
    image = np.full((2, 3, 3), 255, dtype=np.uint8)
    heat = np.zeros((2, 3))
    np.testing.assert_allclose(overlay(image, heat, alpha=0.0), 1.0)
    np.testing.assert_allclose(overlay(image, heat, alpha=1.0)[0, 0], [0, 0, 0.5], atol=0.01)


def test_overlay_refuses_other_sizes():
    with pytest.raises(InputError, match=r"\(2, 3, 3\).*\(4, 3\)"):
        overlay(np.zeros((2, 3, 3)), np.zeros((4, 3)))


def test_grid_refuses_ragged_rows():
    picture = np.zeros((2, 2, 3))
    with pytest.raises(InputError, match=r"lengths \[1, 2\]"):
        grid([[picture], [picture, picture]])
