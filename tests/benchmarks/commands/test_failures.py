import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.__main__ import main
from benchmarks.metrics.bootstrap import bootstrap_interval
from benchmarks.metrics.boxes import iou
from benchmarks.metrics.outcomes import OUTCOMES
from benchmarks.protocols.protocol import Frame
from benchmarks.protocols.registry import PROTOCOLS
from benchmarks.results import failures
from benchmarks.results.images import ImageTable
from captum_embed.errors import InputError

# An image of 100 x 100 with an object of 40 x 40 (16%), and one with an object of 80 x 80 (64%).
SMALL, LARGE = (20, 20, 60, 60), (10, 10, 90, 90)
BOXES = {
    "small-1.jpg": (SMALL, {"ours": SMALL, "rival": (50, 25, 58, 33)}),
    "small-2.jpg": (SMALL, {"ours": (0, 0, 100, 80), "rival": (70, 70, 80, 80)}),
    "large-1.jpg": (LARGE, {"ours": LARGE, "rival": (0, 0, 0, 0)}),
    "large-2.jpg": (LARGE, {"ours": (15, 10, 90, 90), "rival": (60, 10, 100, 60)}),
}
FLOORS = {"centre_box": (17.5, 17.5, 82.5, 82.5), "whole_image": (0, 0, 100, 100)}


def measures(predicted: tuple[float, ...], truth: tuple[float, ...]) -> dict[str, Any]:
    overlap = int(10_000 * float(iou(predicted, truth)))
    # Only the paper's threshold may count.
    at_paper = [0] * 19 + [overlap] + [0] * 79
    return {"empty": not any(predicted), "predicted": list(predicted), "iou": at_paper}


def floor(box: tuple[float, ...], truth: tuple[float, ...]) -> dict[str, Any]:
    return {"empty": False, "iou": [int(10_000 * float(iou(box, truth)))]}


@pytest.fixture
def results() -> dict[str, Any]:
    """Content of a results.json, as far as it is read."""
    images = [
        {
            "key": f"{1 if truth == SMALL else 2:03}.Bird/{name}",
            "label": 1 if truth == SMALL else 2,
            "protocols": {
                "boxes": {
                    "size": [100, 100],
                    "box": list(truth),
                    "floors": {name: floor(box, truth) for name, box in FLOORS.items()},
                    "methods": {name: measures(box, truth) for name, box in predicted.items()},
                }
            },
        }
        for name, (truth, predicted) in BOXES.items()
    ]
    images.append({"key": "001.Bird/gone.jpg", "label": 1, "unreadable": "cannot read"})
    titles = {"ours": "Ours", "rival": "Rival", "centre_box": "Centre", "whole_image": "Whole"}
    return {
        "schema_version": 4,
        "counts": {"measured": {"boxes": 4}},
        "command": "python -m benchmarks localize --data birds",
        "settings": {"num_resamples": 200},
        "data": {"name": "birds", "test": {"classes": "1-2"}},
        "methods": [
            {"name": n, "title": t, "family": "floor" if n in FLOORS else n, "unavailable": None}
            for n, t in titles.items()
        ],
        "main_method": "ours",
        "summary": {name: {"boxes": {}} for name in titles},
        "images": images,
    }


def analyse(results: dict[str, Any], chosen: Sequence[str] = ()) -> dict[str, Any]:
    return failures.analyse(results, ImageTable.from_records(results["images"]), chosen)


def counts(analysed: dict[str, Any]) -> dict[str, int]:
    return {kind: of["count"] for kind, of in analysed["outcomes"].items() if of["count"]}


def test_every_image_of_a_method_has_one_outcome(results: dict[str, Any]) -> None:
    analysed = analyse(results)["methods"]
    assert counts(analysed["ours"]) == {"correct": 3, "too big": 1}
    assert counts(analysed["rival"]) == {"part": 1, "aside": 1, "background": 1, "empty": 1}
    assert counts(analysed["whole_image"]) == {"correct": 2, "too big": 2}
    assert counts(analysed["centre_box"]) == {"correct": 2, "too big": 2}
    assert list(analysed) == ["ours", "centre_box", "whole_image", "rival"], "the best first"


def test_shares_have_the_bootstrap_interval_of_their_images(results: dict[str, Any]) -> None:
    of = analyse(results)["methods"]["ours"]["outcomes"]["correct"]
    expected = bootstrap_interval([1.0, 0.0, 1.0, 1.0], num_resamples=200)
    assert of["share"] == list(expected.as_floats())


