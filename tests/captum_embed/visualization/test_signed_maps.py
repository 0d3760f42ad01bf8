import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.transform import resize

from captum_embed.errors import InputError
from captum_embed.visualization import signed_overlay, upsampled, visualize_maps

GREY = np.full((8, 12, 3), 0.5)
SIGNED = torch.tensor([[-2.0, 0.0, 2.0]])


def drawn(axis):
    """The signed values on an axis, and what they are scaled to."""
    image = axis.images[1]
    return np.asarray(image.get_array()), image.get_clim()


def test_a_map_keeps_its_sign_and_values_when_it_is_made_larger():
    attribution = torch.randn(1, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = resize(attribution[0, 0].numpy(), (16, 20), order=1, mode="edge")
    np.testing.assert_allclose(upsampled(attribution, (16, 20)), expected, atol=1e-5)


def test_zero_leaves_the_picture_grey_red_is_above_and_blue_below():
    overlay = signed_overlay(np.full((1, 3, 3), 0.5), SIGNED)
    blue, grey, red = overlay[0]
    np.testing.assert_allclose(grey, 0.25 + 0.75 * 0.5)
    assert red[0] > red[1]
    assert red[0] > red[2]
    assert blue[2] > blue[0]


def test_a_sign_draws_one_side_alone():
    for sign, shown, hidden in (("positive", 2, 0), ("negative", 0, 2)):
        overlay = signed_overlay(np.full((1, 3, 3), 0.5), SIGNED, sign=sign)[0]
        np.testing.assert_allclose(overlay[hidden], overlay[1])
        assert not np.allclose(overlay[shown], overlay[1])


# Machado, Oliveira, Fernandes (2009), severity 1, on linear RGB.
DEFICIENCIES = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
               [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
               [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


@pytest.mark.parametrize("kind", DEFICIENCIES)
@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
def test_the_two_signs_are_told_apart_with_any_colour_vision(kind, strength):
    colours = signed_overlay(np.full((1, 3, 3), 0.5), strength * SIGNED, scale=2.0)[0]
    linear = np.where(colours > 0.04045, ((colours + 0.055) / 1.055) ** 2.4, colours / 12.92)
    seen = np.clip(linear @ np.array(DEFICIENCIES[kind]).T, 0, 1)
    coded = np.where(seen > 0.0031308, 1.055 * seen ** (1 / 2.4) - 0.055, 12.92 * seen)
    blue, grey, red = rgb2lab(coded)
    # Ten is seen at a glance.
    assert deltaE_ciede2000(red, blue) > 10
    assert min(deltaE_ciede2000(red, grey), deltaE_ciede2000(blue, grey)) > 5


def test_all_maps_share_one_scale_and_one_colour_bar():
    maps = torch.tensor([1.0, -4.0]).view(2, 1, 1, 1).expand(2, 1, 2, 3)
    figure, axes = visualize_maps(maps, [GREY, GREY], titles=["a$b", "c"])
    assert axes.shape == (1, 2)
    for axis, value in zip(axes[0], (1, -4), strict=True):
        values, limits = drawn(axis)
        assert values.shape == (8, 12)
        np.testing.assert_allclose(values, value)
        assert limits == (-4, 4)
    assert [axis.get_title() for axis in axes[0]] == ["a$b", "c"]
    (bar,) = set(figure.axes) - set(axes.flat)
    assert bar.get_xlim() == (-4, 4)
    assert bar.get_xlabel() == "against  ←  0  →  for"
    figure.draw_without_rendering()


@pytest.mark.parametrize(("sign", "limits"), [("positive", (0, 4)), ("negative", (-4, 0))])
def test_the_colour_bar_shows_the_side_that_is_drawn(sign, limits):
    maps = torch.tensor([4.0, -4.0]).view(2, 1, 1, 1).expand(2, 1, 2, 3)
    figure, axes = visualize_maps(maps, [GREY, GREY], sign=sign, ends=("no", "yes"))
    (bar,) = set(figure.axes) - set(axes.flat)
    assert bar.get_xlim() == limits
    assert ("yes" in bar.get_xlabel()) == (sign == "positive")
    assert ("no" in bar.get_xlabel()) == (sign == "negative")


def test_tuples_are_rows_of_examples_and_columns_of_inputs():
    maps = tuple(torch.full((2, 1, 2, 2), float(value)) for value in (1, 2, 3))
    maps[1][1] = -5.0
    images = tuple(torch.full((2, 3, 4, 4), value) for value in (0.1, 0.2, 0.3))
    _, axes = visualize_maps(maps, images, titles=["anchor", "positive", "negative"])
    assert axes.shape == (2, 3)
    np.testing.assert_allclose(drawn(axes[1, 1])[0], -5)
    np.testing.assert_allclose(drawn(axes[0, 2])[0], 3)
    np.testing.assert_allclose(axes[1, 2].images[0].get_array(), 0.25 + 0.75 * 0.3, atol=1e-6)
    assert [axis.get_title() for axis in axes[0]] == ["anchor", "positive", "negative"]


def test_one_picture_serves_several_maps_and_long_rows_are_wrapped():
    figure, axes = visualize_maps(torch.randn(8, 1, 2, 2), GREY)
    assert axes.shape == (2, 6)
    assert [len(axis.images) for axis in axes.flat] == [2] * 8 + [0] * 4
    figure.draw_without_rendering()
    assert visualize_maps((torch.randn(1, 1, 2, 2),) * 3, GREY)[1].shape == (1, 3)
    assert isinstance(visualize_maps(torch.randn(2, 2), torch.rand(3, 4, 4))[1], Axes)


def test_a_map_of_zeros_is_the_picture():
    figure, axis = visualize_maps(torch.zeros(1, 1, 2, 2), GREY)
    assert drawn(axis)[1] == (-1, 1)
    figure.draw_without_rendering()


def test_axes_of_ones_own_are_drawn_on():
    figure = Figure()
    left, right = figure.subplots(1, 2)
    returned, axis = visualize_maps(
        torch.ones(1, 1, 2, 2), GREY, plt_fig_axis=(figure, right), show_colorbar=False
    )
    assert returned is figure
    assert axis is right
    assert not left.images
    with pytest.raises(InputError, match="2 axes for 1"):
        visualize_maps(torch.ones(1, 1, 2, 2), GREY, plt_fig_axis=(figure, [left, right]))


def test_pyplot_is_touched_only_if_asked(monkeypatch):
    from matplotlib import pyplot

    monkeypatch.setattr(pyplot, "show", lambda: shown.append(True))
    shown: list[bool] = []
    before, settings = pyplot.get_fignums(), dict(mpl.rcParams)
    visualize_maps(torch.ones(1, 1, 2, 2), GREY)
    assert pyplot.get_fignums() == before
    # Looking at the backend alone chooses one.
    assert dict(mpl.rcParams) | {"backend": None} == settings | {"backend": None}
    figure, _ = visualize_maps(torch.ones(1, 1, 2, 2), GREY, use_pyplot=True)
    assert pyplot.get_fignums() == [*before, figure.number]
    assert shown == [True]
    pyplot.close(figure)


def test_captums_own_visualization_takes_the_same_map():
    from captum.attr import visualization

    values = upsampled(torch.randn(1, 1, 2, 3), (8, 12))
    figure, _ = visualization.visualize_image_attr(
        values[..., None], GREY, "blended_heat_map", "all", use_pyplot=False
    )
    assert isinstance(figure, Figure)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attr": torch.ones(1, 3, 2, 2)}, "expected one map"),
        ({"attr": torch.full((1, 1, 2, 2), torch.nan)}, "NaN"),
        ({"attr": ()}, "expected maps"),
        ({"attr": np.ones((2, 2))}, "expected maps"),
        ({"attr": (torch.ones(1, 1, 2, 2), torch.ones(2, 1, 2, 2))}, "as many of each"),
        ({"attr": torch.ones(3, 1, 2, 2), "original_image": [GREY, GREY]}, r"\[3\].*\[2\]"),
        ({"original_image": torch.randn(3, 8, 8) * 9}, "normalization"),
        ({"sign": "absolute_value"}, "attr.abs"),
        ({"scale": 0.0}, "above zero"),
        ({"alpha_overlay": 2.0}, "alpha_overlay"),
        ({"cmap": "no such"}, "no such"),
        ({"titles": ["a", "b"]}, "titles"),
        ({"titles": "cat"}, "titles"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        visualize_maps(**{"attr": torch.ones(1, 1, 2, 2), "original_image": GREY, **change})
