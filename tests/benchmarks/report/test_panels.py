import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.report.panels import (
    FOLDER,
    INDEX,
    compared_methods,
    image_scores,
    read_panels,
    remove_panels,
    worst_images,
    write_map,
    write_photo,
)
from benchmarks.results.images import ImageTable
from captum_embed.errors import InputError


def records(ious: dict[str, int]) -> list[dict[str, Any]]:
    """Images with the IoU of one method at each threshold, in ten-thousandths."""
    return [
        {"key": key, "label": 1, "protocols": {"boxes": {
            "floors": {}, "methods": {"ours": {"iou": [iou] * 99}},
        }}}
        for key, iou in ious.items()
    ]  # fmt: skip


def test_the_worst_images_have_the_lowest_iou_of_the_main_method() -> None:
    table = ImageTable.from_records(records({"a": 9000, "b": 100, "c": 5000, "d": 7000}))
    assert worst_images(table, "boxes", "ours", 2) == ["b", "c"]
    assert image_scores(table, "boxes", "ours")["c"] == 0.5


def test_images_that_were_left_out_are_not_among_the_worst() -> None:
    images = records({"a": 9000, "b": 100})
    images[1]["protocols"]["boxes"] = {"left_out": "outside"}
    table = ImageTable.from_records(images)
    assert worst_images(table, "boxes", "ours", 4) == ["a"]
    assert worst_images(table, "boxes", None, 4) == []


def test_the_main_method_is_compared_with_the_best_fast_one_of_each_family(
    results: dict[str, Any],
) -> None:
    chosen = compared_methods(results, "boxes")
    assert chosen[0] == "ours_recommended"
    families = {m["name"]: m["family"] for m in results["methods"]}
    assert {families[name] for name in chosen} == set(families.values()) - {"floor"}
    assert "occlusion" not in chosen, "it is slow"


def test_a_map_is_clear_where_it_is_weak_and_red_where_it_is_strong(tmp_path: Path) -> None:
    heat = np.zeros((40, 60))
    heat[:, 30:] = 5.0
    pixels = np.asarray(Image.open(write_map(heat, tmp_path / "map.png")).convert("RGBA"))
    assert pixels.shape == (40, 60, 4)
    weak, strong = pixels[20, 5].astype(int), pixels[20, 55].astype(int)
    assert weak[3] == 64
    assert strong[3] > 150
    assert strong[0] > 2 * strong[2]


def test_an_empty_map_is_drawn_as_weak_everywhere(tmp_path: Path) -> None:
    pixels = np.asarray(Image.open(write_map(np.zeros((8, 8)), tmp_path / "m.png")).convert("RGBA"))
    assert np.unique(pixels.reshape(-1, 4), axis=0).shape[0] == 1


def test_files_are_smaller_than_large_images(tmp_path: Path) -> None:
    photo = write_photo(np.zeros((375, 500, 3), np.uint8), tmp_path / "photo.png")
    heat = write_map(np.ones((375, 500)), tmp_path / "map.png")
    assert Image.open(photo).size == Image.open(heat).size == (288, 216)


def test_what_was_written_is_read_back(finished_run: Path, results: dict[str, Any]) -> None:
    panels = read_panels(finished_run)
    assert panels is not None
    assert panels.protocol == "boxes"
    assert [image.key for image in panels.worst] == ["001.Thing/02.jpg", "001.Thing/03.jpg"]
    assert panels.worst[0].maps[0].score == 0.62
    assert list(panels.chosen[0].box) == [20.0, 15.0, 90.0, 75.0]


def test_a_run_without_images_has_none(tmp_path: Path) -> None:
    assert read_panels(tmp_path) is None
    remove_panels(tmp_path)


def index(run: Path, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / FOLDER).mkdir()
    content: dict[str, Any] = json.loads((run / FOLDER / INDEX).read_text())
    return content


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/b.png", "..\\b.png", ".."])
def test_a_file_outside_the_folder_is_refused(
    finished_run: Path, tmp_path: Path, name: str
) -> None:
    content = index(finished_run, tmp_path)
    content["chosen"][0]["maps"][0]["file"] = name
    (tmp_path / FOLDER / INDEX).write_text(json.dumps(content))
    with pytest.raises(InputError, match="not the name of a file"):
        read_panels(tmp_path)


def test_a_damaged_index_is_refused_by_name(finished_run: Path, tmp_path: Path) -> None:
    content = index(finished_run, tmp_path)
    del content["worst"]
    for text in (json.dumps(content), "{"):
        (tmp_path / FOLDER / INDEX).write_text(text)
        with pytest.raises(InputError, match=INDEX):
            read_panels(tmp_path)
