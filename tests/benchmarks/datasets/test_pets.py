from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import OxfordIIITPet

from benchmarks.datasets.pets import FOREGROUND, is_pets_root, load_pets
from benchmarks.datasets.records import (
    DatasetError,
    ImageSet,
    UnreadableImageError,
    load_mask,
    load_rgb,
)

TRIMAP = np.full((6, 8), 2, dtype=np.uint8)
TRIMAP[1:5, 2:7] = 3
TRIMAP[2:4, 3:6] = 1
XML = (
    "<annotation><object><bndbox><xmin>3</xmin><ymin>2</ymin><xmax>5</xmax><ymax>4</ymax>"
    "</bndbox></object></annotation>"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """In torchvision's layout, with the folder above."""
    base = tmp_path / "oxford-iiit-pet"
    for folder in ("images", "annotations/trimaps", "annotations/xmls"):
        (base / folder).mkdir(parents=True)
    for name in ("Abyssinian_1", "Abyssinian_2", "great_pyrenees_10"):
        Image.new("RGB", (8, 6)).save(base / "images" / f"{name}.jpg")
        Image.fromarray(TRIMAP).save(base / "annotations" / "trimaps" / f"{name}.png")
    (base / "annotations" / "xmls" / "Abyssinian_2.xml").write_text(XML)
    (base / "annotations" / "trainval.txt").write_text("Abyssinian_1 1 1 1\nAbyssinian_2 1 1 1\n")
    (base / "annotations" / "test.txt").write_text("great_pyrenees_10 16 2 8\n")
    return tmp_path


@pytest.fixture
def annotations(root: Path) -> Path:
    return root / "oxford-iiit-pet" / "annotations"


def test_reads_both_lists(root: Path) -> None:
    images = load_pets(root)
    assert [r.key for r in images.records] == [
        "Abyssinian_1.jpg",
        "Abyssinian_2.jpg",
        "great_pyrenees_10.jpg",
    ]
    assert images.labels == (1, 1, 16)
    assert images.class_names == {1: "Abyssinian", 16: "great_pyrenees"}
    assert [r.is_training for r in images.records] == [True, True, False]
    assert len(load_pets(root / "oxford-iiit-pet")) == 3


def test_same_images_and_classes_as_torchvisions(root: Path) -> None:
    images = load_pets(root)
    theirs = OxfordIIITPet(root, split="trainval", target_types=["category", "segmentation"])
    ours = [record for record in images.records if record.is_training]
    assert [record.path for record in ours] == theirs._images
    for record, (_, (label, trimap)) in zip(ours, theirs, strict=True):
        assert record.label == label + 1
        np.testing.assert_array_equal(load_mask(record), np.asarray(trimap) != 2)


def test_box_is_the_tight_box_of_animal_and_border(root: Path) -> None:
    record = load_pets(root).records[0]
    assert record.box == (2.0, 1.0, 7.0, 5.0)
    assert load_mask(record, (8, 6)).sum() == 20


def test_head_box_is_zero_based_with_open_end(root: Path) -> None:
    records = load_pets(root).records
    assert records[0].extra_boxes == {}
    assert records[1].extra_boxes == {"head": (2.0, 1.0, 5.0, 4.0)}


def test_listed_image_without_jpg_is_absent(root: Path) -> None:
    (root / "oxford-iiit-pet" / "images" / "Abyssinian_1.jpg").rename(
        root / "oxford-iiit-pet" / "images" / "Abyssinian_1.mat"
    )
    images = load_pets(root)
    assert (len(images), images.num_absent) == (2, 1)
    assert images.select([1]).num_absent == 1


def test_test_list_may_be_missing_or_empty(root: Path, annotations: Path) -> None:
    (annotations / "test.txt").write_text("")
    assert len(load_pets(root)) == 2
    (annotations / "test.txt").unlink()
    assert len(load_pets(root)) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Abyssinian_2 1", r"trainval.txt, line 2: expected '<image name>"),
        ("Abyssinian_2 cat 1 1", r"trainval.txt, line 2: class id must be a whole number"),
        ("Abyssinian_1 1 1 1", r"line 2: Abyssinian_1 is listed twice \(.*line 1\)"),
        ("../Abyssinian_2 1 1 1", r"line 2: .* is not a file name below"),
        ("/Abyssinian_2 1 1 1", r"line 2: .* is not a file name below"),
    ],
)
def test_malformed_line_is_named(root: Path, annotations: Path, line: str, message: str) -> None:
    (annotations / "trainval.txt").write_text(f"Abyssinian_1 1 1 1\n{line}\n")
    with pytest.raises(DatasetError, match=message):
        load_pets(root)


