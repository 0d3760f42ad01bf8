import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageFile

from benchmarks.datasets import (
    BoxError,
    DatasetError,
    ImageRecord,
    UnreadableImageError,
    clip_box,
    load_mask,
    load_rgb,
)


def record(path: Path, mask_path: Path | None = None, **more: object) -> ImageRecord:
    return ImageRecord("a.jpg", path, 1, "Cat", (0, 0, 1, 1), mask_path, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode).save(path)
    image = load_rgb(record(path))
    assert (image.mode, image.size) == ("RGB", (5, 4))
    assert image.getpixel((2, 2)) == (255, 255, 255)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "absent", "folder", "header"])
def test_unreadable_image_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "bird.png"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    elif damage == "absent":
        path.unlink()
    else:
        broken = {
            "truncated": content[: len(content) // 2],
            "text": b"not an image",
            "empty": b"",
            "header": content[:20] + bytes(20) + content[40:],
        }
        path.write_bytes(broken[damage])
    with pytest.raises(UnreadableImageError, match=r"bird\.png: can't be read"):
        load_rgb(record(path))


def test_exif_orientation_leaves_pixels_where_the_boxes_are(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert load_rgb(record(tmp_path / "a.jpg")).size == (8, 4)


@pytest.mark.parametrize("size", [(8, 4), (4, 4)])
def test_a_tiff_that_would_be_turned_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", size).save(tmp_path / "a.tif", exif=exif)
    with pytest.raises(UnreadableImageError, match=r"a\.tif: stored turned \(orientation 6\)"):
        load_rgb(record(tmp_path / "a.tif"))
    Image.new("RGB", size).save(tmp_path / "a.tif")
    assert load_rgb(record(tmp_path / "a.tif")).size == size


def test_mask_foreground_says_which_values_are_the_object(tmp_path: Path) -> None:
    trimap = np.array([[1, 2, 3], [2, 2, 1]], dtype=np.uint8)
    Image.fromarray(trimap).save(tmp_path / "m.png")
    mask = load_mask(record(tmp_path, tmp_path / "m.png", mask_foreground=(1, 3)))
    np.testing.assert_array_equal(mask, [[True, False, True], [False, False, True]])


def test_mask_foreground_reads_palette_numbers_not_their_colours(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8)).convert("P")
    image.putpalette([255, 255, 255, 0, 0, 0])
    image.save(tmp_path / "m.png")
    mask = load_mask(record(tmp_path, tmp_path / "m.png", mask_foreground=(1,)))
    np.testing.assert_array_equal(mask, [[False, True], [True, False]])


def test_grey_and_alpha_masks_count_from_128(tmp_path: Path) -> None:
    grey = np.array([[127, 128], [255, 0]], dtype=np.uint8)
    Image.fromarray(np.stack([grey, np.full_like(grey, 255)], -1), "LA").save(tmp_path / "m.png")
    mask = load_mask(record(tmp_path, tmp_path / "m.png"))
    np.testing.assert_array_equal(mask, [[False, True], [True, False]])


def test_bad_masks_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    photo = tmp_path / "a.png"
    Image.new("RGB", (3, 4)).save(photo)
    Image.new("L", (4, 3), 255).save(path)
    with pytest.raises(DatasetError, match=r"m\.png: the mask is 4x3, its image .* is 3x4"):
        load_mask(record(photo, path), (3, 4))
    assert load_mask(record(photo, path), (4, 3)).all()
    Image.new("L", (4, 3), 127).save(path)
    with pytest.raises(DatasetError, match=r"m\.png: no object in this mask"):
        load_mask(record(tmp_path, path))
    path.write_bytes(b"no image")
    with pytest.raises(UnreadableImageError, match=r"m\.png"):
        load_mask(record(tmp_path, path))
    with pytest.raises(DatasetError, match=r"a\.jpg has no mask"):
        load_mask(record(tmp_path))


@given(
    box=st.tuples(*[st.integers(-12, 24)] * 4),
    width=st.integers(1, 12),
    height=st.integers(1, 12),
)
def test_clip_box_keeps_exactly_the_pixels_inside(
    box: tuple[int, int, int, int], width: int, height: int
) -> None:
    x0, y0, x1, y1 = box
    inside = {
        (x, y)
        for x in range(width)
        for y in range(height)
        if x0 <= x < x1 and y0 <= y < y1
    }  # fmt: skip
    if not inside:
        with pytest.raises(BoxError, match=r"bird\.jpg"):
            clip_box((float(x0), float(y0), float(x1), float(y1)), width, height, "bird.jpg")
        return
    clipped = clip_box((float(x0), float(y0), float(x1), float(y1)), width, height)
    xs, ys = [x for x, _ in inside], [y for _, y in inside]
    assert clipped == (min(xs), min(ys), max(xs) + 1, max(ys) + 1)


def test_clip_box_refuses_nan() -> None:
    with pytest.raises(BoxError):
        clip_box((math.nan, 0.0, 5.0, 5.0), 10, 10)


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("deep.png", np.full((4, 5), 4095, np.uint16)),
        ("deep.tif", np.full((4, 5), 4095, np.uint16)),
        ("long.tif", np.full((4, 5), 70_000, np.int32)),
        ("real.tif", np.full((4, 5), 0.5, np.float32)),
    ],
)
def test_pixels_of_more_than_8_bits_are_refused(
    tmp_path: Path, name: str, pixels: np.ndarray
) -> None:
    Image.fromarray(pixels).save(tmp_path / name)
    with pytest.raises(UnreadableImageError, match=rf"{name} has .* more than 8 bits"):
        load_rgb(record(tmp_path / name))


def test_colours_of_16_bits_and_strips_are_refused(tmp_path: Path) -> None:
    (tmp_path / "deep.ppm").write_bytes(b"P6 2 2 65535\n" + b"\x0f\xff" * 12)
    with pytest.raises(UnreadableImageError, match="more than 8 bits"):
        load_rgb(record(tmp_path / "deep.ppm"))
    Image.new("RGB", (1, 60_000)).save(tmp_path / "strip.png")
    with pytest.raises(UnreadableImageError, match="100 times as long as wide"):
        load_rgb(record(tmp_path / "strip.png"))


def test_an_eps_named_jpg_starts_no_other_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n")
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(UnreadableImageError, match=r"a\.jpg: can't be read"):
        load_rgb(record(path))


def test_a_bomb_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (13_000, 13_000)).save(path)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(UnreadableImageError, match="13000 x 13000 pixels; at most 89,478,485"),
    ):
        load_rgb(record(path))


def test_a_turned_image_with_a_mask_is_refused(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg", exif=exif)
    Image.new("L", (4, 4), 255).save(tmp_path / "m.png")
    turned = record(tmp_path / "a.jpg", tmp_path / "m.png")
    assert load_rgb(turned).size == (4, 4)
    with pytest.raises(UnreadableImageError, match=r"EXIF orientation 6.*m\.png may be upright"):
        load_mask(turned, (4, 4))
