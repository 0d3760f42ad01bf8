import os
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.datasets import (
    BoxError,
    DatasetError,
    load_cub,
    load_mask,
    load_rgb,
    official_split,
    require_pairs,
    zero_shot_split,
)

FILES = {
    "images.txt": "1 001.Cat/a.jpg\n2 001.Cat/b.jpg\n3 002.Dog/c.jpg\n4 002.Dog/d.jpg\n",
    "image_class_labels.txt": "1 1\n2 1\n3 2\n4 2\n",
    "classes.txt": "1 001.Cat\n2 002.Dog\n",
    "bounding_boxes.txt": "1 0 0 8 6\n2 1.5 2.0 3.0 2.5\n3 -2 1 6 4\n4 2 2 4 4\n",
    "train_test_split.txt": "1 1\n2 0\n3 1\n4 0\n",
}
NAMES = ("001.Cat/a", "001.Cat/b", "002.Dog/c", "002.Dog/d")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "birds"
    for name in NAMES:
        path = root / "images" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (200, 10, 10)).save(path)
    for name, text in FILES.items():
        (root / name).write_text(text)
    return root


def replace_line(path: Path, number: int, line: str) -> None:
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    path.write_text("\n".join(lines) + "\n")


def test_reads_every_column_in_the_order_of_images_txt(root: Path) -> None:
    images = load_cub(root)
    assert [record.key for record in images.records] == [f"{name}.jpg" for name in NAMES]
    second = images.records[1]
    assert (second.label, second.class_name) == (1, "001.Cat")
    assert second.box == (1.5, 2.0, 4.5, 4.5)
    assert second.mask_path is None
    assert second.is_training is False
    assert load_rgb(second).size == (8, 6)
    assert images.class_sizes == {1: 2, 2: 2}
    assert images.num_absent == 0


def test_accepts_the_folder_above(root: Path) -> None:
    root.rename(root.parent / "CUB_200_2011")
    assert len(load_cub(root.parent)) == 4


def test_box_that_sticks_out_is_kept_as_annotated(root: Path) -> None:
    assert load_cub(root).records[2].box == (-2.0, 1.0, 4.0, 5.0)


def test_absent_images_are_counted_also_after_a_selection(root: Path) -> None:
    (root / "images" / "002.Dog" / "d.jpg").unlink()
    images = load_cub(root)
    assert len(images) == 3
    assert images.num_absent == 1
    assert images.select([1]).num_absent == 0
    assert images.select([2]).num_absent == 1


def test_no_image_there_at_all_is_an_error(root: Path) -> None:
    for name in NAMES:
        (root / "images" / f"{name}.jpg").unlink()
    with pytest.raises(DatasetError, match="none of the 4 listed images"):
        load_cub(root)


def test_segmentations_are_found_by_name(root: Path) -> None:
    path = root / "segmentations" / "001.Cat" / "b.png"
    path.parent.mkdir(parents=True)
    mask = Image.new("L", (8, 6))
    mask.paste(204, (1, 2, 4, 4))
    mask.paste(51, (5, 5, 8, 6))  # in CUB: a fifth of the annotators
    mask.save(path)
    images = load_cub(root)
    assert [record.mask_path for record in images.records] == [None, path, None, None]
    loaded = load_mask(images.records[1], (8, 6))
    assert loaded.sum() == 6
    assert loaded[2:4, 1:4].all()
    path.unlink()
    path.mkdir()
    with pytest.raises(DatasetError, match=r"the mask .*b\.png is no file"):
        load_cub(root)


@pytest.mark.parametrize("name", sorted(set(FILES) - {"train_test_split.txt"}))
def test_missing_file_is_named_with_its_folder(root: Path, name: str) -> None:
    (root / name).unlink()
    with pytest.raises(DatasetError) as error:
        load_cub(root)
    assert str(root) in str(error.value)
    assert name in str(error.value)


def test_other_folders_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere: not a directory"):
        load_cub(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"not a data set in the CUB layout.*images\.txt"):
        load_cub(tmp_path)


def test_split_is_optional(root: Path) -> None:
    (root / "train_test_split.txt").unlink()
    images = load_cub(root)
    assert images.records[0].is_training is None
    with pytest.raises(DatasetError, match="no official split"):
        official_split(images)


@pytest.mark.parametrize(
    ("file", "line", "text", "message"),
    [
        ("images.txt", 2, "2", "images.txt, line 2.*<image id> <image name>"),
        ("images.txt", 2, "two 001.Cat/b.jpg", "line 2: image id must be a whole number.*'two'"),
        ("images.txt", 2, "1 001.Cat/b.jpg", "line 2: image id 1 occurs twice.*line 1"),
        ("images.txt", 2, "2 001.Cat/a.jpg", "line 2: 001.Cat/a.jpg is listed twice.*line 1"),
        ("image_class_labels.txt", 3, "3 2.5", "labels.txt, line 3: class id.*'2.5'"),
        ("image_class_labels.txt", 3, "9 2", "labels.txt: no class for 002.Dog/c.jpg"),
        ("image_class_labels.txt", 3, "3 7", "classes.txt: no name for class 7 of 002.Dog/c.jpg"),
        ("bounding_boxes.txt", 4, "4 2 2 4", "boxes.txt, line 4"),
        ("bounding_boxes.txt", 4, "9 2 2 4 4", "boxes.txt: no box for image 002.Dog/d.jpg"),
        ("bounding_boxes.txt", 4, "4 2 2 4 4 4", "boxes.txt, line 4.*002.Dog/d.jpg.*4 numbers"),
        ("bounding_boxes.txt", 4, "4 2 x 4 4", "boxes.txt, line 4.*002.Dog/d.jpg"),
        ("train_test_split.txt", 1, "1 yes", "split.txt, line 1: expected 0 or 1, got 'yes'"),
    ],
)
def test_malformed_line_is_named(root: Path, file: str, line: int, text: str, message: str) -> None:
    replace_line(root / file, line, text)
    with pytest.raises(DatasetError, match=message):
        load_cub(root)


