from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import OxfordIIITPet

from benchmarks.datasets import DatasetError, load_mask, load_pets, load_rgb, official_split

HEAD = """<annotation><object><name>cat</name><bndbox><xmin>2</xmin><ymin>1</ymin><xmax>4</xmax>
<ymax>3</ymax></bndbox></object></annotation>"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "oxford-iiit-pet"
    for folder in ("images", "annotations/trimaps", "annotations/xmls"):
        (root / folder).mkdir(parents=True)
    trimap = np.full((6, 8), 2, dtype=np.uint8)
    trimap[2:5, 1:6] = 3
    trimap[3, 2:5] = 1
    for name in ("British_Shorthair_1", "British_Shorthair_2", "beagle_7"):
        Image.new("RGB", (8, 6)).save(root / "images" / f"{name}.jpg")
        Image.fromarray(trimap).save(root / "annotations" / "trimaps" / f"{name}.png")
    (root / "annotations" / "trainval.txt").write_text("British_Shorthair_1 7 1 3\n")
    (root / "annotations" / "test.txt").write_text(
        "British_Shorthair_2 7 1 3\nbeagle_7 5 2 2\nbeagle_8 5 2 2\n"
    )
    (root / "annotations" / "xmls" / "British_Shorthair_1.xml").write_text(HEAD)
    return root


def test_reads_breeds_boxes_masks_heads_and_split(root: Path) -> None:
    pets = load_pets(root.parent)
    assert pets.class_names == {5: "beagle", 7: "British_Shorthair"}
    assert (len(pets), pets.num_absent, pets.select([7]).num_absent) == (3, 1, 0)
    first, second, third = pets.records
    assert first.box == (1.0, 2.0, 6.0, 5.0)
    assert first.extra_boxes == {"head": (1.0, 0.0, 4.0, 3.0)}
    assert second.extra_boxes == {}
    assert (first.is_training, second.is_training, third.is_training) == (True, False, False)
    expected = np.zeros((6, 8), dtype=bool)
    expected[2:5, 1:6] = True
    np.testing.assert_array_equal(load_mask(first, (8, 6)), expected)


@pytest.mark.parametrize("damage", ["no object", "broken", "absent"])
def test_trimap_that_gives_no_box_is_named(root: Path, damage: str) -> None:
    path = root / "annotations" / "trimaps" / "beagle_7.png"
    if damage == "no object":
        Image.new("L", (8, 6), 2).save(path)
    elif damage == "broken":
        path.write_bytes(path.read_bytes()[:30])
    else:
        path.unlink()
    with pytest.raises(DatasetError, match=r"beagle_7\.png"):
        load_pets(root)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("beagle_7 5 2", r"line 2: expected '<image name> <class id> <species> <breed id>'"),
        ("beagle_7 five 2 2", r"line 2: class id must be a whole number, got 'five'"),
        (
            "British_Shorthair_1 7 1 3",
            r"line 2: British_Shorthair_1 is listed twice.*trainval\.txt",
        ),
        ("../../beagle_7 5 2 2", r"line 2: '../../beagle_7\.jpg' is not a file name below"),
    ],
)
def test_malformed_line_is_named(root: Path, line: str, message: str) -> None:
    path = root / "annotations" / "test.txt"
    path.write_text(path.read_text().replace("beagle_7 5 2 2", line))
    with pytest.raises(DatasetError, match=rf"test\.txt, {message}"):
        load_pets(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", "can't be read"),
        ("<annotation></annotation>", "no object with a bndbox"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "it holds a declaration"),
        (HEAD.replace(">2<", ">two<"), "can't be read.*two"),
        (HEAD.replace(">4<", ">1<"), "not a box"),
        (HEAD.replace(">4<", ">nan<"), "not a box"),
    ],
)
def test_malformed_head_is_named(root: Path, text: str, message: str) -> None:
    (root / "annotations" / "xmls" / "British_Shorthair_1.xml").write_text(text)
    with pytest.raises(DatasetError, match=rf"British_Shorthair_1\.xml.*{message}"):
        load_pets(root)


def test_other_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not Oxford-IIIT Pet in torchvision's layout"):
        load_pets(tmp_path)


def test_no_image_there_is_an_error(root: Path) -> None:
    for path in (root / "images").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match="none of the 4 images is there"):
        load_pets(root)


def test_agrees_with_torchvision(root: Path) -> None:
    (root / "annotations" / "test.txt").write_text("British_Shorthair_2 7 1 3\nbeagle_7 5 2 2\n")
    theirs = OxfordIIITPet(root.parent, split="test", target_types=["category", "segmentation"])
    _, ours = official_split(load_pets(root))
    assert len(ours) == len(theirs) == 2
    for record, (image, (label, trimap)) in zip(ours.records, theirs, strict=True):
        assert record.label == label + 1
        assert load_rgb(record).size == image.size
        np.testing.assert_array_equal(load_mask(record), np.asarray(trimap) != 2)


def test_real_subset_has_boxes_that_are_tight_around_the_masks(shared_root: Path) -> None:
    if not (shared_root / "pets").is_dir():
        pytest.skip(f"no real data: {shared_root / 'pets'} is absent")
    pets = load_pets(shared_root / "pets")
    assert (len(pets), pets.num_absent) == (118, 2)
    assert pets.class_sizes == {1: 38, 2: 40, 6: 40}
    assert pets.class_names == {1: "Abyssinian", 2: "american_bulldog", 6: "Bengal"}
    for record in pets.records[::10]:
        image = load_rgb(record)
        mask = load_mask(record, image.size)
        x0, y0, x1, y1 = (int(side) for side in record.box)
        assert mask.sum() == mask[y0:y1, x0:x1].sum()
        assert mask[y0].any()
        assert mask[y1 - 1].any()
        assert mask[:, x0].any()
        assert mask[:, x1 - 1].any()
        hx0, hy0, hx1, hy1 = record.extra_boxes["head"]
        assert 0 <= hx0 < hx1 <= image.width
        assert 0 <= hy0 < hy1 <= image.height
