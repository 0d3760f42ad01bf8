import contextlib
import csv
import io
import itertools
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.__main__ import main
from benchmarks.core.seeding import sample
from benchmarks.core.settings import INTERRUPTED
from benchmarks.datasets.cub import load_cub
from benchmarks.datasets.preprocess import to_tensor
from benchmarks.datasets.records import load_rgb
from benchmarks.methods import select
from benchmarks.metrics.figures import Figure
from benchmarks.protocols.protocol import (
    Embed,
    EvaluationProtocol,
    Frame,
    Item,
    Measures,
    Question,
    Source,
)
from benchmarks.protocols.registry import PROTOCOLS
from benchmarks.results.summary import FLOORS
from benchmarks.runs import evaluation, memory

# A network small enough that a whole run takes a second.
NETWORK = """
import torch
from torch import nn
from benchmarks.networks.build import EmbeddingNetwork

def build():
    torch.manual_seed(0)
    features = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4), nn.ReLU(), nn.Conv2d(8, 60, 3, stride=2), nn.ReLU()
    )
    return EmbeddingNetwork(features, nn.Linear(60, 8, bias=False))

def without_relu():
    torch.manual_seed(0)
    return EmbeddingNetwork(nn.Conv2d(3, 60, 5, stride=4), nn.Identity())

def broken():
    network = build()
    nn.init.constant_(network.head.weight, float("nan"))
    return network
"""
METHODS = "ours_explain,ours_paper,ours_gradient,layer_grad_cam,layer_activation,saliency"
NUM_CLASSES, PER_CLASS = 4, 4


