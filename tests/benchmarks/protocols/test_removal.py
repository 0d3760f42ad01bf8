from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from benchmarks.datasets.records import ImageRecord
from benchmarks.metrics.removal import SHARES, removal_masks
from benchmarks.protocols import removal as faithfulness
from benchmarks.protocols.protocol import Frame
from benchmarks.protocols.registry import DEFAULT_PROTOCOLS, PROTOCOLS
from benchmarks.protocols.removal import blurred, similarity_curves
from captum_embed.errors import InputError


def first_two_pixels(images: torch.Tensor) -> torch.Tensor:
    """A network that sees the first channel of the first row."""
    return images[:, 0, 0, :2]


def test_blur_agrees_with_scipy() -> None:
    image = torch.randn(3, 80, 70, generator=torch.Generator().manual_seed(0))
    expected = [gaussian_filter(c, 10.0, mode="mirror", truncate=3.0) for c in image.numpy()]
    np.testing.assert_allclose(blurred(image), expected, atol=1e-5)


def test_curves_by_hand_on_two_by_two_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    # Blurring swaps the two pixels that the network sees: (1, 0) becomes (0, 1).
    image = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]).expand(3, 2, 2)
    monkeypatch.setattr(faithfulness, "blurred", lambda image: image.flip(2))
    heatmap = np.array([[4.0, 3.0], [2.0, 1.0]])
    deletion, insertion = similarity_curves(image, heatmap, first_two_pixels)
    # round(share * 4) of the pixels, in reading order: 0 0 1 1 2 2 2 3 3 4 4. With the first
    # pixel gone the embedding is (0, 0), at cosine 0; with both (0, 1), at cosine 0 as well.
    assert deletion == [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    # The first pixel back on its own: (1, 1) against (1, 0).
    half = 0.5**0.5
    assert insertion == pytest.approx([0, 0, half, half, 1, 1, 1, 1, 1, 1, 1])
    measures = PROTOCOLS["faithfulness"].measure(
        [heatmap], Frame(image, (0, 0, 2, 2)), first_two_pixels
    )
    assert measures["deletion"] == pytest.approx(0.15)
    assert measures["insertion"] == pytest.approx((2 * half + 6.5) / 10)
    assert measures["empty"] is False


def test_curves_agree_with_one_image_at_a_time() -> None:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(3, 40, 36, generator=generator)
    weights = torch.randn(3 * 40 * 36, 5, generator=generator)
    heatmap = np.random.default_rng(2).random((40, 36))
    deletion, insertion = similarity_curves(image, heatmap, lambda x: x.flatten(1) @ weights)
    plain, whole = blurred(image), image.flatten() @ weights
    for share, mask, deleted, inserted in zip(
        SHARES, removal_masks(heatmap), deletion, insertion, strict=True
    ):
        changed, kept = image.clone(), plain.clone()
        for row, column in np.argwhere(mask):
            changed[:, row, column] = plain[:, row, column]
            kept[:, row, column] = image[:, row, column]
        for one, actual in ((changed, deleted), (kept, inserted)):
            expected = torch.cosine_similarity(one.flatten() @ weights, whole, dim=0)
            assert actual == pytest.approx(float(expected), abs=1e-4), share


def test_a_map_of_what_the_network_sees_beats_its_opposite_and_chance() -> None:
    image = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(3))
    seen = np.zeros((64, 64))
    seen[10:30, 20:40] = 1
    protocol = PROTOCOLS["faithfulness"]
    frame = Frame(image, (0, 0, 64, 64))

    def see(images: torch.Tensor) -> torch.Tensor:
        return images[:, :, 10:30, 20:40].flatten(1)

    good, bad = (protocol.measure([heatmap], frame, see) for heatmap in (seen, 1 - seen))
    chance = protocol.floors(frame, see)["uniform_heatmap"]
    assert good["deletion"] < chance["deletion"] < bad["deletion"]
    assert good["insertion"] > chance["insertion"] > bad["insertion"]


def test_it_is_optional_and_shows_the_attention_crops(tmp_path: Path) -> None:
    assert "faithfulness" not in DEFAULT_PROTOCOLS
    Image.effect_noise((300, 260), 50).convert("RGB").save(tmp_path / "a.png")
    record = ImageRecord("a.png", tmp_path / "a.png", 1, "Thing", (20, 20, 250, 250))
    frames = [PROTOCOLS[name].frame(record) for name in ("faithfulness", "attention")]
    assert frames[0] is not None
    assert frames[1] is not None
    assert torch.equal(frames[0].image, frames[1].image)
    assert PROTOCOLS["faithfulness"].shows == PROTOCOLS["attention"].shows


def test_it_says_that_it_needs_the_network() -> None:
    with pytest.raises(InputError, match="give embed"):
        PROTOCOLS["faithfulness"].measure(
            [np.ones((2, 2))], Frame(torch.ones(3, 2, 2), (0, 0, 1, 1))
        )