@pytest.mark.parametrize("box", ["nan 0 3 3", "0 0 inf 3", "0 0 0 3", "0 0 3 -1"])
def test_box_without_area_is_refused_with_its_image(root: Path, box: str) -> None:
    replace_line(root / "bounding_boxes.txt", 2, f"2 {box}")
    with pytest.raises(BoxError, match=r"bounding_boxes.txt, line 2: box of image 001.Cat/b.jpg"):
        load_cub(root)


def test_text_that_is_not_utf8_is_refused_with_its_line(root: Path) -> None:
    (root / "classes.txt").write_bytes(b"1 001.Cat\n2 002.D\xff\n")
    with pytest.raises(DatasetError, match=r"classes.txt, line 2: not UTF-8"):
        load_cub(root)


def test_windows_text_files_are_read(root: Path) -> None:
    for name, text in FILES.items():
        (root / name).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert [record.key for record in load_cub(root).records] == [f"{name}.jpg" for name in NAMES]


@pytest.mark.parametrize(
    "name", ["../outside.jpg", "001.Cat/../../../outside.jpg", "..\\outside.jpg", "C:\\a.jpg", "."]
)
def test_name_that_leaves_the_images_is_refused(root: Path, name: str) -> None:
    Image.new("RGB", (8, 6)).save(root.parent / "outside.jpg")
    replace_line(root / "images.txt", 2, f"2 {name}")
    with pytest.raises(DatasetError, match=r"images.txt, line 2: .* is not a file name below"):
        load_cub(root)


def test_absolute_name_is_refused(root: Path) -> None:
    replace_line(root / "images.txt", 2, f"2 {root / 'images' / '001.Cat' / 'b.jpg'}")
    with pytest.raises(DatasetError, match=r"line 2: .* is not a file name below"):
        load_cub(root)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_link_that_leaves_the_images_is_refused(root: Path, what: str) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    Image.new("RGB", (8, 6)).save(outside / "b.jpg")
    path = root / "images" / "001.Cat" / "b.jpg"
    path.unlink()
    if what == "file":
        path.symlink_to(outside / "b.jpg")
    else:
        (root / "images" / "linked").symlink_to(outside)
        replace_line(root / "images.txt", 2, "2 linked/b.jpg")
    with pytest.raises(DatasetError, match="leads outside"):
        load_cub(root)


def test_images_folder_may_be_a_link(root: Path) -> None:
    elsewhere = root.parent / "elsewhere"
    os.rename(root / "images", elsewhere)
    (root / "images").symlink_to(elsewhere)
    assert len(load_cub(root)) == 4


def test_names_with_blanks_are_read(root: Path) -> None:
    (root / "images" / "001.Cat" / "b.jpg").rename(root / "images" / "001.Cat" / "b c.jpg")
    replace_line(root / "images.txt", 2, "2 001.Cat/b c.jpg")
    assert load_cub(root).records[1].key == "001.Cat/b c.jpg"


def test_select_keeps_order_and_names_what_is_missing(root: Path) -> None:
    images = load_cub(root)
    assert [record.key for record in images.select({2}).records] == [
        "002.Dog/c.jpg",
        "002.Dog/d.jpg",
    ]
    assert images.select([2, 1]).labels == (1, 1, 2, 2)
    with pytest.raises(DatasetError, match=r"class 3.*not all in this data set.*images: 1, 2"):
        images.select([1, 3])
    for name in NAMES[2:]:
        (root / "images" / f"{name}.jpg").unlink()
    with pytest.raises(DatasetError, match=r"class 2.*are listed, but none of their images"):
        load_cub(root).select([1, 2])
    with pytest.raises(DatasetError, match="no class of birds is selected"):
        images.select([])


def test_splits_follow_the_files_and_the_classes(root: Path) -> None:
    images = load_cub(root)
    train, test = official_split(images)
    assert [record.key for record in train.records] == ["001.Cat/a.jpg", "002.Dog/c.jpg"]
    assert [record.key for record in test.records] == ["001.Cat/b.jpg", "002.Dog/d.jpg"]
    train, test = zero_shot_split(images)
    assert (train.labels, test.labels) == ((1, 1), (2, 2))


def test_zero_shot_split_counts_listed_classes_not_present_ones(root: Path) -> None:
    for name in NAMES[2:]:
        (root / "images" / f"{name}.jpg").unlink()
    with pytest.raises(DatasetError, match="second half of the classes has no images"):
        zero_shot_split(load_cub(root))


def test_class_with_one_image_is_named(root: Path) -> None:
    require_pairs(load_cub(root))
    (root / "images" / "002.Dog" / "d.jpg").unlink()
    with pytest.raises(DatasetError, match=r"2 \(002.Dog\)"):
        require_pairs(load_cub(root))


def test_real_subset_counts_its_absent_images(shared_root: Path) -> None:
    images = load_cub(shared_root / "cub")
    assert (len(images), images.num_absent) == (1133, 11788 - 1133)
    assert sorted(images.class_sizes) == [*range(1, 11), *range(26, 36)]
    assert images.records[0].key.startswith("001.Black_footed_Albatross/")
    test = images.select(range(26, 36))
    assert (len(test), test.num_absent) == (590, 0)
    with pytest.raises(DatasetError, match="class 11, 12"):
        images.select(range(1, 13))
    train, test = official_split(images)
    assert (len(train), len(test)) == (600, 533)