def write_images(root: Path, with_masks: bool = False) -> None:
    """A coloured ellipse per image, on noise, in the CUB layout."""
    rng = np.random.default_rng(0)
    lines: dict[str, list[str]] = {
        name: []
        for name in ("images.txt", "image_class_labels.txt", "bounding_boxes.txt", "classes.txt")
    }
    number = 0
    for label in range(1, NUM_CLASSES + 1):
        lines["classes.txt"].append(f"{label} {label:03}.Thing")
        for index in range(PER_CLASS):
            number += 1
            width, height = (90, 70) if index % 2 else (72, 88)
            x, y, w, h = 10 + 3 * index, 12, 40, 36
            pixels = rng.integers(60, 120, (height, width, 3))
            yy, xx = np.mgrid[:height, :width] + 0.5
            inside = ((xx - x - w / 2) / (w / 2)) ** 2 + ((yy - y - h / 2) / (h / 2)) ** 2 <= 1
            pixels[inside] = (250, 40 * label, 90 - 20 * label)
            name = f"{label:03}.Thing/{number}.png"
            (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / name)
            if with_masks:
                (root / "segmentations" / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(inside).convert("L").save(root / "segmentations" / name)
            lines["images.txt"].append(f"{number} {name}")
            lines["image_class_labels.txt"].append(f"{number} {label}")
            lines["bounding_boxes.txt"].append(f"{number} {x}.0 {y}.0 {w}.0 {h}.0")
    for name, content in lines.items():
        (root / name).write_text("\n".join(content) + "\n")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with data and networks."""
    prepare_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A working folder with a finished run, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    prepare_folder(folder)
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        assert run(figures=True) == 0
    return folder, printed.getvalue()


@pytest.fixture
def finished(place: Path, finished_run: tuple[Path, str]) -> str:
    """A working folder with a copy of the finished run; what it printed."""
    shutil.copytree(finished_run[0] / "run", place / "run")
    return finished_run[1]


def prepare_folder(folder: Path) -> None:
    (folder / "tiny_networks.py").write_text(NETWORK)
    write_images(folder / "data")


def run(
    output: str = "run", *, figures: bool = False, memory: bool = False, **changes: str | None
) -> int:
    return main(words_of(output, figures=figures, memory=memory, **changes))


def words_of(
    output: str, *, figures: bool = False, memory: bool = False, **changes: str | None
) -> list[str]:
    options: dict[str, str | None] = {
        "data": "data",
        "train-classes": "1-2",
        "test-classes": "3-4",
        "network": "tiny_networks:build",
        "methods": METHODS,
        "num-tuples": "6",
        "figure-method": "ours_paper",
        "device": "cpu",
        "output": output,
        "num-resamples": "50",
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }
    words = [w for name, value in options.items() if value for w in (f"--{name}", value)]
    flags = ["--figures" if figures else "--no-figures", "--memory" if memory else "--no-memory"]
    return ["localize", "--no-progress", *flags, *words]


def results(folder: str = "run") -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(Path(folder, "results.json").read_text())
    return loaded


def records(folder: str = "run") -> list[dict[str, Any]]:
    lines = Path(folder, "records.jsonl").read_text().splitlines()
    return sorted(map(json.loads, lines), key=lambda record: record["key"])


def value(result: dict[str, Any], name: str, protocol: str, figure: str) -> float:
    number: float = result["summary"][name][protocol]["figures"][figure]["value"]
    return number


def without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        times = {k for k in value if "seconds" in k or k == "times_forward"}
        return {k: without_seconds(v) for k, v in value.items() if k not in times}
    return [without_seconds(v) for v in value] if isinstance(value, list) else value


def numbers_of(folder: str) -> Any:
    numbers = {k: results(folder)[k] for k in ("summary", "counts")}
    return without_seconds({**numbers, "records": records(folder)})


def test_a_run_writes_its_table_figures_and_every_record(
    finished: str,
) -> None:
    result = results()
    assert result["schema_version"] == 4
    assert result["settings"]["seed"] == 0
    assert result["settings"]["methods"] == METHODS.split(",")
    assert set(result["versions"]) >= {"python", "captum-embed", "captum", "torch", "numpy"}
    assert result["machine"]["cores"] >= 1
    assert result["command"].startswith("python -m benchmarks localize --data data")
    assert result["counts"] == {
        "images": 8,
        "unreadable": 0,
        "measured": {"attention": 8, "boxes": 8},
        "left_out": {"attention": 0, "boxes": 0},
    }
    floors = [name for name in FLOORS if name != "edge_filter"]  # which no protocol here measures
    assert list(result["summary"]) == [*METHODS.split(","), *floors]
    assert (result["device"], result["workers"]) == ("cpu", 1)
    record = records()[0]["protocols"]["boxes"]["methods"]["saliency"]
    assert len(record["iou"]) == len(record["best_iou"]) == len(result["thresholds"]) == 99
    for title in map(FLOORS.get, floors):
        assert title in finished
    for name in (
        "results.json", "images.parquet", "results.csv", "results.md", "curve_accuracy.png",
        "cost.png", "qualitative.png", "report.html",
    ):  # fmt: skip
        assert f"run/{name}" in finished
        assert Path("run", name).stat().st_size > 500
    for name in ("curve_accuracy.png", "qualitative.png"):
        assert np.asarray(Image.open(Path("run", name))).std() > 10
    assert "data:image/png" in Path("run/report.html").read_text()
    assert not list(Path("run").rglob(".part-*"))


def test_the_numbers_of_the_table_follow_from_the_records(finished: str) -> None:
    result, images = results(), records()
    boxes = [image["protocols"]["boxes"]["methods"]["saliency"] for image in images]
    right = [measures["iou"][19] >= 5000 for measures in boxes]
    assert value(result, "saliency", "boxes", "accuracy_at_0.2") == np.mean(right)
    scores = [i["protocols"]["attention"]["methods"]["saliency"]["score"] for i in images]
    assert value(result, "saliency", "attention", "score") == pytest.approx(np.mean(scores))


def test_any_library_reads_what_was_measured_on_each_image(finished: str) -> None:
    import pyarrow.parquet as pq

    rows = pq.read_table("run/images.parquet").to_pylist()
    image = records()[0]
    (row,) = (
        row
        for row in rows
        if (row["key"], row["protocol"], row["method"]) == (image["key"], "boxes", "saliency")
    )
    measured = image["protocols"]["boxes"]
    assert [row["width"], row["height"]] == measured["size"]
    assert row["box"] == measured["box"]
    assert row["iou"] == measured["methods"]["saliency"]["iou"]
    assert "images" not in results()


def test_the_csv_and_the_markdown_table_have_a_row_per_method(finished: str) -> None:
    rows = list(csv.DictReader(Path("run/results.csv").read_text().splitlines()))
    by_name = {(row["method"], row["protocol"]): row for row in rows}
    for name, protocols in results()["summary"].items():
        for protocol, numbers in protocols.items():
            row = by_name[name, protocol]
            assert int(row["num_images"]) == numbers["num_images"]
            for figure, stated in numbers["figures"].items():
                assert float(row[figure]) == stated["value"]
                assert float(row[f"{figure}_low"]) == stated["low"]
                if "difference" in stated:
                    assert float(row[f"{figure}_difference_high"]) == stated["difference_high"]
    assert float(by_name["saliency", "boxes"]["max_box_acc_threshold"]) > 0
    table = Path("run/results.md").read_text().splitlines()
    assert sum(line.startswith("|") for line in table) == 2 + len(results()["summary"])


def test_a_run_that_ends_early_reports_a_sample_and_goes_on(finished: str) -> None:
    assert run("short", minutes="0", figures=False) == 0
    (measured,) = records("short")
    (first,) = sample(load_cub(Path("data")).select([3, 4]).records, 1, seed=0)
    assert measured["key"] == first.key
    assert set(results("short")["counts"]["measured"].values()) == {1}
    assert run("short") == 0
    assert numbers_of("short") == numbers_of("run")


def test_the_table_states_each_method_s_reduction(finished: str) -> None:
    stated = {method["title"]: method.get("reduction", "-") for method in results()["methods"]}
    (captums,) = select(["layer_grad_cam"])
    assert stated["LayerGradCam"] == captums.all_reductions["where"]
    assert stated["Centre box, 65% of each side"] == "-"
    heading, _, *rows = (
        [cell.strip() for cell in line.split("|")[1:3]]
        for line in Path("run/results.md").read_text().splitlines()
        if line.startswith("|")
    )
    assert heading == ["method", "reduction"]
    assert dict(rows) == {title: stated[title] for title, _ in rows}


def test_an_interrupted_run_goes_on_to_the_same_numbers(
    finished: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = evaluation.Evaluator.record
    calls = []

    def interrupted(self: Any, image: Any) -> Any:
        calls.append(image.key)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, image)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation.Evaluator, "record", interrupted)
        assert run("parts") == INTERRUPTED
    assert "the same command goes on from here" in capsys.readouterr().out
    assert not Path("parts/results.json").exists()
    records = Path("parts/records.jsonl")
    assert len(records.read_text().splitlines()) == 3
    records.write_text(records.read_text() + '{"key": "half a li')
    assert run("parts") == 0
    assert "going on: 3 of 8 images are done" in capsys.readouterr().out
    assert numbers_of("parts") == numbers_of("run")


@pytest.mark.skipif(
    not hasattr(os, "fork") or torch.get_num_threads() > 1,
    reason="kills a copy of this process, which must have no threads: OMP_NUM_THREADS=1",
)
def test_a_killed_run_goes_on_to_the_same_numbers(
    finished: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies in place of a call that brings something to the disk."""
    calls = itertools.count(1)

    def dying(real: Callable[..., Any], last: int) -> Callable[..., Any]:
        return lambda *args: os._exit(9) if next(calls) == last else real(*args)

    # `make torture` kills at each.
    kills = int(os.environ.get("RUN_KILLS", "1"))
    for last in range(1, kills + 1) if kills > 1 else [5]:
        child = os.fork()
        if not child:
            for name in ("fsync", "replace"):
                monkeypatch.setattr(os, name, dying(getattr(os, name), last))
            run(f"killed_{last}")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert run(f"killed_{last}") == 0
        assert numbers_of(f"killed_{last}") == numbers_of("run")


def test_several_processes_give_the_numbers_of_one(place: Path) -> None:
    for output, workers in (("one", "1"), ("two", "2")):
        run(output, methods="ours_paper,layer_grad_cam", limit="3", workers=workers)
    for name, protocols in results("one")["summary"].items():
        for protocol, numbers in protocols.items():
            for figure, stated in numbers["figures"].items():
                theirs = value(results("two"), name, protocol, figure)
                assert theirs == pytest.approx(stated["value"], abs=1e-4)


DIES = """
record = evaluation.Evaluator.record
def dying(self, work, done=[]):
    done.append(work)
    return record(self, work) if len(done) < 2 else os._exit(9)
evaluation.Evaluator.record = dying
"""


def test_the_processes_of_torchrun_share_the_images_and_go_on_after_one_died(
    finished: str, run_by_two_processes: Callable[..., list[int | None]]
) -> None:
    assert run_by_two_processes(words_of("parts"), DIES) == [1, 9]
    assert "another process of the job has ended" in Path("log0.txt").read_text()
    assert not Path("parts/results.json").exists()
    assert run_by_two_processes(words_of("parts")) == [0, 0]
    assert "going on: 5 of 8 images are done" in Path("log0.txt").read_text()
    assert "images are done" not in Path("log1.txt").read_text()
    assert numbers_of("parts") == numbers_of("run")
    assert results("parts")["workers"] == 2
    assert not list(Path("parts").glob("records-*"))


def test_a_finished_run_is_not_computed_again(
    finished: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = numbers_of("run")
    monkeypatch.setattr(evaluation.Evaluator, "record", lambda *_: pytest.fail("computed again"))
    assert run() == 0
    assert numbers_of("run") == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "1"}, "seed: 0 there, 1 here"),
        ({"methods": "saliency"}, "methods:"),
        ({"limit": "3"}, "limit: None there, 3 here"),
        ({"test-classes": "4,2"}, "test_classes: '3-4' there, '2,4' here"),
        ({"network": "tiny_networks:without_relu"}, "network_fingerprint:"),
        # Times of both have no common median.
        ({"workers": "2"}, "workers: 1 there, 2 here"),
    ],
)
def test_another_run_in_the_same_folder_is_refused_with_what_differs(
    finished: str, capsys: pytest.CaptureFixture[str], change: dict[str, str], message: str
) -> None:
    before = Path("run/results.json").read_bytes()
    assert run(**change) == 1
    error = capsys.readouterr().err
    assert "holds a run with other settings" in error
    assert message in error
    assert Path("run/results.json").read_bytes() == before


