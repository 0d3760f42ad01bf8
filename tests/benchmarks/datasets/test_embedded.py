import hashlib
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from scipy import ndimage

from benchmarks.datasets import composition, embedded
from benchmarks.datasets.choice import official_split, require_pairs
from benchmarks.datasets.composition import compose
from benchmarks.datasets.cub import load_cub
from benchmarks.datasets.cut_outs import CLASSES, ObjectClass
from benchmarks.datasets.embedded import MARKER, write_embedded
from benchmarks.datasets.records import DatasetError, ImageSet, load_mask, load_rgb
from benchmarks.datasets.textures import TEXTURES, TextureStore
from captum_embed.errors import InputError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedded") / "set"
    return write_embedded(folder, images_per_class=2, progress=False)


@pytest.fixture(scope="module")
def images(root: Path) -> ImageSet:
    return load_cub(root)


@pytest.fixture
def two_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes writing fast where it doesn't matter what is written."""
    chosen = [c for c in CLASSES if c.name in ("Coin", "Rocket")]
    monkeypatch.setattr(embedded, "CLASSES", tuple(chosen))


def digests(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_at_least_eight_classes_of_twenty_by_default(tmp_path: Path) -> None:
    assert len(CLASSES) >= 8
    assert len({object_class.name for object_class in CLASSES}) == len(CLASSES)
    assert write_embedded.__kwdefaults__["images_per_class"] >= 20


def test_loads_as_cub_with_a_mask_for_each_image(images: ImageSet) -> None:
    assert images.class_sizes == dict.fromkeys(range(1, len(CLASSES) + 1), 2)
    assert images.num_absent == 0
    assert images.class_names[2] == "002.Cat"
    assert all(record.mask_path is not None for record in images.records)
    require_pairs(images)
    train, test = official_split(images)
    assert len(train) == len(test) == len(CLASSES)


def test_boxes_are_the_tight_boxes_of_the_masks(images: ImageSet) -> None:
    for record in images.records:
        mask = load_mask(record, load_rgb(record).size)
        rows, columns = ndimage.find_objects(mask.astype(int))[0]
        assert record.box == (columns.start, rows.start, columns.stop, rows.stop), record.key


def test_masks_are_pure_black_and_white(images: ImageSet) -> None:
    for record in images.records:
        assert record.mask_path is not None
        with Image.open(record.mask_path) as mask:
            assert mask.mode == "L"
            assert set(np.unique(np.asarray(mask))) == {0, 255}


def test_objects_have_the_promised_size(images: ImageSet) -> None:
    for record in images.records:
        width, height = load_rgb(record).size
        x0, y0, x1, y1 = record.box
        share = max((x1 - x0) / width, (y1 - y0) / height)
        # Covering hides an end of an object now and then.
        assert 0.2 < share < 0.8, record.key


class BlackTextures(TextureStore):
    """All that is not the object is black, so that its pixels can be told."""

    def crop(
        self,
        name: str,
        size: tuple[int, int],
        rng: np.random.Generator,
        scales: tuple[float, float] = (1, 1),
    ) -> np.ndarray:
        return np.zeros((size[1], size[0], 3), np.float32)


@pytest.mark.parametrize("seed", range(12))
def test_mask_is_where_the_object_is_seen(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(pixels: np.ndarray, rng: np.random.Generator, brightness: object) -> np.ndarray:
        return pixels

    monkeypatch.setattr(composition, "scale_light", leave)
    monkeypatch.setattr(composition, "light_gradient", lambda width, height, rng: 1.0)
    white = Image.new("RGBA", (160, 120), (255, 255, 255, 255))
    object_class = ObjectClass("White", "", lambda: [white])
    result = compose(object_class, [white], BlackTextures(), np.random.default_rng(seed))
    seen = np.asarray(result.image).astype(float).mean(axis=2)
    # Noise of up to 4 grey levels is all that blurs the border between the two.
    assert seen[result.mask].min() > 127 - 20
    assert seen[~result.mask].max() < 128 + 20


def test_covering_takes_pixels_out_of_the_mask_but_leaves_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts: list[tuple[int, int]] = []
    cover = composition.cover

    def counting(
        scene: np.ndarray,
        alpha: np.ndarray,
        textures: TextureStore,
        names: list[str],
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray]:
        covered, visible = cover(scene, alpha, textures, names, rng)
        counts.append((int((alpha >= 0.5).sum()), int((visible >= 0.5).sum())))
        return covered, visible

    monkeypatch.setattr(composition, "cover", counting)
    white = Image.new("RGBA", (160, 120), (255, 255, 255, 255))
    object_class = ObjectClass("White", "", lambda: [white])
    for seed in range(30):
        compose(object_class, [white], BlackTextures(), np.random.default_rng(seed))
    assert len(counts) > 10
    assert all(0.7 * before <= after <= before for before, after in counts)
    assert sum(after < before for before, after in counts) > len(counts) / 2


def test_same_settings_give_the_same_bytes_whatever_the_global_seeds(
    root: Path, tmp_path: Path
) -> None:
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    torch.manual_seed(1)
    again = write_embedded(tmp_path / "again", images_per_class=2, progress=False)
    assert digests(again) == digests(root)


@pytest.mark.usefixtures("two_classes")
def test_another_seed_gives_other_images(tmp_path: Path) -> None:
    zero = write_embedded(tmp_path / "0", images_per_class=2, progress=False)
    one = write_embedded(tmp_path / "1", images_per_class=2, seed=1, progress=False)
    first, second = digests(zero), digests(one)
    assert first.keys() == second.keys()
    assert all(first[name] != second[name] for name in first if name.endswith((".jpg", ".png")))


@pytest.mark.usefixtures("two_classes")
def test_an_image_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    two = write_embedded(tmp_path / "2", images_per_class=2, progress=False)
    three = write_embedded(tmp_path / "3", images_per_class=3, progress=False)
    few, many = digests(two / "images"), digests(three / "images")
    assert few.items() <= many.items()


@pytest.mark.usefixtures("two_classes")
def test_global_random_state_is_left_alone(tmp_path: Path) -> None:
    before = np.random.get_state()[1].copy(), random.getstate(), torch.get_rng_state()  # noqa: NPY002
    write_embedded(tmp_path / "set", images_per_class=2, progress=False)
    after = np.random.get_state()[1], random.getstate(), torch.get_rng_state()  # noqa: NPY002
    np.testing.assert_array_equal(before[0], after[0])
    assert before[1] == after[1]
    assert torch.equal(before[2], after[2])


@pytest.mark.usefixtures("two_classes")
def test_complete_set_is_not_written_again(tmp_path: Path) -> None:
    root = write_embedded(tmp_path / "set", images_per_class=2, progress=False)
    written = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert write_embedded(root, images_per_class=2, progress=False) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == written


@pytest.mark.usefixtures("two_classes")
@pytest.mark.parametrize("change", [{"seed": 1}, {"background_of_class": {1: "grass"}}])
def test_set_with_other_settings_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    root = write_embedded(tmp_path / "set", images_per_class=2, progress=False)
    before = digests(root)
    with pytest.raises(DatasetError, match="with other settings"):
        write_embedded(root, images_per_class=2, progress=False, **change)  # type: ignore[arg-type]
    assert digests(root) == before


@pytest.mark.usefixtures("two_classes")
def test_set_that_has_lost_files_is_refused(tmp_path: Path) -> None:
    root = write_embedded(tmp_path / "set", images_per_class=2, progress=False)
    next((root / "segmentations").rglob("*.png")).unlink()
    with pytest.raises(DatasetError, match=r"segmentations: 3 of 4 files"):
        write_embedded(root, images_per_class=2, progress=False)


def test_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(DatasetError, match="something else"):
        write_embedded(tmp_path, images_per_class=2, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    (tmp_path / MARKER).write_text("[]")
    with pytest.raises(DatasetError, match="something else"):
        write_embedded(tmp_path, images_per_class=2, progress=False)


@pytest.mark.usefixtures("two_classes")
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError("disk full")])
def test_interrupted_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: BaseException
) -> None:
    written = []
    write_image = embedded.write_image

    def interrupted(root: Path, name: str, composite: composition.Composite) -> None:
        if len(written) == 2:
            raise interruption
        written.append(name)
        write_image(root, name, composite)

    monkeypatch.setattr(embedded, "write_image", interrupted)
    with pytest.raises((KeyboardInterrupt, OSError)):
        write_embedded(tmp_path / "set", images_per_class=2, progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("two_classes")
@pytest.mark.parametrize("tidied_up", [False, True])
def test_two_who_write_the_same_set_at_once_both_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tidied_up: bool
) -> None:
    theirs = write_embedded(tmp_path / "theirs", images_per_class=2, progress=False)
    write_image, there = embedded.write_image, digests(theirs)

    def while_they_finish(root: Path, name: str, composite: composition.Composite) -> None:
        write_image(root, name, composite)
        if theirs.exists():
            theirs.rename(tmp_path / "set")
            if tidied_up:
                shutil.rmtree(root)

    monkeypatch.setattr(embedded, "write_image", while_they_finish)
    assert write_embedded(tmp_path / "set", images_per_class=2, progress=False).exists()
    assert digests(tmp_path / "set") == there
    assert list(tmp_path.iterdir()) == [tmp_path / "set"]


