from pathlib import Path

import pytest
from PIL import Image

from benchmarks.datasets.load import KINDS, LAYOUTS, load_dataset
from benchmarks.datasets.records import DatasetError
from captum_embed.errors import InputError


def write_csv_set(root: Path) -> None:
    Image.new("RGB", (8, 6)).save(root / "1.png")
    (root / "boxes.csv").write_text("image,label,x,y,width,height\n1.png,cat,0,0,2,2\n")


def write_cub_set(root: Path) -> None:
    (root / "images" / "1.Cat").mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(root / "images" / "1.Cat" / "1.jpg")
    for name, line in (
        ("images", "1 1.Cat/1.jpg"),
        ("image_class_labels", "1 1"),
        ("classes", "1 1.Cat"),
        ("bounding_boxes", "1 0 0 2 2"),
    ):
        (root / f"{name}.txt").write_text(f"{line}\n")


def test_layout_is_recognised(tmp_path: Path) -> None:
    write_csv_set(tmp_path)
    assert load_dataset(tmp_path).records[0].key == "1.png"
    assert load_dataset(tmp_path / "boxes.csv").records[0].key == "1.png"
    write_cub_set(tmp_path)
    assert load_dataset(tmp_path).records[0].key == "1.Cat/1.jpg"


def test_layout_can_be_told(tmp_path: Path) -> None:
    write_csv_set(tmp_path)
    write_cub_set(tmp_path)
    assert load_dataset(tmp_path, kind="csv").records[0].key == "1.png"
    with pytest.raises(DatasetError, match="not Oxford-IIIT Pet"):
        load_dataset(tmp_path, kind="pets")


def test_unknown_layout_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as error:
        load_dataset(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert set(KINDS) == {"auto", *LAYOUTS}
    for name, layout in LAYOUTS.items():
        assert f"{name}: {layout.sign}" in str(error.value)


def test_unknown_kind_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"kind must be one of auto, cub, .*got 'coco'"):
        load_dataset(tmp_path, kind="coco")
    with pytest.raises(DatasetError, match="nowhere: no such folder"):
        load_dataset(tmp_path / "nowhere")


def test_recognised_layout_with_a_file_missing_is_an_error_of_that_layout(tmp_path: Path) -> None:
    write_cub_set(tmp_path)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(DatasetError, match=r"CUB layout, classes\.txt is missing"):
        load_dataset(tmp_path)


def test_real_data_sets_are_recognised(shared_root: Path) -> None:
    if not (shared_root / "pets").is_dir():
        pytest.skip(f"no real data: {shared_root / 'pets'} is absent")
    for name in ("cub", "pets"):
        assert [n for n, layout in LAYOUTS.items() if layout.is_here(shared_root / name)] == [name]


@pytest.mark.parametrize(
    ("names", "example"),
    [
        (["2.jpg", "10.jpg"], "2.jpg,sparrow,0,0,12,9"),
        (["jay/a, b.png", "wren/1.png"], '"jay/a, b.png",jay,0,0,12,9'),
        (["a\nb.png"], '"a\\nb.png",sparrow,0,0,12,9'),
    ],
)
def test_a_plain_folder_of_photographs_is_told_what_to_add(
    tmp_path: Path, names: list[str], example: str
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (12, 9)).save(tmp_path / name)
    with pytest.raises(DatasetError, match=f"There are {len(names)} images without") as error:
        load_dataset(tmp_path)
    message = str(error.value)
    header = "image,label,x,y,width,height"
    assert f"the line {header}, and one such as {example} for each" in message
    assert "captum-embed explain" in message
    assert message.isprintable()
    if names[0].isprintable():
        (tmp_path / "boxes.csv").write_text(f"{header}\n{example}\n")
        (record,) = load_dataset(tmp_path).records
        assert (record.key, record.box) == (names[0], (0, 0, 12, 9))


def test_images_that_cannot_be_read_and_no_images_are_answered_too(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as error:
        load_dataset(tmp_path)
    assert "images without boxes" not in str(error.value)
    (tmp_path / "1.jpg").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"1\.jpg,sparrow,0,0,640,480"):
        load_dataset(tmp_path)
