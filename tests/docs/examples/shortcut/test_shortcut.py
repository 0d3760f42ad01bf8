import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.datasets import composition, embedded
from benchmarks.datasets.cut_outs import CLASSES
from benchmarks.datasets.records import DatasetError
from benchmarks.networks.build import load_checkpoint
from docs.examples.shortcut import __main__ as command
from docs.examples.shortcut import data as shortcut_data
from docs.examples.shortcut.__main__ import choose_queries
from docs.examples.shortcut.data import (
    SWAPS,
    Photographs,
    as_batch,
    load_photographs,
    split_held_out,
    swapped,
)
from docs.examples.shortcut.errors import AttributedErrors, attribute_errors
from docs.examples.shortcut.maps import MAPS, object_shares
from docs.examples.shortcut.network import (
    TailTraining,
    run_in_batches,
    starting_network,
    tail_of,
    train_tail,
    trunk_of,
)
from docs.examples.shortcut.summary import summarize_swaps

PLANTED = {1: "moon", 2: "stars"}
SIDE = 96


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """Small photographs of four classes, two of them trained on."""
    with pytest.MonkeyPatch.context() as patch:
        chosen = tuple(c for c in CLASSES if c.name in ("Coin", "Cup", "Retina", "Rocket"))
        patch.setattr(embedded, "CLASSES", chosen)
        patch.setattr(composition, "SIZES", ((125, 100), (100, 125)))
        patch.setattr(shortcut_data, "BACKGROUND_OF_CLASS", PLANTED)
        patch.setattr(command, "BACKGROUND_OF_CLASS", PLANTED)
        yield