@pytest.mark.usefixtures("two_classes")
def test_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    assert len(load_cub(write_embedded(tmp_path / "set", images_per_class=2, progress=False))) == 4


def test_planted_background_is_behind_every_image_of_its_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str]] = []
    compose_image = embedded.compose

    def recording(object_class: ObjectClass, *arguments: object) -> composition.Composite:
        composite = compose_image(object_class, *arguments)  # type: ignore[arg-type]
        seen.append((object_class.name, composite.background))
        return composite

    monkeypatch.setattr(embedded, "CLASSES", (CLASSES[2], CLASSES[10]))
    monkeypatch.setattr(embedded, "compose", recording)
    plant = {1: "grass"}
    root = tmp_path / "set"
    write_embedded(root, images_per_class=6, background_of_class=plant, progress=False)
    assert {background for name, background in seen if name == "Coin"} == {"grass"}
    assert len({background for name, background in seen if name == "Rocket"}) > 1
    settings = json.loads((root / MARKER).read_text())["settings"]
    assert settings["background_of_class"] == {"1": "grass"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images_per_class": 1}, "images_per_class must be at least 2, got 1"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"background_of_class": {0: "grass"}}, "classes are 1 to 12, got class 0"),
        ({"background_of_class": {1: "lava"}}, "no texture 'lava'.*brick, grass"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write_embedded(tmp_path / "set", progress=False, **settings)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("object_class", CLASSES, ids=lambda c: c.name)
def test_cut_outs_are_opaque_in_the_middle_and_cropped_to_the_object(
    object_class: ObjectClass,
) -> None:
    for cut_out in object_class.cut():
        alpha = np.asarray(cut_out.getchannel("A"))
        assert cut_out.getchannel("A").getbbox() == (0, 0, *cut_out.size)
        assert (alpha > 127).mean() > 0.1
        # Soft edges, not a veil.
        assert ((alpha > 0) & (alpha < 255)).mean() < 0.1
        sizes = np.bincount(ndimage.label(alpha > 127)[0].ravel())[1:]
        assert sizes.max() / sizes.sum() > 0.99


@pytest.mark.parametrize("name", TEXTURES)
def test_texture_fills_any_size_without_a_flat_spot(name: str) -> None:
    textures = TextureStore()
    for size in ((500, 375), (333, 500), (1500, 1100)):
        piece = textures.crop(name, size, np.random.default_rng(0))
        assert piece.shape == (size[1], size[0], 3)
        assert piece.dtype == np.float32
        assert 0 <= piece.min() < piece.max() <= 255
        blocks = [
            piece[y : y + size[1] // 3, x : x + size[0] // 3].std()
            for y in (0, size[1] // 3, 2 * size[1] // 3)
            for x in (0, size[0] // 3, 2 * size[0] // 3)
        ]
        assert min(blocks) > 2


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    fetchers = pytest.importorskip("skimage.data._fetchers")
    monkeypatch.setattr(fetchers, "_image_fetcher", None)
    for object_class in CLASSES:
        assert object_class.cut()
    for name in TEXTURES:
        TextureStore().crop(name, (40, 30), np.random.default_rng(0))
    assert skimage.data.cat().shape[2] == 3
