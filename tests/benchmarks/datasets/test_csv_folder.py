from pathlib import Path

import pytest
from PIL import Image

from benchmarks.datasets.csv_folder import load_csv
from benchmarks.datasets.records import BoxError, DatasetError, load_mask

HEADER = "image,label,x,y,width,height"
LINES = ["a/1.png,cat,0,1,3,4", '"a/2, again.png",dog,0.5,0,2,2', "b/3.png,cat,-1,0,4,4"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "zoo"
    for name in ("a/1.png", "a/2, again.png", "b/3.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(root / name)
    write(root, HEADER, *LINES)
    return root


def write(root: Path, *lines: str) -> None:
    (root / "boxes.csv").write_text("\n".join(lines) + "\n")


def test_reads_the_table(root: Path) -> None:
    images = load_csv(root)
    assert [r.key for r in images.records] == ["a/1.png", "a/2, again.png", "b/3.png"]
    assert [r.box for r in images.records] == [(0, 1, 3, 5), (0.5, 0, 2.5, 2), (-1, 0, 3, 4)]
    assert images.labels == (1, 2, 1)
    assert images.class_names == {1: "cat", 2: "dog"}
    assert images.name == "zoo"
    assert {r.is_training for r in images.records} == {None}


def test_whole_numbers_as_labels_are_the_class_numbers(root: Path) -> None:
    write(root, HEADER, "a/1.png,30,0,0,2,2", "b/3.png,4,0,0,2,2")
    images = load_csv(root)
    assert images.labels == (30, 4)
    assert images.class_names == {4: "4", 30: "30"}


def test_one_spelling_per_class_number(root: Path) -> None:
    write(root, HEADER, "a/1.png,04,0,0,2,2", "b/3.png,4,0,0,2,2")
    with pytest.raises(DatasetError, match=r"the labels '04' and '4' are the same class number"):
        load_csv(root)


def test_columns_in_any_order_with_others_between(root: Path) -> None:
    write(root, "Height, notes ,width,y,x,label,image", "4,fine,3,2,1,cat,a/1.png")
    assert load_csv(root).records[0].box == (1, 2, 4, 6)


def test_any_csv_file_can_be_given(root: Path) -> None:
    (root / "boxes.csv").rename(root / "birds.csv")
    assert len(load_csv(root / "birds.csv")) == 3
    with pytest.raises(
        DatasetError, match=r"no table of boxes; expected a CSV file or .*boxes.csv"
    ):
        load_csv(root)


def test_spreadsheet_file_is_read(root: Path) -> None:
    text = "\r\n".join([HEADER, *LINES, ""]) + "\r\n"
    (root / "boxes.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert len(load_csv(root)) == 3


def test_masks_and_split_are_optional_per_image(root: Path) -> None:
    mask = Image.new("L", (8, 6))
    mask.paste(255, (1, 1, 3, 3))
    mask.save(root / "a" / "mask.png")
    write(
        root,
        f"{HEADER},mask,split",
        "a/1.png,cat,1,1,2,2,a/mask.png,train",
        "b/3.png,cat,1,1,2,2,,test",
        '"a/2, again.png",cat,1,1,2,2,,',
    )
    records = load_csv(root).records
    assert load_mask(records[0], (8, 6)).sum() == 4
    assert records[1].mask_path is None
    assert [r.is_training for r in records] == [True, False, None]


def test_absent_images_are_counted(root: Path) -> None:
    (root / "a" / "1.png").unlink()
    images = load_csv(root)
    assert (len(images), images.num_absent) == (2, 1)
    assert images.select([2]).num_absent == 0
    for name in ("a/2, again.png", "b/3.png"):
        (root / name).unlink()
    with pytest.raises(DatasetError, match="none of the 3 listed images"):
        load_csv(root)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("b/3.png,cat,0,0,4", "line 3: expected 6 fields .*, got 5"),
        ("b/3.png,cat,0,0,4,4,4", "line 3: expected 6 fields .*, got 7"),
        ("b/3.png,,0,0,4,4", "line 3: the label is empty"),
        (",cat,0,0,4,4", "line 3: '' is not a file name below"),
        ("a/1.png,cat,0,0,4,4", "line 3: a/1.png is listed twice .first on line 2"),
        ("../b/3.png,cat,0,0,4,4", "line 3: .* is not a file name below"),
        ("/b/3.png,cat,0,0,4,4", "line 3: .* is not a file name below"),
        ('"b/3.png,cat,0,0,4,4', "line 3: not CSV"),
        ('"b"/3.png,cat,0,0,4,4', "line 3: not CSV"),
    ],
)
def test_malformed_line_is_named(root: Path, line: str, message: str) -> None:
    write(root, HEADER, LINES[0], line)
    with pytest.raises(DatasetError, match=f"boxes.csv, {message}"):
        load_csv(root)


@pytest.mark.parametrize("box", ["a,0,4,4", "0,0,nan,4", "0,0,0,4", "0,0,4,-4"])
def test_bad_box_is_named(root: Path, box: str) -> None:
    write(root, HEADER, LINES[0], f"b/3.png,cat,{box}")
    with pytest.raises(BoxError, match=r"boxes.csv, line 3: box of image b/3.png"):
        load_csv(root)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("image,label,x,y,w,h", "line 1: no column width, height"),
        ("", "line 1: no column image, label"),
        (f"{HEADER},x", "line 1: column x comes twice"),
    ],
)
def test_bad_header_is_named(root: Path, columns: str, message: str) -> None:
    write(root, columns, LINES[0])
    with pytest.raises(DatasetError, match=message):
        load_csv(root)