@pytest.fixture(scope="module")
def run(small: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the whole command."""
    folder = tmp_path_factory.mktemp("shortcut") / "run"
    assert execute(folder) == 0
    return folder


def execute(folder: Path, **changes: str) -> int:
    options = {
        "output": str(folder),
        "images-per-class": "4",
        "image-side": str(SIDE),
        "steps": "2",
        "embedding-dim": "8",
        "num-neighbors": "3",
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return command.main(["--no-progress", *words])


def results_of(folder: Path) -> dict:
    return json.loads((folder / "shortcut.json").read_text())


def photographs(count: int = 8, side: int = 12, classes: int = 2) -> Photographs:
    """Objects of random pixels in random places."""
    rng = np.random.default_rng(0)
    masks = np.zeros((count, side, side), bool)
    for mask in masks:
        x, y = rng.integers(1, side - 5, 2)
        mask[y : y + 4, x : x + 3] = True
    return Photographs(
        tuple(f"00{i % classes + 1}.C/{i}.jpg" for i in range(count)),
        rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8),
        masks,
        tuple(i % classes + 1 for i in range(count)),
        tuple(("moon", "wood", "grass")[i % 3] for i in range(count)),
    )


def test_share_on_the_object_agrees_with_a_loop_and_chance_with_the_other_masks() -> None:
    rng = np.random.default_rng(1)
    maps = torch.from_numpy(rng.normal(size=(5, 1, 3, 4)))
    masks = rng.random((5, 9, 8)) < 0.4
    own, chance = object_shares(maps, masks)
    for i in range(5):
        heat = torch.nn.functional.interpolate(
            maps[i : i + 1].clamp(min=0), (9, 8), mode="bilinear"
        )
        shares = [float(heat[0, 0].numpy()[mask].sum() / heat.sum()) for mask in masks]
        assert own[i] == pytest.approx(shares[i])
        assert chance[i] == pytest.approx(np.mean([s for j, s in enumerate(shares) if j != i]))


def test_a_map_without_anything_positive_has_nothing_on_the_object() -> None:
    own, chance = object_shares(-torch.ones(2, 1, 2, 2), np.ones((2, 4, 4), bool))
    assert own.tolist() == chance.tolist() == [0, 0]


def test_the_backgrounds_share_is_one_where_it_alone_moves_the_embedding() -> None:
    original, moved = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    background = torch.stack([original, original, moved, original]).expand(6, 4, 2)
    both = torch.stack([original, original, moved, -original]).expand(6, 4, 2)
    summary = summarize_swaps({"background": background, "both": both})
    assert summary["background"]["share_of_the_background"] == (1.0, 1.0, 1.0)
    assert summary["background"]["other_background"][0] == 2.0
    assert summary["background"]["other_object"][0] == 0.0
    # Squared distances 2 and 4.
    assert summary["both"]["share_of_the_background"][0] == pytest.approx(1 / 3)


def test_a_quarter_of_each_class_is_held_out() -> None:
    photos = photographs(count=16)
    kept, held_out = split_held_out(photos)
    assert [kept.labels.count(label) for label in (1, 2)] == [6, 6]
    assert [held_out.labels.count(label) for label in (1, 2)] == [2, 2]
    assert set(kept.keys) | set(held_out.keys) == set(photos.keys)
    assert len(kept) + len(held_out) == 16
    index = photos.keys.index(held_out.keys[0])
    np.testing.assert_array_equal(held_out.pixels[0], photos.pixels[index])
    assert held_out.backgrounds[0] == photos.backgrounds[index]


def test_a_swap_exchanges_one_thing_and_keeps_the_other() -> None:
    photos = photographs()
    composites = list(swapped(photos, seed=3))
    assert len(composites) == len(photos)
    assert all(c.shape == (len(SWAPS), 12, 12, 3) and c.dtype == np.uint8 for c in composites)
    for index, (original, again, background, other_object) in enumerate(composites):
        mask = photos.masks[index]
        for composite in (original, again, background):
            np.testing.assert_array_equal(composite[mask], photos.pixels[index][mask])
        assert not np.array_equal(original[~mask], again[~mask])
        assert not np.array_equal(original[~mask], background[~mask])
        # Another class's object, and around both of them the very same scene.
        partners = [
            j
            for j in range(len(photos))
            if photos.labels[j] != photos.labels[index]
            and np.array_equal(other_object[photos.masks[j]], photos.pixels[j][photos.masks[j]])
        ]
        assert len(partners) == 1
        outside = ~mask & ~photos.masks[partners[0]]
        np.testing.assert_array_equal(other_object[outside], original[outside])
    again = list(swapped(photos, seed=3))
    assert all(np.array_equal(a, b) for a, b in zip(composites, again, strict=True))


def test_other_background_is_another_texture(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    crop = shortcut_data.TextureStore.crop

    def recorded(self, name, size, rng, scales=(0.8, 1.6)):
        asked.append(name)
        return crop(self, name, size, rng, scales)

    monkeypatch.setattr(shortcut_data.TextureStore, "crop", recorded)
    photos = photographs()
    list(swapped(photos, seed=0))
    for own, names in zip(photos.backgrounds, zip(*[iter(asked)] * 3, strict=True), strict=True):
        assert names[:2] == (own, own)
        assert names[2] != own


def test_queries_of_the_figure_are_errors_with_the_same_background_one_of_each_class() -> None:
    photos = photographs(count=12, classes=3)
    right = np.array([True] * 3 + [False] * 9)
    same = np.array([True] * 11 + [False])
    errors = AttributedErrors(np.arange(12), right, same, np.zeros(12))
    chosen = choose_queries({"shortcut": errors}, photos, 5, seed=0)
    assert len(set(chosen)) == 5
    assert all(not right[i] and same[i] for i in chosen)
    assert {photos.labels[i] for i in chosen[:3]} == {1, 2, 3}
    assert chosen == choose_queries({"shortcut": errors}, photos, 5, seed=0)
    assert len(choose_queries({"shortcut": errors}, photos, 99, seed=0)) == 8


def test_trunk_and_tail_are_the_network() -> None:
    network = starting_network(8, seed=0)
    pixels = photographs(count=3, side=SIDE).pixels
    with torch.no_grad():
        whole = network(as_batch(pixels))
    parts = run_in_batches(tail_of(network), run_in_batches(trunk_of(network), pixels))
    torch.testing.assert_close(parts, whole)


def test_training_lowers_the_loss_and_leaves_the_trunk_alone() -> None:
    network, start = starting_network(8, seed=0), starting_network(8, seed=0)
    pixels = photographs(side=SIDE).pixels
    pixels[::2, :, :, 0] = 255
    activations = run_in_batches(trunk_of(network), pixels)
    training = TailTraining(8, 0.5, 1e-4, 1e-3, seed=0)
    tail = tail_of(network)
    losses = train_tail(tail, activations, [1, 2] * 4, training)
    assert losses[-1] < 0.7 * losses[0]
    assert not tail.training
    assert not any(p.requires_grad for p in network.parameters())
    changed = [
        name
        for (name, after), before in zip(
            network.state_dict().items(), start.state_dict().values(), strict=True
        )
        if not torch.equal(after, before)
    ]
    assert "head.weight" in changed
    assert "features.blocks.11.project.0.conv.weight" in changed
    trained = tuple(f"features.blocks.{n}." for n in range(11, 16))
    assert all(name.startswith((*trained, "features.last.", "head.")) for name in changed)
    assert not any("running_" in name for name in changed)


def test_planted_photographs_have_the_background_of_their_class(run: Path) -> None:
    photos = load_photographs(run / "data" / "planted", SIDE, list(PLANTED), progress=False)
    assert len(photos) == 8
    assert all(PLANTED[k] == v for k, v in zip(photos.labels, photos.backgrounds, strict=True))
    others = load_photographs(run / "data" / "test", SIDE, progress=False)
    assert set(others.labels) == {1, 2, 3, 4}
    assert len(set(others.backgrounds)) > 2
    assert others.masks.any((1, 2)).all()


def test_a_set_of_an_older_version_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"images\.txt"):
        load_photographs(tmp_path, SIDE, progress=False)
    old = shutil.copytree(run / "data" / "test", tmp_path / "old")
    (old / "backgrounds.txt").unlink()
    with pytest.raises(DatasetError, match=r"backgrounds\.txt is missing.*remove"):
        load_photographs(old, SIDE, progress=False)


def test_the_command_writes_numbers_figure_and_checkpoints(run: Path) -> None:
    assert {path.name for path in run.iterdir()} == {
        "data", "fixed.safetensors", "planted.safetensors",
        "shortcut.json", "shortcut.md", "shortcut.png",
    }  # fmt: skip
    results = results_of(run)
    assert results["command"].startswith("python -m docs.examples.shortcut --output")
    assert results["data"]["photographs"] == {
        "planted": 6, "planted_held_out": 2, "fixed": 6, "fixed_held_out": 2, "test": 8,
        "unseen": 8,
    }  # fmt: skip
    assert results["data"]["classes"]["unseen"] == [3, 4]
    assert set(results["retrieval"]) == set(results["swaps"]) == {"start", "shortcut", "fixed"}
    assert set(results["maps"]) == set(MAPS)
    for figures in results["maps"].values():
        for model in ("shortcut", "fixed"):
            value, low, high = figures[model]["on_object"]
            assert 0 <= low <= value <= high <= 1
    assert len(results["losses"]["fixed"]) == 2


def test_checkpoints_are_the_networks_whose_recall_is_reported(run: Path) -> None:
    photos = load_photographs(run / "data" / "test", SIDE, list(PLANTED), progress=False)
    for model, name in (("shortcut", "planted"), ("fixed", "fixed")):
        network = load_checkpoint(run / f"{name}.safetensors")
        with torch.no_grad():
            errors = attribute_errors(
                network(as_batch(photos.pixels)), photos.labels, photos.backgrounds
            )
        recall = results_of(run)["retrieval"][model]["test"]["recall_at_1"][0]
        assert errors.right_class.mean() == recall


def test_the_same_seed_gives_the_same_numbers(run: Path) -> None:
    before, written = results_of(run), (run / "data" / "test" / "embedded.json").stat().st_mtime_ns
    assert execute(run) == 0
    after = results_of(run)
    del before["seconds"], after["seconds"]
    assert after == before
    assert (run / "data" / "test" / "embedded.json").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images_per_class": "3"}, "--images-per-class is 3; expected 4"),
        ({"image_side": "32"}, "--image-side is 32; expected 64"),
        ({"margin": "0"}, "--margin is 0.0"),
        ({"seed": "-1"}, "--seed is -1"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, str], message: str
) -> None:
    assert execute(tmp_path / "run", **change) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