def test_changed_images_are_another_run(finished: str, capsys: pytest.CaptureFixture[str]) -> None:
    boxes = Path("data/bounding_boxes.txt")
    boxes.write_text(boxes.read_text().replace("10.0 12.0", "11.0 12.0"))
    assert run() == 1
    assert "data_digest" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": "saliency,gradcam"}, "unknown method gradcam; known: core, fast, all"),
        ({"protocols": "pixels"}, "unknown protocol pixels; known: boxes, attention"),
        ({"test-classes": "3,9"}, "class"),
        ({"train-classes": None}, "--train-classes and --test-classes"),
        ({"data": "nowhere"}, "nowhere"),
        ({"checkpoint": "absent.safetensors", "network": None}, "no such checkpoint"),
        ({"layer": "features.9"}, "no layer 'features.9'"),
        ({"network": "tiny_networks:absent"}, "cannot import 'absent'"),
        ({"device": "tpu"}, "--device tpu"),
        ({"margin": "-1"}, "--margin"),
    ],
)
def test_bad_input_is_refused_before_anything_is_computed(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str | None],
    message: str,
) -> None:
    assert run(**change) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert not Path("run/records.jsonl").exists()


def test_an_output_that_is_a_file_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("run").write_text("mine")
    assert run() == 1
    assert "cannot write there" in capsys.readouterr().err
    assert Path("run").read_text() == "mine"


