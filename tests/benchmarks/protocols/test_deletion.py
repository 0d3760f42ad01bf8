"""Protocol F, with networks whose right answer is known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.datasets.records import ImageRecord, load_rgb
from benchmarks.metrics.single_deletion import GRIDS, patch_masks, patch_sums
from benchmarks.protocols.deletion import DeletionFrame, patch_drops
from benchmarks.protocols.protocol import Question, Source
from benchmarks.protocols.registry import PROTOCOLS
from captum_embed.errors import InputError

DELETION = PROTOCOLS["deletion"]
SIDE = 28


def towards_white(images: Tensor) -> Tensor:
    """The cosine of its embedding to (1, 0) rises with the brightness of each pixel."""
    light = images.mean((1, 2, 3))
    return torch.stack([light, torch.ones_like(light)], 1)


def small_frame() -> DeletionFrame:
    """A crop of 28 pixels, so that patches are 7, 4 and 2 wide."""
    image = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    asked = (Question(torch.tensor([[1.0, 0.0]])), Question(torch.tensor([[-1.0, 0.0]])))
    return DeletionFrame(image, (0, 0, SIDE, SIDE), questions=asked)


def test_drops_agree_with_one_patch_at_a_time() -> None:
    frame = small_frame()
    drops = patch_drops(frame, towards_white)
    plain = frame.image.mean((1, 2))
    whole = F.normalize(towards_white(frame.image[None]))[0, 0]
    for patches in GRIDS:
        for number, mask in enumerate(patch_masks(patches, SIDE, SIDE)):
            changed = frame.image.clone()
            for row, column in np.argwhere(mask):
                changed[:, row, column] = plain
            drop = float(whole - F.normalize(towards_white(changed[None]))[0, 0])
            assert drops[patches][0, number] == pytest.approx(drop, abs=1e-6)
            assert drops[patches][1, number] == pytest.approx(-drop, abs=1e-6)


def test_a_map_of_what_counts_is_right_for_each_reference_with_its_sign() -> None:
    frame = small_frame()
    brightness = (frame.image - frame.image.mean((1, 2), keepdim=True)).mean(0).numpy()
    right = DELETION.measure([brightness, -brightness], frame, towards_white)
    assert right["deletion_spearman"] == pytest.approx(1)
    assert right["srg"] > 0.05
    wrong = DELETION.measure([-brightness, brightness], frame, towards_white)
    assert wrong["deletion_spearman"] == pytest.approx(-1)
    assert wrong["srg"] == pytest.approx(-right["srg"], abs=1e-6)
    half = DELETION.measure([brightness, brightness], frame, towards_white)
    assert half["deletion_spearman_itself"] == pytest.approx(1)
    assert half["deletion_spearman_another"] == pytest.approx(-1)
    assert half["deletion_spearman"] == pytest.approx(0)


def test_figures_agree_with_scipy() -> None:
    frame = small_frame()
    maps = np.random.default_rng(1).normal(size=(2, SIDE, SIDE))
    drops = patch_drops(small_frame(), towards_white)
    expected = [
        spearmanr(patch_sums(one, n).ravel(), drops[n][which]).statistic
        for which, one in enumerate(maps)
        for n in GRIDS
    ]
    measured = DELETION.measure(list(maps), frame, towards_white)
    assert measured["deletion_spearman"] == pytest.approx(np.mean(expected))


def test_drops_are_computed_once_for_all_methods() -> None:
    frame, calls = small_frame(), []

    def embed(images: Tensor) -> Tensor:
        calls.append(len(images))
        return towards_white(images)

    level = np.ones(frame.size)
    DELETION.measure([level, level], frame, embed)
    first = sum(calls)
    assert first == 1 + sum(n * n for n in GRIDS)
    DELETION.measure([level, level], frame, embed)
    assert sum(calls) == first


def test_a_map_that_says_the_same_of_all_patches_scores_exactly_nothing() -> None:
    frame = small_frame()
    floors = DELETION.floors(frame, towards_white)
    uniform = floors["uniform_heatmap"]
    assert uniform["deletion_spearman"] == uniform["srg"] == 0
    assert uniform["empty"] is False
    empty = DELETION.measure([np.zeros(frame.size)] * 2, frame, towards_white)
    assert empty["empty"] is True
    assert empty["deletion_spearman"] == empty["srg"] == 0


def write(folder: Path, label: int, count: int) -> list[ImageRecord]:
    made = []
    for index in range(count):
        path = folder / f"{label}-{index}.png"
        Image.effect_noise((300, 260), 20 + 10 * index).convert("RGB").save(path)
        made.append(ImageRecord(path.name, path, label, "Thing", (0, 0, 300, 260)))
    return made


def test_an_image_is_compared_with_itself_and_another_of_its_class(tmp_path: Path) -> None:
    records = [*write(tmp_path, 1, 3), *write(tmp_path, 2, 2)]
    source = Source(records, embed=towards_white)
    items: list[Any] = list(DELETION.items(source))
    assert [item.key for item in items] == [record.key for record in records]
    again: list[Any] = list(DELETION.items(source))
    assert [item.other.key for item in again] == [item.other.key for item in items]
    for item in items:
        record, other = item.record, item.other
        assert (other.label, item.label) == (record.label, record.label)
        assert other.key != record.key
        frame = DELETION.frame(item)
        assert frame is not None
        shown = PROTOCOLS["attention"].show(load_rgb(other))
        own, another = (question.references for question in frame.questions)
        assert own is not None
        assert another is not None
        torch.testing.assert_close(own, F.normalize(towards_white(frame.image[None])))
        torch.testing.assert_close(another, F.normalize(towards_white(shown[None])))
    # Of some images only: the same others, drawn from all.
    some: list[Any] = list(DELETION.items(Source(records, limit=1, embed=towards_white)))
    (one,) = some
    (same,) = (item for item in items if item.key == one.key)
    assert one.other.key == same.other.key


def test_a_single_image_of_a_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only image of its class"):
        DELETION.items(Source(write(tmp_path, 1, 1), embed=towards_white))


def test_it_says_that_it_needs_the_network() -> None:
    with pytest.raises(InputError, match="give embed"):
        DELETION.measure([np.ones((SIDE, SIDE))] * 2, small_frame())
