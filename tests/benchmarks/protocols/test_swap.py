"""Protocol D, with networks whose right answer is known."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.datasets.records import ImageRecord
from benchmarks.protocols.exchange import (
    Photograph,
    background,
    with_background_of,
    with_object_of,
)
from benchmarks.protocols.protocol import Question, Source
from benchmarks.protocols.registry import PROTOCOLS
from benchmarks.protocols.swap import SwapFrame, fit
from captum_embed.errors import InputError

SWAP = PROTOCOLS["swap"]
SIDE = 32
OBJECTS = [(230, 40, 40), (40, 220, 60), (50, 50, 240)]
SCENES = [(120, 120, 120), (200, 190, 60), (20, 20, 20)]


def mean_colour(images: Tensor) -> Tensor:
    return F.normalize(images.mean((2, 3)))


def coarse_colours(images: Tensor) -> Tensor:
    """Mean colours of 4 x 4 parts: of the object, which lies in the middle, and of the scene."""
    return F.normalize(F.adaptive_avg_pool2d(images, 4).flatten(1))


def a_frame(kind: Any = "object") -> SwapFrame:
    """A region in the middle is red in the probe, and green in its twin; the rest is alike."""
    region = np.zeros((SIDE, SIDE), dtype=bool)
    region[8:20, 8:20] = True
    image = torch.full((3, SIDE, SIDE), 0.1)
    twin = image.clone()
    image[0, torch.from_numpy(region)] = 5.0
    twin[1, torch.from_numpy(region)] = 5.0
    mate, non_mate = torch.eye(3)[:1], torch.eye(3)[1:2]
    question = Question(mate, non_mate)
    return SwapFrame(image, (8, 8, 20, 20), region, (question,), twin=twin, kind=kind)


def scores(signed_map: np.ndarray, frame: SwapFrame) -> tuple[float, float]:
    measures = SWAP.measure([signed_map], frame, mean_colour)
    return measures["swap_1"], measures["swap_5"]


def test_the_region_flips_soonest_and_what_both_share_never() -> None:
    frame = a_frame()
    assert frame.mask is not None
    assert scores(frame.mask.astype(float), frame) == (1, 1)
    # Signs do not matter, the order does.
    assert scores(frame.mask - 5.0, frame) == (1, 1)
    assert scores((~frame.mask).astype(float), frame) == (0, 0)
    assert scores(np.ones((SIDE, SIDE)), frame) == (0, 0)


def test_a_map_with_some_false_alarms_flips_at_5_and_not_at_1_percent() -> None:
    frame = a_frame()
    assert frame.mask is not None
    outside = np.flatnonzero(~frame.mask)
    false_alarms = np.zeros(SIDE * SIDE)
    # 3% of what lies outside comes before all of the region.
    false_alarms[outside[: round(0.03 * len(outside))]] = 2
    signed_map = false_alarms.reshape(SIDE, SIDE) + frame.mask
    assert scores(signed_map, frame) == (0, 1)
    measures = SWAP.measure([signed_map], frame, mean_colour)
    assert measures["swap_5_object"] == 1
    assert "swap_5_background" not in measures
    assert measures["swap_curve"] == sorted(measures["swap_curve"])


def test_margins_are_those_of_images_put_together_pixel_by_pixel() -> None:
    frame = a_frame()
    assert frame.mask is not None
    assert frame.twin is not None
    half = frame.mask.copy()
    half[:, 14:] = False
    # Half of the region comes at once, the other half after everything else: no decision.
    first = SWAP.measure([half + 0.5 * ~frame.mask], frame, mean_colour)
    mixed = frame.image.clone()
    for row, column in np.argwhere(half):
        mixed[:, row, column] = frame.twin[:, row, column]
    embedding = mean_colour(mixed[None])[0]
    assert first["swap_5"] == float(embedding[0] < embedding[1])


def test_empty_maps_are_counted_and_floors_are_there() -> None:
    frame = a_frame("background")
    measures = SWAP.measure([np.zeros((SIDE, SIDE))], frame, mean_colour)
    assert measures["empty"] is True
    floors = SWAP.floors(frame, mean_colour)
    assert set(floors) == {"centre_box", "uniform_heatmap", "edge_filter"}
    assert floors["uniform_heatmap"]["swap_5_background"] == 0
    with pytest.raises(InputError, match="give embed"):
        SWAP.measure([np.ones((SIDE, SIDE))], frame)


def test_a_game_is_kept_where_both_decisions_are_right() -> None:
    mate, non_mate = np.eye(2, dtype=np.float32)
    kept = fit(np.stack([mate, non_mate, mate, non_mate]))
    assert kept is not None
    np.testing.assert_array_equal(kept, [mate, non_mate])
    assert fit(np.stack([non_mate, non_mate, mate, non_mate])) is None
    assert fit(np.stack([mate, mate, mate, non_mate])) is None


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[ImageRecord]:
    """Three images of each of three colours, each before a scene of its own; with masks."""
    tmp_path = tmp_path_factory.mktemp("images")
    made = []
    for label, colour in enumerate(OBJECTS):
        for index, scene in enumerate(SCENES):
            pixels = np.zeros((260, 300, 3), dtype=np.uint8) + np.array(scene, dtype=np.uint8)
            pixels[70:190, 90:210] = colour
            mask = (pixels == np.array(colour)).all(2)
            path = tmp_path / f"{label}-{index}.png"
            mask_path = tmp_path / f"{label}-{index}-mask.png"
            Image.fromarray(pixels).save(path)
            Image.fromarray((255 * mask).astype(np.uint8)).save(mask_path)
            made.append(
                ImageRecord(path.name, path, label, f"colour {label}", (90, 70, 210, 190),
                            mask_path=mask_path)
            )  # fmt: skip
    return made


def test_games_of_both_kinds_are_found_and_can_be_sent(records: list[ImageRecord]) -> None:
    source = Source(records[:6], embed=coarse_colours)
    items: list[Any] = list(SWAP.items(source))
    assert {item.kind for item in items} == {"object", "background"}
    assert len({item.key for item in items}) == len(items)
    tried = SWAP.num_tried(items)
    assert tried is not None
    assert tried >= len(items)
    assert [i.key for i in SWAP.items(source)] == [i.key for i in items]
    limited: list[Any] = list(SWAP.items(Source(records[:6], limit=2, embed=coarse_colours)))
    assert {item.key for item in limited} <= {item.key for item in items}
    measured: set[str] = set()
    for item in items:
        assert item.other.label != item.record.label
        frame = SWAP.frame(pickle.loads(pickle.dumps(item)))
        assert isinstance(frame, SwapFrame)
        assert frame.mask is not None
        assert frame.twin is not None
        # They differ in the region alone.
        assert torch.equal(frame.twin[:, ~frame.mask], frame.image[:, ~frame.mask])
        (question,) = frame.questions
        assert question.references is not None
        assert question.foils is not None
        near, far = question.references[0], question.foils[0]
        probe, twin = coarse_colours(torch.stack([frame.image, frame.twin]))
        assert probe @ near > probe @ far
        assert twin @ far > twin @ near
        if item.kind in measured:
            continue
        measured.add(item.kind)
        region = frame.mask.astype(float)
        measures = SWAP.measure([region], frame, coarse_colours)
        assert measures["swap_1"] == measures[f"swap_5_{item.kind}"] == 1


def test_a_network_that_sees_no_difference_and_too_few_classes_are_refused(
    records: list[ImageRecord],
) -> None:
    blind = Source(records[:4], embed=lambda images: torch.ones(len(images), 2))
    with pytest.raises(InputError, match="none of 12 twins is fit"):
        SWAP.items(blind)
    with pytest.raises(InputError, match="two test classes"):
        SWAP.items(Source(records[:3], embed=mean_colour))
    with pytest.raises(InputError, match="give an embed"):
        SWAP.items(Source(records))


def square(colour: float, scene: float, top: int, side: int) -> Photograph:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[top : top + side, top : top + side] = True
    pixels = torch.full((3, SIDE, SIDE), scene)
    pixels[:, torch.from_numpy(mask)] = colour
    return Photograph(pixels, mask)


def test_of_the_old_object_and_of_the_new_background_nothing_is_left() -> None:
    one, other = square(1.0, 0.0, 8, 10), square(3.0, 2.0, 14, 6)
    new_object = with_object_of(one, other)
    assert not (new_object.pixels == 1).any()
    assert (new_object.pixels[:, ~new_object.mask] == 0).all()
    assert (new_object.pixels == 3).any()
    new_scene = with_background_of(one, other)
    assert (new_scene.pixels[:, new_scene.mask] == 2).all()
    assert (new_scene.pixels[:, one.mask] == 1).all()
    assert (background(other) == 2).all()


def test_an_object_that_fills_its_image_leaves_no_background() -> None:
    full = Photograph(torch.ones(3, 8, 8), np.ones((8, 8), dtype=bool))
    assert torch.isfinite(background(full)).all()