def test_accuracy_is_told_by_the_size_of_the_object(results: dict[str, Any]) -> None:
    sizes = analyse(results)["methods"]["ours"]["sizes"]
    assert [group["count"] for group in sizes.values()] == [0, 2, 0, 2]
    assert sizes["<10%"]["accuracy"] is None
    assert sizes["10-25%"]["accuracy"][0] == 0.5
    assert sizes["10-25%"]["outcomes"]["too big"] == 1
    assert sizes["≥50%"]["accuracy"] == [1.0, 1.0, 1.0]


def test_classes_are_told_from_the_worst_to_the_best(results: dict[str, Any]) -> None:
    classes = analyse(results)["methods"]["ours"]["classes"]
    assert [(one["name"], one["accuracy"], one["count"]) for one in classes] == [
        ("001.Bird", 0.5, 2),
        ("002.Bird", 1.0, 2),
    ]


def test_the_images_of_each_kind_of_miss_are_named(results: dict[str, Any]) -> None:
    misses = analyse(results)["methods"]["rival"]["misses"]
    assert misses["background"] == ["001.Bird/small-2.jpg"]
    assert misses["empty"] == ["002.Bird/large-1.jpg"]
    assert "correct" not in misses


def test_a_method_that_took_fewer_images_is_counted_over_those(results: dict[str, Any]) -> None:
    del results["images"][0]["protocols"]["boxes"]["methods"]["rival"]
    analysed = analyse(results)["methods"]["rival"]
    assert analysed["num_images"] == 3
    assert analysed["outcomes"]["empty"]["share"][0] == pytest.approx(1 / 3)


def test_chosen_methods_stand_beside_the_floors(results: dict[str, Any]) -> None:
    assert set(analyse(results, ("rival",))["methods"]) == {"rival", "centre_box", "whole_image"}


def test_a_method_that_is_not_in_the_run_is_refused(results: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="no boxes of lime in this run; it has ours, rival"):
        analyse(results, ("ours", "lime"))


def test_a_run_without_predicted_boxes_is_refused(results: dict[str, Any]) -> None:
    del results["images"][2]["protocols"]["boxes"]["methods"]["rival"]["predicted"]
    with pytest.raises(InputError, match=r"no predicted boxes of rival.*run its command again"):
        analyse(results)
    assert set(analyse(results, ("ours",))["methods"]) == {"ours", "centre_box", "whole_image"}


def test_a_run_without_the_boxes_protocol_is_refused(results: dict[str, Any]) -> None:
    results["summary"] = {name: {"attention": {}} for name in results["summary"]}
    with pytest.raises(InputError, match="--protocols boxes"):
        analyse(results)


@pytest.fixture
def run(results: dict[str, Any], tmp_path: Path) -> Path:
    ImageTable.from_records(results.pop("images")).write(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path


def test_the_command_prints_tables_and_writes_files(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["failures", "--run", str(run), "--no-progress"]) == 0
    printed = capsys.readouterr().out
    assert "background" in printed
    assert "001.Bird 50 (2)" in printed
    written = json.loads((run / "failures.json").read_text())
    assert list(written["methods"]["ours"]["outcomes"]) == list(OUTCOMES)
    text = (run / "failures.md").read_text()
    assert "| Ours | 75.0 [" in text
    assert written["command"] in text
    assert Image.open(run / "failures.png").size[0] > 1000
    assert {path.name for path in run.iterdir()} == {
        "results.json", "images.parquet", "failures.json", "failures.md", "failures.png",
        "failures.svg",
    }  # fmt: skip


def test_the_markdown_may_go_elsewhere_with_the_others_beside_it(run: Path) -> None:
    target = run / "other" / "misses.md"
    arguments = ["--methods", "ours", "--output", str(target), "--no-progress"]
    assert main(["failures", "--run", str(run), *arguments]) == 0
    assert {path.name for path in target.parent.iterdir()} == {
        "misses.md", "misses.json", "misses.png", "misses.svg"
    }  # fmt: skip
    assert not (run / "failures.md").exists()


def test_another_format_and_an_unfinished_run_are_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["failures", "--run", str(run), "--output", "misses.txt"]) == 1
    assert "ends in .md" in capsys.readouterr().err
    assert main(["failures", "--run", str(run / "none")]) == 1
    assert "no finished run" in capsys.readouterr().err


def test_the_results_of_a_real_protocol_can_be_read(results: dict[str, Any]) -> None:
    heatmap = np.zeros((100, 100))
    heatmap[20:60, 20:60] = 1
    frame = Frame(torch.zeros(3, 100, 100), SMALL, None)
    image = results["images"][0]["protocols"]["boxes"]
    image["methods"]["rival"] = PROTOCOLS["boxes"].measure([heatmap], frame)
    assert counts(analyse(results)["methods"]["rival"])["correct"] == 1
