import os
import struct
import subprocess
from pathlib import Path
from zlib import compress, crc32

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.functional import InterpolationMode

from captum_embed.command_line.images import (
    ImageFolder,
    Preprocessing,
    find_images,
    printable,
    read_image,
    require_readable,
)
from captum_embed.errors import InputError


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@given(width=st.integers(20, 90), height=st.integers(20, 90), bicubic=st.booleans())
@settings(max_examples=25, deadline=None)
def test_the_crop_is_torchvisions(width: int, height: int, bicubic: bool) -> None:
    mode = InterpolationMode.BICUBIC if bicubic else InterpolationMode.BILINEAR
    theirs = ImageClassification(crop_size=32, resize_size=37, interpolation=mode)
    ours = Preprocessing(32, 37, interpolation="bicubic" if bicubic else "bilinear")
    image = photograph(width, height)
    torch.testing.assert_close(ours.tensor(ours.picture(image)), theirs(image))


def test_the_crop_of_timm_is_timms() -> None:
    timm = pytest.importorskip("timm")
    from captum_embed.command_line.networks import load_network

    ours = load_network("timm:resnet10t", weights="random", device="cpu").preprocessing
    network = timm.create_model("resnet10t", pretrained=False)
    config = timm.data.resolve_model_data_config(network)
    theirs = timm.data.create_transform(**config, is_training=False)
    image = photograph(301, 250)
    torch.testing.assert_close(ours.tensor(ours.picture(image)), theirs(image))


def test_framings_show_the_square_all_of_it_or_all_of_it_stretched() -> None:
    image = photograph(80, 60)
    sizes = {
        framing: Preprocessing(32, 40).replaced(framing=framing).picture(image).size
        for framing in ("crop", "whole", "squash")
    }
    assert sizes == {"crop": (32, 32), "whole": (53, 40), "squash": (32, 32)}
    left_is_black = Image.new("RGB", (80, 60), "white")
    left_is_black.paste("black", (0, 0, 20, 60))
    seen = {
        framing: np.asarray(
            Preprocessing(32, 40).replaced(framing=framing).picture(left_is_black).convert("L")
        )
        for framing in ("crop", "squash")
    }
    # A quarter of the width; of the square, 32 of 53 columns, what is left of it.
    assert (seen["squash"] < 128).mean(axis=1).tolist() == [8 / 32] * 32
    assert (seen["crop"] < 128).mean() < 4 / 32


def test_another_size_keeps_the_share_that_is_cropped() -> None:
    changed = Preprocessing(224, 256).replaced(image_size=448)
    assert (changed.image_size, changed.shorter_side) == (448, 512)


def test_settings_survive_as_text_and_other_text_is_refused() -> None:
    settings_ = Preprocessing(64, 70, "whole", std=(0.1, 0.2, 0.3))
    assert Preprocessing.from_text(settings_.to_text()) == settings_
    for text in ("", "[]", "{}", '{"image_size": 3}', settings_.to_text().replace("64", "-1")):
        with pytest.raises(InputError):
            Preprocessing.from_text(text)


def test_an_image_is_turned_upright_and_of_three_colours(tmp_path: Path) -> None:
    image = Image.new("L", (10, 20), 7)
    exif = Image.Exif()
    exif[0x0112] = 6  # Turned by a quarter.
    image.save(tmp_path / "a.jpg", exif=exif)
    read = read_image(tmp_path / "a.jpg")
    assert (read.mode, read.size, read.getpixel((3, 3))) == ("RGB", (20, 10), (7, 7, 7))


def test_files_that_are_no_images_are_named_all_together(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    photograph(30, 30).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.full((4, 4), 60000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match=r"deep\.png.*half\.png.*text\.png") as caught:
        require_readable(find_images([tmp_path]), progress=False)
    assert "whole.png" not in str(caught.value)


def test_formats_that_start_programs_or_hide_damage_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("started a program"))
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    (tmp_path / "eps.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"
    )
    photograph(20, 20).save(tmp_path / "other.jpg", "ICO")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(InputError, match=r"one of the formats JPEG, .*, PPM"):
            read_image(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 13_000, 13_000, 8, 2, 0, 0, 0)
    chunks = (header, b"IDAT")
    (tmp_path / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", crc32(c)) for c in chunks)
    )
    with pytest.raises(InputError, match=r"13000 x 13000 pixels; at most 89,478,485 are read"):
        read_image(tmp_path / "bomb.png")


