from pathlib import Path

import pytest
from PIL import Image

from benchmarks.datasets import DatasetError, load_dataset
from captum_embed.errors import InputError

CSV = "image,label,x,y,width,height\na.png,ant,0,0,4,4\n"


def make_csv(root: Path) -> None:
    root.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4)).save(root / "a.png")
    (root / "boxes.csv").write_text(CSV)


def make_cub(root: Path) -> None:
    (root / "images").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(root / "images" / "b.png")
    for name, line in {
        "images": "1 b.png",
        "image_class_labels": "1 3",
        "classes": "3 Bee",
        "bounding_boxes": "1 0 0 4 4",
    }.items():
        (root / f"{name}.txt").write_text(line + "\n")


def test_kind_is_told_from_the_files(tmp_path: Path) -> None:
    make_csv(tmp_path / "folder")
    make_cub(tmp_path / "birds")
    assert load_dataset(tmp_path / "folder").class_names == {1: "ant"}
    assert load_dataset(tmp_path / "folder" / "boxes.csv").class_names == {1: "ant"}
    assert load_dataset(tmp_path / "birds").class_names == {3: "Bee"}


def test_named_layout_goes_before_a_table_and_kind_decides(tmp_path: Path) -> None:
    make_cub(tmp_path)
    make_csv(tmp_path)
    assert load_dataset(tmp_path).class_names == {3: "Bee"}
    assert load_dataset(tmp_path, "csv").class_names == {1: "ant"}


def test_unknown_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"images\.txt.*trimaps.*cars_train.*boxes\.csv"):
        load_dataset(tmp_path)
    with pytest.raises(DatasetError, match="no such folder"):
        load_dataset(tmp_path / "nowhere")
    with pytest.raises(InputError, match="must be one of auto, cub, pets, cars, csv, got 'bird'"):
        load_dataset(tmp_path, "bird")


def test_real_folders_are_told_apart(shared_root: Path) -> None:
    if not (shared_root / "pets").is_dir():
        pytest.skip(f"no real data: {shared_root / 'pets'} is absent")
    assert load_dataset(shared_root / "cub").name == "CUB_200_2011"
    assert load_dataset(shared_root / "pets").class_sizes == {1: 38, 2: 40, 6: 40}
