from pathlib import Path

import pytest
from PIL import Image

from benchmarks.datasets import DatasetError, load_csv, load_mask

HEADER = "image,label,x,y,width,height,mask,split\n"
ROWS = (
    "a/1.png,zebra,0,0,8,6,a/1_mask.png,train\n"
    '"a/2, again.png",ant,1.5,2,3,2.5,,test\n'
    "a/3.png,zebra,1,1,2,2,,\n"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "a").mkdir()
    for name in ("1.png", "2, again.png"):
        Image.new("RGB", (8, 6)).save(tmp_path / "a" / name)
    Image.new("L", (8, 6), 255).save(tmp_path / "a" / "1_mask.png")
    (tmp_path / "boxes.csv").write_text(HEADER + ROWS)
    return tmp_path


@pytest.mark.parametrize("given_file", [True, False])
def test_reads_every_column(root: Path, given_file: bool) -> None:
    images = load_csv(root / "boxes.csv" if given_file else root)
    first, second = images.records
    assert (images.name, images.root, images.num_absent) == (root.name, root, 1)
    assert [record.key for record in images.records] == ["a/1.png", "a/2, again.png"]
    assert images.class_names == {1: "ant", 2: "zebra"}
    assert second.box == (1.5, 2.0, 4.5, 4.5)
    assert load_mask(first, (8, 6)).all()
    assert second.mask_path is None
    assert (first.is_training, second.is_training) == (True, False)


def test_labels_that_are_numbers_are_the_class_numbers(root: Path) -> None:
    (root / "boxes.csv").write_text("image,label,x,y,width,height\na/1.png,12,0,0,8,6\n")
    images = load_csv(root)
    assert images.class_names == {12: "12"}
    assert images.records[0].is_training is None


def test_columns_come_in_any_order_and_spreadsheet_files_are_read(root: Path) -> None:
    text = "Width, height,x,y,label,notes,image\r\n8,6,0,0,ant,fine,a/1.png\r\n\r\n"
    (root / "boxes.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load_csv(root).records[0].box == (0.0, 0.0, 8.0, 6.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: no column image, label, x, y, width, height.*nothing"),
        ("image,label,x,y,width\n", "line 1: no column height;"),
        (HEADER.replace("split", "x") + ROWS, "line 1: column x comes twice"),
        (HEADER + "a/1.png,zebra,0,0,8\n", "line 2: expected 8 fields.*got 5"),
        (HEADER + "a/1.png,zebra,0,0,8,six,,\n", "line 2: box of image a/1.png"),
        (HEADER + "a/1.png,zebra,0,0,8,0,,\n", "line 2: box of image a/1.png.*positive"),
        (HEADER + "a/1.png,,0,0,8,6,,\n", "line 2: the label is empty"),
        (
            HEADER + "a/1.png,ant,0,0,8,6,,val\n",
            "line 2: split must be train, test or empty, got 'val'",
        ),
        (HEADER + "a/1.png,ant,0,0,8,6,m.png,\n", "line 2: there is no mask .*m.png"),
        (HEADER + "../1.png,ant,0,0,8,6,,\n", "line 2: '../1.png' is not a file name below"),
        (HEADER + "a/1.png,ant,0,0,8,6,/m.png,\n", "line 2: '/m.png' is not a file name below"),
        (HEADER + ROWS + "a/1.png,ant,0,0,8,6,,\n", "line 5: a/1.png is listed twice.*line 2"),
        (HEADER + "b.png,ant,0,0,8,6,,\n", "none of the 1 listed images is below"),
        (HEADER + 'a/1.png,"ant,0,0\n', "line 2: not CSV"),
    ],
)
def test_malformed_file_is_named(root: Path, text: str, message: str) -> None:
    (root / "boxes.csv").write_text(text)
    with pytest.raises(DatasetError, match=rf"boxes\.csv.*{message}"):
        load_csv(root)


def test_folder_without_the_table_is_refused(root: Path) -> None:
    (root / "boxes.csv").rename(root / "more.csv")
    with pytest.raises(
        DatasetError, match=r"no table of boxes; expected a CSV file or .*boxes\.csv"
    ):
        load_csv(root)
    assert len(load_csv(root / "more.csv")) == 2