def test_folders_give_their_images_in_the_order_of_numbers(tmp_path: Path) -> None:
    for name in ("b/10.png", "b/2.PNG", "a.jpg", ".hidden/x.png", "notes.txt", "b/.cache.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photograph(4, 4).save(tmp_path / name, "png")
    names = [path.relative_to(tmp_path).as_posix() for path in find_images([tmp_path])]
    assert names == ["a.jpg", "b/2.PNG", "b/10.png"]
    # A file that is named itself is taken whatever its suffix, and once.
    again = find_images([tmp_path / "notes.txt", tmp_path / "a.jpg", tmp_path / "a.jpg"])
    assert [path.name for path in again] == ["notes.txt", "a.jpg"]
    (tmp_path / "empty").mkdir()
    for wrong in ("empty", "absent"):
        with pytest.raises(InputError, match=wrong):
            find_images([tmp_path / wrong])


def test_class_folders_are_labels_and_paths_are_keys(tmp_path: Path) -> None:
    for name in ("wren/1.png", "jay/old/2.png", "jay/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        photograph(40, 30).save(tmp_path / name)
    folder = ImageFolder(tmp_path, Preprocessing(16, 20))
    assert folder.class_names == ["jay", "wren"]
    assert [Path(p).relative_to(tmp_path).as_posix() for p, _ in folder.samples] == [
        "jay/1.png",
        "jay/old/2.png",
        "wren/1.png",
    ]
    image, label = folder[2]
    assert (tuple(image.shape), label) == ((3, 16, 16), 1)
    photograph(4, 4).save(tmp_path / "loose.png")
    with pytest.raises(InputError, match="one folder for each class"):
        ImageFolder(tmp_path, Preprocessing())


def test_paths_are_printed_on_one_line() -> None:
    assert printable("a\nb\x1b[31m\u202e") == r"a\nb\x1b[31m\u202e"
    assert printable(os.fsdecode(b"\xff.png")) == r"\udcff.png"


def deep_png(colour_type: int, channels: int) -> bytes:
    """Two by two pixels of 16 bits a colour, as in the PNG specification."""
    rows = b"".join(b"\0" + struct.pack(">H", 4095) * 2 * channels for _ in range(2))
    header = struct.pack(">IIBBBBB", 2, 2, 16, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc32(name + data))
        for name, data in chunks
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("grey.png", deep_png(0, 1)),
        ("rgb.png", deep_png(2, 3)),
        ("grey_alpha.png", deep_png(4, 2)),
        ("rgba.png", deep_png(6, 4)),
        ("deep.ppm", b"P6 2 2 65535\n" + b"\x0f\xff" * 12),
    ],
)
def test_deep_colours_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="more than 8 bits"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("size", [(1, 101), (3000, 20)])
def test_strips_are_refused_before_they_are_scaled(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(tmp_path / "strip.png")
    with pytest.raises(InputError, match="100 times as long as wide"):
        read_image(tmp_path / "strip.png")
    Image.new("RGB", (1, 100)).save(tmp_path / "strip.png")
    assert read_image(tmp_path / "strip.png").size == (1, 100)


def test_bitmaps_of_five_and_six_bits_a_colour_are_read(tmp_path: Path) -> None:
    """Their raw mode, BGR;16, is 16 bits a pixel."""
    masks = struct.pack("<IIII", 0xF800, 0x07E0, 0x001F, 0)
    header = struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, 16, 3, 4, 0, 0, 0, 0)
    content = b"BM" + struct.pack("<IHHI", 74, 0, 0, 70) + header + masks + b"\xff\xff\0\0"
    (tmp_path / "small.bmp").write_bytes(content)
    assert np.asarray(read_image(tmp_path / "small.bmp")).tolist() == [[[255] * 3, [0] * 3]]
