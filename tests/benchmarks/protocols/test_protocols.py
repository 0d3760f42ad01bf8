from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.datasets.records import ImageRecord
from benchmarks.metrics.attention import attention_score, attention_score_mask
from benchmarks.metrics.pxap import pack_counts, pixel_histograms, pxap, unpack_counts
from benchmarks.protocols.boxes import ten_thousandths
from benchmarks.protocols.protocol import Frame
from benchmarks.protocols.registry import DEFAULT_PROTOCOLS, PROTOCOLS
from captum_embed.errors import InputError

WIDTH, HEIGHT = 400, 300


@pytest.fixture
def record(tmp_path: Path) -> ImageRecord:
    path = tmp_path / "image.png"
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[60:180, 100:260] = 255
    Image.fromarray(pixels).save(path)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[60:180, 100:260] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return ImageRecord("image.png", path, 1, "Thing", (100, 60, 260, 180), tmp_path / "mask.png")


def brightness(frame: Frame) -> np.ndarray:
    """The object itself as the heatmap: it is white, all else is black."""
    return (frame.image.mean(0) > 0).float().numpy()


def test_attention_shows_the_crop_with_its_box_and_mask(record: ImageRecord) -> None:
    protocol = PROTOCOLS["attention"]
    frame = protocol.frame(record)
    assert frame is not None
    assert frame.size == (224, 224)
    # 400 x 300 becomes 341 x 256; the crop starts 58 and 16 pixels in.
    scale_x, scale_y = 341 / 400, 256 / 300
    expected = [100 * scale_x - 58, 60 * scale_y - 16, 260 * scale_x - 58, 180 * scale_y - 16]
    np.testing.assert_allclose(frame.box, expected, atol=1e-6)
    measures = protocol.measure([brightness(frame)], frame)
    assert measures["empty"] is False
    assert measures["score"] > 0.98
    assert measures["mask_score"] > 0.97


def test_boxes_shows_the_image_at_its_size(record: ImageRecord) -> None:
    protocol = PROTOCOLS["boxes"]
    frame = protocol.frame(record)
    assert frame is not None
    assert frame.size == (HEIGHT, WIDTH)
    assert frame.box == (100, 60, 260, 180)
    measures = protocol.measure([brightness(frame)], frame)
    assert measures["iou"] == measures["best_iou"] == [10_000] * 99
    assert measures["predicted"] == [100, 60, 260, 180]


def test_the_box_kept_is_that_of_the_paper_s_threshold(record: ImageRecord) -> None:
    frame = PROTOCOLS["boxes"].frame(record)
    assert frame is not None
    heatmap = np.zeros(frame.size)
    heatmap[10:20, 30:50] = 1
    heatmap[10:20, 50:60] = 0.2
    heatmap[10:20, 60:70] = 0.19
    assert PROTOCOLS["boxes"].measure([heatmap], frame)["predicted"] == [30, 10, 60, 20]


@pytest.mark.parametrize("name", DEFAULT_PROTOCOLS)
def test_an_empty_heatmap_is_a_miss_and_says_so(name: str, record: ImageRecord) -> None:
    protocol = PROTOCOLS[name]
    frame = protocol.frame(record)
    assert frame is not None
    measures = protocol.measure([np.zeros(frame.size, np.float32)], frame)
    assert measures["empty"] is True
    assert measures.get("score", 0) == 0
    assert measures.get("mask_score", 0) == 0
    assert measures.get("iou", [0] * 99) == [0] * 99


def test_floors_are_those_of_the_definition(record: ImageRecord) -> None:
    boxes, attention = PROTOCOLS["boxes"], PROTOCOLS["attention"]
    frame = boxes.frame(record)
    assert frame is not None
    floors = boxes.floors(frame)
    area = 160 * 120 / (WIDTH * HEIGHT)
    assert floors["whole_image"]["iou"] == [int(area * 10_000)]
    # Sides of 65%: x from 70 to 330, y from 52.5 to 247.5; the object lies inside.
    assert floors["centre_box"]["iou"] == [int(160 * 120 / (260 * 195) * 10_000)]
    cropped = attention.frame(record)
    assert cropped is not None
    x0, y0, x1, y1 = cropped.box
    share = (x1 - x0) * (y1 - y0) / 224**2
    assert attention.floors(cropped)["uniform_heatmap"]["score"] == pytest.approx(share)


def test_a_box_that_sticks_out_is_clipped(record: ImageRecord) -> None:
    wide = ImageRecord("image.png", record.path, 1, "Thing", (-5, 10, 500, 310))
    frame = PROTOCOLS["boxes"].frame(wide)
    assert frame is not None
    assert frame.box == (0, 10, WIDTH, HEIGHT)


