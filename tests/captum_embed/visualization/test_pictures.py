import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from captum_embed.errors import InputError
from captum_embed.visualization import picture

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
SCALED = PIXELS / 255
TENSOR = torch.from_numpy(SCALED).permute(2, 0, 1)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(PIXELS),
        Image.fromarray(PIXELS).convert("RGBA"),
        PIXELS,
        PIXELS.astype(np.int64),
        SCALED,
        SCALED.astype(np.float32),
        np.dstack([SCALED, np.zeros((5, 7))]),
        TENSOR,
        TENSOR[None].requires_grad_(),
        torch.from_numpy(PIXELS).permute(2, 0, 1),
    ],
)
def test_images_of_any_kind_become_the_same_array(image):
    shown = picture(image)
    assert shown.shape == (5, 7, 3)
    np.testing.assert_allclose(shown, SCALED, atol=1e-6)


@pytest.mark.parametrize("image", [SCALED[..., 0], SCALED[..., :1], TENSOR[:1]])
def test_grey_images_have_three_equal_colours(image):
    np.testing.assert_allclose(picture(image), np.repeat(SCALED[..., :1], 3, axis=2), atol=1e-6)


@given(st.lists(st.floats(0.05, 3), min_size=3, max_size=3), st.floats(-2, 2))
def test_any_normalisation_is_undone(std, mean):
    normalised = (TENSOR - mean) / torch.tensor(std).view(3, 1, 1)
    np.testing.assert_allclose(picture(normalised, (mean, std)), SCALED, atol=1e-5)


def test_normalisation_is_undone_as_torchvision_does_it():
    from torchvision.transforms.v2.functional import normalize

    normalised = normalize(TENSOR, MEAN, STD)
    for undo in ((MEAN, STD), (torch.tensor(MEAN), np.array(STD)), [MEAN, STD]):
        np.testing.assert_allclose(picture(normalised, undo), SCALED, atol=1e-5)

    def undone(image):
        return image * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)

    np.testing.assert_allclose(picture(normalised, undone), SCALED, atol=1e-5)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (TENSOR * 4 - 2, "pass normalization"),
        (SCALED * 255, "8-bit"),
        (np.full((4, 4), np.nan), "expected floats"),
        (PIXELS.astype(int) * 300, "8-bit"),
        (TENSOR.permute(1, 2, 0), "permute"),
        (torch.rand(2, 3, 4, 4), "pass one image"),
        (np.zeros((3, 8, 9)), "channels last"),
        (np.zeros((0, 8, 3)), "channels last"),
        ("photograph.jpg", "PIL.Image.open"),
        (None, "NoneType"),
        (Image.new("I;16", (4, 4)), "I;16"),
        (Image.new("F", (4, 4)), "mode F"),
    ],
)
def test_what_cannot_be_shown_is_refused(image, message):
    with pytest.raises(InputError, match=message):
        picture(image)


@pytest.mark.parametrize(
    ("normalization", "message"),
    [
        ((0.5,), r"\(mean, std\)"),
        (0.5, r"\(mean, std\)"),
        (((0.1, 0.2), 1.0), "2 numbers"),
        (lambda image: image[0], "same shape"),
        ((10.0, 1.0), "normalised"),
    ],
)
def test_a_normalisation_that_does_not_fit_is_refused(normalization, message):
    with pytest.raises(InputError, match=message):
        picture(TENSOR, normalization)


def test_the_image_stays_as_it_was():
    image = torch.rand(3, 4, 4)
    before = image.clone()
    picture(image, (0.1, 0.5))
    assert torch.equal(image, before)
