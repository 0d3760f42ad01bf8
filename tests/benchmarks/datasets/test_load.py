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
    assert load_dataset(shared_root / "cub").name == "CUB_200_2011"
    assert load_dataset(shared_root / "pets").class_names[6] == "Bengal"