def test_bad_masks_and_splits_are_named(root: Path) -> None:
    for mask, split, message in (
        ("a/none.png", "", r"line 2: there is no mask .*none.png"),
        ("../mask.png", "", r"line 2: .* is not a file name below"),
        ("", "validation", r"line 2: split must be train, test or empty, got 'validation'"),
    ):
        write(root, f"{HEADER},mask,split", f"a/1.png,cat,0,0,2,2,{mask},{split}")
        with pytest.raises(DatasetError, match=message):
            load_csv(root)


def test_file_that_is_not_text_is_refused(root: Path) -> None:
    (root / "boxes.csv").write_bytes(HEADER.encode() + b"\n\xff\xfe\n")
    with pytest.raises(DatasetError, match="not UTF-8"):
        load_csv(root)


def test_empty_table_is_refused(root: Path) -> None:
    write(root, HEADER)
    with pytest.raises(DatasetError, match="none of the 0 listed images"):
        load_csv(root)


@pytest.mark.parametrize("spelling", ["a//1.png", "./a/1.png", "a/./1.png"])
def test_an_image_under_two_spellings_is_listed_twice(root: Path, spelling: str) -> None:
    write(root, HEADER, "a/1.png,cat,0,0,2,2", f"{spelling},cat,0,0,2,2")
    with pytest.raises(DatasetError, match=r"line 3: a/1\.png is listed twice \(first on line 2\)"):
        load_csv(root)


@pytest.mark.parametrize("number", ["1_0", "\u0661\u0662", "9" * 5000, "0x10", "1e9999"])
def test_only_plain_numbers_make_a_box(root: Path, number: str) -> None:
    write(root, HEADER, f"a/1.png,cat,0,0,{number},2")
    with pytest.raises(BoxError, match="line 2: box of image") as caught:
        load_csv(root)
    assert len(str(caught.value)) < 500


def test_a_name_longer_than_any_file_s_is_refused(root: Path) -> None:
    write(root, HEADER, f"{'n' * 300}.png,cat,0,0,2,2")
    with pytest.raises(DatasetError, match=r"line 2: .* has a part of more than 255 bytes"):
        load_csv(root)


def test_a_path_longer_than_any_is_refused(root: Path) -> None:
    write(root, HEADER, f"{'/'.join(['n' * 200] * 30)}.png,cat,0,0,2,2")
    with pytest.raises(DatasetError, match=r"line 2: .* is longer than the 4000 bytes of a path"):
        load_csv(root)
