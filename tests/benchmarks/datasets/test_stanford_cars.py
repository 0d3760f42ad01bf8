from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import StanfordCars

from benchmarks.datasets.records import BoxError, DatasetError
from benchmarks.datasets.stanford_cars import is_stanford_cars_root, load_stanford_cars

FIELDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
Row = tuple[float, float, float, float, float, str]
TRAIN: list[Row] = [(2, 1, 7, 5, 2, "00001.jpg"), (1, 1, 8, 6, 1, "00002.jpg")]
TEST: list[Row] = [(3, 2, 3, 2, 2, "00001.jpg")]


def write_annotations(path: Path, rows: list[Row]) -> None:
    table = np.array(rows, dtype=[(name, object) for name in FIELDS])
    savemat(path, {"annotations": table[None]})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    base = tmp_path / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    names = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012"], dtype=object)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": names[None]})
    write_annotations(base / "devkit" / "cars_train_annos.mat", TRAIN)
    write_annotations(base / "cars_test_annos_withlabels.mat", TEST)
    for folder, rows in (("cars_train", TRAIN), ("cars_test", TEST)):
        (base / folder).mkdir()
        for row in rows:
            Image.new("RGB", (8, 6)).save(base / folder / row[-1])
    return tmp_path


@pytest.fixture
def train_list(root: Path) -> Path:
    return root / "stanford_cars" / "devkit" / "cars_train_annos.mat"


def test_reads_both_lists(root: Path) -> None:
    images = load_stanford_cars(root)
    assert [r.key for r in images.records] == [
        "cars_train/00001.jpg",
        "cars_train/00002.jpg",
        "cars_test/00001.jpg",
    ]
    assert [r.is_training for r in images.records] == [True, True, False]
    assert images.class_names == {1: "AM General Hummer SUV 2000", 2: "Acura RL Sedan 2012"}
    assert len(load_stanford_cars(root / "stanford_cars")) == 3


def test_boxes_are_zero_based_with_open_end(root: Path) -> None:
    boxes = [record.box for record in load_stanford_cars(root).records]
    assert boxes == [(1, 0, 7, 5), (0, 0, 8, 6), (2, 1, 3, 2)]


def test_same_images_and_classes_as_torchvisions(root: Path) -> None:
    theirs = StanfordCars(root, split="train")
    ours = [record for record in load_stanford_cars(root).records if record.is_training]
    assert [(str(r.path), r.label - 1) for r in ours] == theirs._samples
    assert [r.class_name for r in ours] == [theirs.classes[label] for _, label in theirs._samples]


def test_absent_images_are_counted(root: Path) -> None:
    (root / "stanford_cars" / "cars_train" / "00001.jpg").unlink()
    images = load_stanford_cars(root)
    assert (len(images), images.num_absent) == (2, 1)
    assert images.select([2]).num_absent == 1
    assert images.select([1]).num_absent == 0


def test_no_image_there_at_all_is_an_error(root: Path) -> None:
    for path in (root / "stanford_cars").glob("cars_*/*.jpg"):
        path.unlink()
    with pytest.raises(DatasetError, match="none of the 3 listed images"):
        load_stanford_cars(root)


def test_test_list_may_be_missing(root: Path) -> None:
    (root / "stanford_cars" / "cars_test_annos_withlabels.mat").unlink()
    assert len(load_stanford_cars(root)) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((2, 1, 7, 5, 3, "00002.jpg"), "cars_meta.mat: no name for class 3 of 00002.jpg"),
        ((2, 1, 7, 5, 2, "00001.jpg"), "annotation 2: 00001.jpg is listed twice"),
        ((2, 1, 7, 5, 2, "../cars_test/00001.jpg"), "annotation 2: .* is not a file name below"),
        ((2, 1, 7, 5, 1.5, "00002.jpg"), "annotation 2: expected a whole number, got 1.5"),
        ((2, 1, np.nan, 5, 1, "00002.jpg"), "annotation 2: expected a whole number, got nan"),
    ],
)
def test_malformed_annotation_is_named(
    root: Path, train_list: Path, row: Row, message: str
) -> None:
    write_annotations(train_list, [TRAIN[0], row])
    with pytest.raises(DatasetError, match=message):
        load_stanford_cars(root)


def test_box_without_area_is_refused(root: Path, train_list: Path) -> None:
    write_annotations(train_list, [(7, 1, 6, 5, 2, "00001.jpg")])
    with pytest.raises(BoxError, match=r"00001.jpg: width and height must be positive"):
        load_stanford_cars(root)


@pytest.mark.parametrize("content", [b"", b"not MATLAB", b"MATLAB 5.0 MAT-file" + bytes(200)])
def test_broken_matlab_file_is_named(root: Path, train_list: Path, content: bytes) -> None:
    train_list.write_bytes(content)
    with pytest.raises(DatasetError, match=r"cars_train_annos.mat: (can't be read|there is no)"):
        load_stanford_cars(root)


def test_truncated_matlab_file_is_named(root: Path, train_list: Path) -> None:
    train_list.write_bytes(train_list.read_bytes()[:300])
    with pytest.raises(DatasetError, match=r"cars_train_annos.mat: "):
        load_stanford_cars(root)


def test_matlab_file_with_something_else_is_named(root: Path, train_list: Path) -> None:
    savemat(train_list, {"other": 1})
    with pytest.raises(DatasetError, match="no variable 'annotations'"):
        load_stanford_cars(root)
    savemat(train_list, {"annotations": np.zeros(3)})
    with pytest.raises(DatasetError, match="annotations have no fname, class, bbox_x1"):
        load_stanford_cars(root)


def test_other_folder_is_refused(root: Path, train_list: Path) -> None:
    assert is_stanford_cars_root(root)
    train_list.unlink()
    assert not is_stanford_cars_root(root)
    with pytest.raises(DatasetError, match=r"not Stanford Cars.*cars_train_annos.mat"):
        load_stanford_cars(root)
