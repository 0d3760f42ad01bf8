from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import StanfordCars

from benchmarks.datasets import BoxError, DatasetError, load_stanford_cars, official_split

NAMES = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]
Entry = tuple[int, int, int, int, int, str]


def write_annotations(path: Path, entries: list[Entry]) -> None:
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
    table = np.zeros((1, len(entries)), dtype=[(field, object) for field in fields])
    for index, entry in enumerate(entries):
        for field, value in zip(fields, entry, strict=True):
            table[0, index][field] = value
    savemat(path, {"annotations": table})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "stanford_cars"
    for folder in ("devkit", "cars_train", "cars_test"):
        (root / folder).mkdir(parents=True)
    class_names = np.array(NAMES, dtype=object).reshape(1, -1)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": class_names})
    write_annotations(
        root / "devkit" / "cars_train_annos.mat",
        [(1, 1, 8, 6, 1, "00001.jpg"), (3, 2, 5, 4, 2, "00002.jpg"), (1, 1, 2, 2, 2, "00003.jpg")],
    )
    write_annotations(root / "cars_test_annos_withlabels.mat", [(2, 2, 4, 4, 2, "00001.jpg")])
    for name in ("cars_train/00001.jpg", "cars_train/00002.jpg", "cars_test/00001.jpg"):
        Image.new("RGB", (8, 6)).save(root / name)
    return root


def test_reads_both_halves_with_boxes_counted_from_one(root: Path) -> None:
    cars = load_stanford_cars(root.parent)
    assert [record.key for record in cars.records] == [
        "cars_train/00001.jpg",
        "cars_train/00002.jpg",
        "cars_test/00001.jpg",
    ]
    assert cars.records[0].box == (0.0, 0.0, 8.0, 6.0)
    assert cars.records[1].box == (2.0, 1.0, 5.0, 4.0)
    assert cars.class_names == {1: NAMES[0], 2: NAMES[1]}
    assert (cars.num_absent, cars.select([1]).num_absent) == (1, 0)
    train, test = official_split(cars)
    assert (len(train), len(test)) == (2, 1)


def test_agrees_with_torchvision(root: Path) -> None:
    theirs = StanfordCars(root.parent, split="train")
    train, _ = official_split(load_stanford_cars(root))
    assert [record.label - 1 for record in train.records] == [
        label for path, label in theirs._samples if Path(path).exists()
    ]
    assert theirs.classes == NAMES


def test_test_images_are_optional(root: Path) -> None:
    (root / "cars_test_annos_withlabels.mat").unlink()
    assert len(load_stanford_cars(root)) == 2
    for path in (root / "cars_train").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match="none of the 3 listed images is there"):
        load_stanford_cars(root)


def test_other_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"expected devkit/cars_meta\.mat"):
        load_stanford_cars(tmp_path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ((1, 1, 8, 6, 3, "00001.jpg"), r"cars_meta\.mat: no name for class 3 of 00001\.jpg"),
        (
            (1, 1, 8, 6, 1, "../00001.jpg"),
            r"train_annos\.mat, annotation 1: '../00001\.jpg' is not a file name below",
        ),
    ],
)
def test_bad_entry_is_named(root: Path, entry: Entry, message: str) -> None:
    write_annotations(root / "devkit" / "cars_train_annos.mat", [entry])
    with pytest.raises(DatasetError, match=message):
        load_stanford_cars(root)


def test_box_without_area_is_refused(root: Path) -> None:
    write_annotations(root / "devkit" / "cars_train_annos.mat", [(5, 1, 4, 6, 1, "00001.jpg")])
    with pytest.raises(BoxError, match=r"cars_train_annos\.mat.*00001\.jpg"):
        load_stanford_cars(root)


@pytest.mark.parametrize("content", [b"", b"not MATLAB", b"MATLAB 5.0 MAT-file" + bytes(200)])
def test_broken_file_is_named(root: Path, content: bytes) -> None:
    (root / "devkit" / "cars_train_annos.mat").write_bytes(content)
    with pytest.raises(DatasetError, match=r"cars_train_annos\.mat"):
        load_stanford_cars(root)


def test_missing_fields_are_named(root: Path) -> None:
    savemat(root / "devkit" / "cars_train_annos.mat", {"annotations": np.zeros(3)})
    with pytest.raises(DatasetError, match="the annotations have no fname, class, bbox_x1"):
        load_stanford_cars(root)
    savemat(root / "devkit" / "cars_train_annos.mat", {"other": np.zeros(3)})
    with pytest.raises(DatasetError, match="there is no variable 'annotations'"):
        load_stanford_cars(root)