def test_a_box_outside_the_crop_gives_no_frame(record: ImageRecord) -> None:
    aside = ImageRecord("image.png", record.path, 1, "Thing", (0, 0, 20, 20))
    assert PROTOCOLS["attention"].frame(aside) is None
    assert PROTOCOLS["boxes"].frame(aside) is not None


def test_the_network_sees_normalised_pixels(record: ImageRecord) -> None:
    white = Image.new("RGB", (300, 300), "white")
    for protocol in PROTOCOLS.values():
        shown = protocol.show(white)
        expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
        torch.testing.assert_close(shown[:, 5, 5], expected)


@given(st.floats(0, 1), st.sampled_from([3000, 5000, 7000]))
def test_rounding_keeps_an_iou_on_its_side_of_the_threshold(iou: float, delta: int) -> None:
    (kept,) = ten_thousandths(np.array([iou]))
    assert (kept >= delta) == (iou >= delta / 10_000)
    assert 0 <= iou - kept / 10_000 < 1e-4 + 1e-12


def test_the_maximum_points_at_the_box_and_the_mask(record: ImageRecord) -> None:
    frame = PROTOCOLS["boxes"].frame(record)
    assert frame is not None
    assert frame.mask is not None
    heatmap = np.full(frame.size, 0.1)
    for (row, column), hit in {(100, 150): 1.0, (10, 10): 0.0}.items():
        pointed = heatmap.copy()
        pointed[row, column] = 1
        measures = PROTOCOLS["boxes"].measure([pointed], frame)
        assert (measures["pointing"], measures["mask_pointing"]) == (hit, hit)


def test_full_size_maps_are_kept_as_histograms_on_and_off_the_mask(record: ImageRecord) -> None:
    frame = PROTOCOLS["boxes"].frame(record)
    assert frame is not None
    assert frame.mask is not None
    heatmap = np.random.default_rng(0).random(frame.size) + frame.mask
    counts = unpack_counts(PROTOCOLS["boxes"].measure([heatmap], frame)["pixel_counts"])
    assert (counts == pixel_histograms(heatmap, frame.mask)).all()
    assert counts.sum(axis=1).tolist() == [160 * 120, WIDTH * HEIGHT - 160 * 120]
    assert pxap(counts) > 0.95


def test_scores_are_the_shares_in_the_box_and_on_the_mask(record: ImageRecord) -> None:
    frame = PROTOCOLS["attention"].frame(record)
    assert frame is not None
    assert frame.mask is not None
    heatmap = np.random.default_rng(0).random(frame.size)
    measures = PROTOCOLS["attention"].measure([heatmap], frame)
    assert measures["mask_score"] == attention_score_mask(heatmap, frame.mask)
    assert measures["score"] == attention_score(heatmap, frame.box)


def test_without_a_mask_nothing_of_it_is_measured(record: ImageRecord) -> None:
    unmasked = replace(record, mask_path=None)
    for name in DEFAULT_PROTOCOLS:
        frame = PROTOCOLS[name].frame(unmasked)
        assert frame is not None
        measures = PROTOCOLS[name].measure([brightness(frame)], frame)
        assert measures["pointing"] == 1
        assert not {"mask_score", "mask_pointing", "pixel_counts"} & measures.keys()


def test_floors_of_masks_are_areas(record: ImageRecord) -> None:
    frame = PROTOCOLS["boxes"].frame(record)
    assert frame is not None
    floor = PROTOCOLS["boxes"].floors(frame)["whole_image"]
    area = 160 * 120 / (WIDTH * HEIGHT)
    # Every pixel is as high as any: each of them may be the maximum, and all pass at once.
    assert floor["pointing"] == floor["mask_pointing"] == pytest.approx(area)
    assert pxap(unpack_counts(floor["pixel_counts"])) == pytest.approx(area)


@given(st.dictionaries(st.integers(0, 2001), st.integers(0, 2**32 - 1)))
def test_counts_come_back_from_their_text(counts: dict[int, int]) -> None:
    histograms = np.zeros((2, 1001), np.int64)
    histograms.ravel()[list(counts)] = list(counts.values())
    assert (unpack_counts(pack_counts(histograms)) == histograms).all()


@pytest.mark.parametrize("text", ["", "no base64!", "AAAA", pack_counts(np.zeros((2, 7)))])
def test_text_that_holds_no_counts_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no pixel histograms"):
        unpack_counts(text)