def test_image_without_trimap_is_refused(root: Path, annotations: Path) -> None:
    (annotations / "trimaps" / "Abyssinian_2.png").unlink()
    with pytest.raises(DatasetError, match=r"line 2: Abyssinian_2 has no trimap"):
        load_pets(root)


def test_bad_trimaps_are_named(root: Path, annotations: Path) -> None:
    path = annotations / "trimaps" / "Abyssinian_2.png"
    Image.fromarray(np.full((6, 8), 2, np.uint8)).save(path)
    with pytest.raises(DatasetError, match=r"Abyssinian_2.png: no object in this mask"):
        load_pets(root)
    path.write_bytes(b"\x89PNG")
    with pytest.raises(UnreadableImageError, match=r"Abyssinian_2.png"):
        load_pets(root)


@pytest.mark.parametrize(
    "xml",
    [
        "<annotation>",
        "<annotation/>",
        XML.replace("<xmin>3</xmin>", ""),
        XML.replace("<xmin>3</xmin>", "<xmin>six</xmin>"),
        XML.replace("<xmin>3</xmin>", "<xmin>6</xmin>"),
        XML.replace("<xmin>3</xmin>", "<xmin>0</xmin>"),
        XML.replace("<xmax>5</xmax>", "<xmax>inf</xmax>"),
        XML.replace("<xmax>5</xmax>", "<xmax>nan</xmax>"),
        '<!DOCTYPE a [<!ENTITY b "c">]>' + XML,
    ],
)
def test_bad_head_box_is_named(root: Path, annotations: Path, xml: str) -> None:
    (annotations / "xmls" / "Abyssinian_2.xml").write_text(xml)
    with pytest.raises(DatasetError, match=r"Abyssinian_2.xml: "):
        load_pets(root)


def test_other_folder_is_refused(tmp_path: Path, root: Path, annotations: Path) -> None:
    assert is_pets_root(root)
    (annotations / "trainval.txt").unlink()
    assert not is_pets_root(root)
    with pytest.raises(DatasetError, match=r"not Oxford-IIIT Pet.*trainval.txt"):
        load_pets(root)


def test_no_image_there_at_all_is_an_error(root: Path) -> None:
    for path in (root / "oxford-iiit-pet" / "images").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match="none of the 3 images is there"):
        load_pets(root)


@pytest.fixture
def real_pets(shared_root: Path) -> ImageSet:
    if not (shared_root / "pets").is_dir():
        pytest.skip(f"no real data: {shared_root / 'pets'} is absent")
    return load_pets(shared_root / "pets")


def test_real_subset_has_118_images_of_three_breeds(real_pets: ImageSet) -> None:
    assert (len(real_pets), real_pets.num_absent) == (118, 2)
    assert real_pets.class_names == {1: "Abyssinian", 2: "american_bulldog", 6: "Bengal"}
    assert real_pets.class_sizes == {1: 38, 2: 40, 6: 40}


def test_real_boxes_are_tight_around_the_masks_and_heads_lie_inside(real_pets: ImageSet) -> None:
    for record in real_pets.records:
        image = load_rgb(record)
        mask = load_mask(record, image.size)
        x0, y0, x1, y1 = (int(side) for side in record.box)
        assert mask.sum() == mask[y0:y1, x0:x1].sum()
        for edge in (mask[y0], mask[y1 - 1], mask[:, x0], mask[:, x1 - 1]):
            assert edge.any()
        head = record.extra_boxes["head"]
        assert 0 <= head[0] < head[2] <= image.width
        assert 0 <= head[1] < head[3] <= image.height


def test_border_belongs_to_the_animal_or_its_head_would_stick_out(real_pets: ImageSet) -> None:
    """Why `FOREGROUND` holds the border: the annotated head boxes say so."""
    sticking_out = {FOREGROUND: 0, (1,): 0}
    for record in real_pets.records:
        assert record.mask_path is not None
        with Image.open(record.mask_path) as image:
            trimap = np.asarray(image)
        x0, y0, x1, y1 = record.extra_boxes["head"]
        for values in sticking_out:
            rows, columns = np.nonzero(np.isin(trimap, values))
            gaps = (columns.min() - x0, rows.min() - y0, x1 - columns.max(), y1 - rows.max())
            sticking_out[values] += max(gaps) > 8
    assert sticking_out[FOREGROUND] == 0
    assert sticking_out[(1,)] > 0.8 * len(real_pets)
