import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from benchmarks.datasets.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    resize_center_crop,
    resize_center_crop_mask,
    resize_crop_box,
    resized_size,
    to_image,
    to_tensor,
)
from captum_embed.errors import InputError

SIDES = st.integers(30, 700)


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def test_tensor_is_torchvisions() -> None:
    image = noise(13, 7)
    reference = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    )(image)
    tensor = to_tensor(image)
    assert tensor.shape == (3, 7, 13)
    assert tensor.dtype == torch.float32
    torch.testing.assert_close(tensor, reference)


def test_to_image_undoes_the_normalisation() -> None:
    image = noise(13, 7)
    pixels = (to_image(to_tensor(image)) * 255).round().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(pixels, np.asarray(image))


def test_grey_image_is_refused() -> None:
    with pytest.raises(InputError, match="expected an RGB image, got mode L"):
        to_tensor(Image.new("L", (4, 4)))


@pytest.mark.parametrize("size", [(500, 375), (333, 501), (256, 256), (100, 640), (224, 224)])
def test_crop_is_torchvisions(size: tuple[int, int]) -> None:
    image = noise(*size)
    reference = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])(image)
    np.testing.assert_array_equal(np.asarray(resize_center_crop(image)), np.asarray(reference))


@given(width=SIDES, height=SIDES)
@settings(max_examples=50, deadline=None)
def test_resized_size_is_torchvisions(width: int, height: int) -> None:
    assert resized_size(width, height) == transforms.Resize(256)(noise(width, height)).size


@st.composite
def boxes_in_images(draw: st.DrawFn) -> tuple[int, int, tuple[int, int, int, int]]:
    width, height = draw(SIDES), draw(SIDES)
    x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    x1, y1 = draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height))
    return width, height, (x0, y0, x1, y1)


@given(boxes_in_images())
@settings(max_examples=200, deadline=None)
def test_box_goes_where_its_pixels_go(case: tuple[int, int, tuple[int, int, int, int]]) -> None:
    width, height, (x0, y0, x1, y1) = case
    mask = np.zeros((height, width), dtype=bool)
    mask[y0:y1, x0:x1] = True
    moved = resize_center_crop_mask(mask)
    box = resize_crop_box((float(x0), float(y0), float(x1), float(y1)), width, height)
    if box is None:
        assert not moved.any()
        return
    # A nearest-neighbour mask holds the pixels whose centres lie in the exact box.
    centres = np.arange(224) + 0.5
    near_edge = 1e-6
    columns = (centres >= box[0] - near_edge) & (centres < box[2] + near_edge)
    rows = (centres >= box[1] - near_edge) & (centres < box[3] + near_edge)
    surely_columns = (centres > box[0] + near_edge) & (centres < box[2] - near_edge)
    surely_rows = (centres > box[1] + near_edge) & (centres < box[3] - near_edge)
    assert not (moved & ~np.outer(rows, columns)).any()
    assert moved[np.outer(surely_rows, surely_columns)].all()


@given(boxes_in_images())
@settings(max_examples=50, deadline=None)
def test_box_lies_in_the_crop_and_has_area(
    case: tuple[int, int, tuple[int, int, int, int]],
) -> None:
    width, height, (x0, y0, x1, y1) = case
    box = resize_crop_box((float(x0), float(y0), float(x1), float(y1)), width, height)
    assume(box is not None)
    assert box is not None
    assert 0 <= box[0] < box[2] <= 224
    assert 0 <= box[1] < box[3] <= 224


def test_box_in_the_part_cut_away_is_none() -> None:
    assert resize_crop_box((0.0, 0.0, 60.0, 300.0), 600, 300) is None
    assert resize_crop_box((0.0, 0.0, 300.0, 60.0), 300, 600) is None
    assert resize_crop_box((0.0, 0.0, 300.0, 60.0), 600, 300) is not None


def test_mask_must_be_boolean_and_flat() -> None:
    with pytest.raises(InputError, match="boolean mask"):
        resize_center_crop_mask(np.zeros((5, 5), dtype=np.uint8))
    with pytest.raises(InputError, match="boolean mask"):
        resize_center_crop_mask(np.zeros((5, 5, 3), dtype=bool))


def test_crop_larger_than_the_short_side_is_refused() -> None:
    with pytest.raises(InputError, match="between 1 and short = 100, got 101"):
        resize_crop_box((0.0, 0.0, 1.0, 1.0), 10, 10, short=100, crop=101)
    with pytest.raises(InputError, match="crop"):
        resize_center_crop(noise(10, 10), short=100, crop=0)
