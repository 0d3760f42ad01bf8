"""What localize measures and writes."""

import csv
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.core.seeding import sample
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

from .conftest import METHODS, records, results, run, value, without_seconds, write_images


def test_a_run_writes_its_table_figures_and_every_record(finished: str) -> None:
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


def test_masks_are_scored_where_there_are_any(place: Path) -> None:
    shutil.rmtree("data")
    write_images(Path("data"), with_masks=True)
    assert run() == 0
    attention = results()["summary"]["saliency"]["attention"]
    assert attention["num_masks"] == 8
    figures = attention["figures"]
    # The mask lies within the box.
    assert 0 < figures["mask_score"]["value"] < figures["score"]["value"]


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