def test_an_unreadable_image_is_a_counted_warning(place: Path) -> None:
    Path("data/images/003.Thing/9.png").write_bytes(b"not an image")
    with pytest.warns(UserWarning, match=r"9\.png"):
        assert run() == 0
    result = results()
    assert result["counts"]["unreadable"] == 1
    assert result["counts"]["measured"] == {"attention": 7, "boxes": 7}
    assert "9.png" in result["data"]["unreadable"][0]


def test_absent_images_are_counted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("data/images/003.Thing/9.png").unlink()
    assert run() == 0
    assert results()["data"]["test"]["absent"] == 1
    assert "1 listed but absent" in capsys.readouterr().out


def test_a_box_outside_the_crop_leaves_the_image_out_of_that_protocol_alone(place: Path) -> None:
    boxes = Path("data/bounding_boxes.txt")
    lines = boxes.read_text().splitlines()
    lines[8] = "9 0.0 0.0 72.0 3.0"
    boxes.write_text("\n".join(lines) + "\n")
    assert run() == 0
    counts = results()["counts"]
    assert counts["left_out"] == {"attention": 1, "boxes": 0}
    assert counts["measured"] == {"attention": 7, "boxes": 8}


def test_a_box_outside_its_image_is_refused_by_name(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = Path("data/bounding_boxes.txt")
    boxes.write_text(boxes.read_text().replace("9 10.0", "9 300.0"))
    assert run() == 1
    assert "003.Thing/9.png" in capsys.readouterr().err


def test_a_class_with_a_single_image_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (10, 11, 12):
        Path(f"data/images/003.Thing/{number}.png").unlink()
    assert run() == 1
    assert "3" in capsys.readouterr().err


def test_a_network_that_gives_nan_is_refused_with_the_image_s_name(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(network="tiny_networks:broken") == 1
    error = capsys.readouterr().err
    assert "NaN" in error
    assert ".png" in error


def test_a_method_that_cannot_serve_the_network_is_listed_with_the_reason(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(network="tiny_networks:without_relu", methods="saliency,guided_grad_cam") == 0
    assert "not available: GuidedGradCam: the network has no nn.ReLU" in capsys.readouterr().out
    result = results()
    assert "guided_grad_cam" not in result["summary"]
    (about,) = [m for m in result["methods"] if m["name"] == "guided_grad_cam"]
    assert "no nn.ReLU" in about["unavailable"]
    assert "no nn.ReLU" in Path("run/results.csv").read_text()
    assert "no nn.ReLU" in Path("run/results.md").read_text()


def test_masks_are_scored_where_there_are_any(place: Path) -> None:
    shutil.rmtree("data")
    write_images(Path("data"), with_masks=True)
    assert run() == 0
    attention = results()["summary"]["saliency"]["attention"]
    assert attention["num_masks"] == 8
    figures = attention["figures"]
    # The mask lies within the box.
    assert 0 < figures["mask_score"]["value"] < figures["score"]["value"]


def test_masks_and_removal_are_measured_the_same_after_an_interruption(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(Path("data"), with_masks=True)

    def run_all(output: str) -> int:
        protocols = "attention,boxes,faithfulness"
        return run(output, methods="ours_paper,saliency", limit="4", protocols=protocols)

    assert run_all("whole") == 0
    original = evaluation.Evaluator.record
    with monkeypatch.context() as patch:
        calls: list[str] = []

        def interrupted(self: Any, image: Any) -> Any:
            calls.append(image.key)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return original(self, image)

        patch.setattr(evaluation.Evaluator, "record", interrupted)
        assert run_all("parts") == INTERRUPTED
    assert run_all("parts") == 0
    assert numbers_of("parts") == numbers_of("whole")
    saliency = results("whole")["summary"]["saliency"]
    for protocol, figures in {
        "boxes": ("pxap", "pointing", "mask_pointing"),
        "faithfulness": ("deletion", "insertion"),
    }.items():
        for figure in figures:
            stated = saliency[protocol]["figures"][figure]
            assert stated["low"] <= stated["value"] <= stated["high"]
            assert stated["difference_low"] <= stated["difference"] <= stated["difference_high"]
    # The crops are prepared once, for both protocols that show them.
    assert sorted(path.name for path in Path("whole/cache").iterdir()) == ["attention", "boxes"]
    table = Path("whole/results.md").read_text()
    assert all(heading in table for heading in ("PxAP", "pointing, mask", "deletion", "insertion"))


def test_masks_that_came_later_are_another_run(
    finished: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(Path("data"), with_masks=True)
    assert run() == 1
    assert "data_digest" in capsys.readouterr().err


def test_without_masks_there_are_no_columns_of_masks(finished: str) -> None:
    table = Path("run/results.md").read_text()
    assert "pointing, box" in table
    assert "PxAP" not in table
    assert "mask" not in table


def test_removal_alone_gives_a_table_and_a_report(place: Path) -> None:
    assert run(protocols="faithfulness", methods="ours_paper", limit="2", figures=True) == 0
    assert "deletion" in Path("run/results.md").read_text()


def test_a_limited_run_takes_a_subset_with_the_tuples_of_all_images(finished: str) -> None:
    run("some", limit="3")
    whole = {image["key"]: image for image in without_seconds(records())}
    some = without_seconds(records("some"))
    assert len(some) == 3
    assert all(whole[image["key"]] == image for image in some)


def test_slow_methods_can_take_fewer_images_than_the_others(finished: str) -> None:
    options = {"methods": "layer_activation,occlusion", "protocols": "boxes", "budget": "4"}
    assert run("slow", limit="4", slow_limit="2", **options) == 0
    result = results("slow")
    images = records("slow")
    assert sum("occlusion" in i["protocols"]["boxes"]["methods"] for i in images) == 2
    assert sum("layer_activation" in i["protocols"]["boxes"]["methods"] for i in images) == 4
    counted = {
        n: result["summary"][n]["boxes"]["num_images"] for n in options["methods"].split(",")
    }
    assert counted == {"layer_activation": 4, "occlusion": 2}
    command = result["command"]
    assert "--slow-limit 2" in command


def test_times_of_methods_that_share_a_pass_hold_that_pass(
    finished: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.datasets.cub import load_cub

    names = ("layer_activation", "layer_grad_cam", "saliency")
    plan = evaluation.EvaluationPlan(
        "tiny_networks:build", None, "features", names, ("attention",), 0.2, 0, "cpu",
        Path("run/cache"),
    )  # fmt: skip
    bench = evaluation.Evaluator(plan).benches["attention"]
    # The clock ticks when the network's first convolution computes.
    ticks = 0.0
    original = torch.nn.Conv2d._conv_forward

    def conv_forward(self: torch.nn.Conv2d, *args: Any) -> torch.Tensor:
        nonlocal ticks
        ticks += 1
        return original(self, *args)

    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", conv_forward)
    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: ticks)
    record = next(r for r in load_cub("data").records if r.label == 3)
    measured = bench.measure(record)
    before = measured["forward_seconds"]
    assert before >= 1
    assert {name: m["seconds"] for name, m in measured["methods"].items()} == dict.fromkeys(
        names, before
    )
    # The recorded pass, which also warms up; a timed one, a replayed one of nothing; Saliency's.
    assert ticks == 3 * before


def test_a_smaller_sample_is_part_of_a_larger_one(place: Path) -> None:
    from benchmarks.datasets.cub import load_cub

    records = load_cub(place / "data").records
    small, large = ({r.key for r in sample(records, n, 0)} for n in (3, 7))
    assert small < large
    assert {r.key for r in sample(records, 7, 1)} != large


def test_peak_memory_is_measured_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"methods": "layer_activation,saliency", "protocols": "boxes", "limit": "2"}
    assert run("m", memory=True, **options) == 0
    result = results("m")
    boxes = {n: p["boxes"] for n, p in result["summary"].items() if "boxes" in p}
    peaks = {name: numbers["peak_memory_bytes"] for name, numbers in boxes.items()}
    assert peaks["layer_activation"] == result["memory"]["methods"]["layer_activation"]
    assert peaks["saliency"] > result["memory"]["forward"] > 0
    assert peaks["centre_box"] is None
    monkeypatch.setattr(memory, "peak_bytes", lambda *_: pytest.fail("again"))
    assert run("m", memory=True, **options) == 0
    assert results("m")["memory"] == result["memory"]


def test_one_protocol_alone_is_enough(place: Path) -> None:
    options = {"methods": "saliency", "limit": "2"}
    assert run("a", protocols="attention", figures=True, **options) == 0
    assert Path("a/cost.png").exists()
    assert not Path("a/curve_accuracy.png").exists()
    assert run("b", protocols="boxes", **options) == 0
    assert "attention" not in results("b")["summary"]["saliency"]


def test_the_budget_changes_a_perturbation_method_and_stands_in_the_results(place: Path) -> None:
    maps = []
    for budget in ("4", "60"):
        folder = f"run{budget}"
        options = {"methods": "occlusion", "limit": "2", "protocols": "boxes"}
        assert run(folder, budget=budget, **options) == 0
        assert results(folder)["settings"]["budget"] == int(budget)
        assert f"--budget {budget}" in results(folder)["command"]
        maps.append(without_seconds(records(folder)))
    assert maps[0] != maps[1]


def test_a_torchvision_network_is_compared_offline_on_the_zero_shot_split(place: Path) -> None:
    options: dict[str, str | None] = {"train_classes": None, "test_classes": None}
    methods = "ours_localize,guided_backprop"
    assert (
        run(
            network="resnet18@random",
            embedding_dim="6",
            split="zero-shot",
            methods=methods,
            limit="1",
            protocols="boxes",
            figure_method="ours_localize",
            **options,
        )
        == 0
    )
    result = results()
    assert result["settings"]["embedding_dim"] == 6
    assert (result["data"]["train"]["classes"], result["data"]["test"]["classes"]) == ("1-2", "3-4")
    assert not [m for m in result["methods"] if m.get("unavailable")]


class Halves(EvaluationProtocol):
    """Two images of two classes side by side, and which half a map of each one's class marks."""

    name = "halves"
    title = "which half"
    shows = "halves"
    figures = (Figure("half_mass", "half mass", "Share of the maps in their halves", "higher"),)

    def show(self, image: Image.Image) -> Tensor:
        return to_tensor(image.resize((40, 40)))

    def items(self, source: Source) -> list[Item]:
        records = {record.key: record for record in source.records}
        self.records = records
        assert source.embed is not None
        shown = torch.stack([self.show(load_rgb(record)) for record in records.values()])
        self.embeddings = dict(zip(records, source.embed(shown), strict=True))
        first, *_, last = records
        return [replace(records[first], key=f"{first}+{last}")]

    def frame(self, item: Any) -> Frame:
        keys = item.key.split("+")
        image = torch.cat([self.show(load_rgb(self.records[key])) for key in keys], dim=2)
        references = [self.embeddings[key][None] for key in keys]
        questions = (Question(*references), Question(*references[::-1]))
        return Frame(image, (0, 0, 40, 40), questions=questions)

    def measure(
        self, heatmaps: Sequence[np.ndarray], frame: Frame, embed: Embed | None = None
    ) -> Measures:
        left, right = (heatmap / max(heatmap.sum(), 1e-9) for heatmap in heatmaps)
        mass = (left[:, :40].sum() + right[:, 40:].sum()) / 2
        return {"empty": False, "half_mass": float(mass)}

    def floors(self, frame: Frame, embed: Embed | None = None) -> dict[str, Measures]:
        return {"uniform_heatmap": self.measure([np.ones(frame.size)] * 2, frame)}


def test_a_new_protocol_of_several_questions_runs_with_all_its_files(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROTOCOLS, "halves", Halves())
    asked = []
    original = evaluation.Bench.heatmap

    def heatmap(self: Any, name: str, query: Any) -> np.ndarray:
        asked.append((name, query))
        return original(self, name, query)

    monkeypatch.setattr(evaluation.Bench, "heatmap", heatmap)
    methods = "layer_grad_cam,layer_activation"
    assert run(methods=methods, protocols="boxes,halves", limit="2", figures=True) == 0
    result = results()
    assert result["counts"]["measured"] == {"boxes": 2, "halves": 1}
    assert value(result, "uniform_heatmap", "halves", "half_mass") == pytest.approx(0.5)
    # A map of activations answers both questions alike, with all of its mass in both halves.
    assert value(result, "layer_activation", "halves", "half_mass") == pytest.approx(0.5)
    questions = [q.references for name, q in asked if name == "layer_grad_cam" and q.asked]
    assert len(questions) == 2
    assert torch.equal(questions[0][0], questions[1][1])
    assert "half mass" in Path("run/results.md").read_text()
    assert "half_mass" in Path("run/results.csv").read_text()
    assert "half mass" in Path("run/report.html").read_text()
    assert run("alone", methods=methods, protocols="halves", figures=True) == 0
