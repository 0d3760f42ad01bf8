"""``python -m benchmarks faithfulness`` on a network and data of a second or two."""

import contextlib
import io
import json
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks.__main__ import main
from benchmarks.commands.faithfulness import FaithfulnessSettings
from benchmarks.core.settings import INTERRUPTED
from benchmarks.protocols.mark import NETWORKS
from benchmarks.runs import evaluation, marked

NETWORK = """
import torch
from torch import nn
from benchmarks.networks.build import EmbeddingNetwork

def build():
    torch.manual_seed(0)
    features = nn.Sequential(
        nn.Conv2d(3, 8, 8, stride=8), nn.ReLU(), nn.Conv2d(8, 20, 2, stride=2), nn.ReLU()
    )
    return EmbeddingNetwork(features, nn.Linear(20, 8, bias=False))
"""
COLOURS = [(230, 60, 60), (60, 220, 70), (60, 60, 240), (220, 220, 60), (80, 80, 80), (20, 90, 160)]
METHODS = "layer_activation,similarity_grad_cam"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a network, and three images of each of six colours."""
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a finished run, and what it printed."""
    place = tmp_path_factory.mktemp("finished")
    prepare(place)
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(place)
        patch.syspath_prepend(str(place))
        assert run() == 0
    return place / "run", printed.getvalue()


def prepare(folder: Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["image,label,x,y,width,height"]
    for label, colour in enumerate(COLOURS, start=1):
        for index in range(3):
            name = f"{label}-{index}.png"
            (folder / "data").mkdir(exist_ok=True)
            pixels = np.array(colour) + rng.integers(-20, 16, (80, 90, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "data" / name)
            lines.append(f"{name},{label},10,10,60,50")
    (folder / "data" / "boxes.csv").write_text("\n".join(lines) + "\n")
    (folder / "tiny_encoders.py").write_text(NETWORK)


def run(output: str = "run", **changes: str) -> int:
    return main(words_of(output, **changes))


def words_of(output: str, **changes: str) -> list[str]:
    options = {
        "data": "data", "train-classes": "1-2", "test-classes": "3-6", "device": "cpu",
        "network": "tiny_encoders:build", "methods": METHODS, "output": output,
        "num-resamples": "50", "num-mosaics": "3", "limit": "2", "protocols": "mosaic,deletion",
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return ["faithfulness", "--no-progress", "--no-figures", *words]


def results(folder: Path | str = "run") -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(Path(folder, "results.json").read_text())
    return loaded


def measured(folder: Path | str) -> list[dict[str, Any]]:
    table = pq.read_table(Path(folder, "images.parquet"))
    return table.drop_columns(["seconds", "forward_seconds"]).to_pylist()


def test_it_measures_mosaics_and_deletion_with_all_their_files(
    finished: tuple[Path, str],
) -> None:
    folder, printed = finished
    result = results(folder)
    assert result["command"].startswith("python -m benchmarks faithfulness ")
    assert result["counts"]["measured"] == {"mosaic": 3, "deletion": 2}
    tried = result["counts"]["tried"]["mosaic"]
    assert tried >= 3
    assert f"3 measured (mosaic, of {tried} tried)" in printed
    assert f"of {tried} tried" in (folder / "results.md").read_text()
    header = (folder / "results.csv").read_text()
    for key in (
        "mosaic_mass", "mosaic_pointing", "mosaic_foil_mass", "mosaic_foil_pointing",
        "deletion_spearman", "srg",
    ):  # fmt: skip
        assert key in header
    summary = result["summary"]
    for name in ("uniform_heatmap", "layer_activation"):
        figures = summary[name]["mosaic"]["figures"]
        assert [figures[key]["value"] for key in figures] == pytest.approx([0.25] * 4)
    assert summary["similarity_grad_cam"]["mosaic"]["figures"]["mosaic_mass"]["value"] > 0.25
    floor = summary["uniform_heatmap"]["deletion"]["figures"]
    assert floor["deletion_spearman"]["value"] == floor["srg"]["value"] == 0
    # Its questions bring their references: no tuples were mined.
    assert not list((folder / "cache").rglob("queries*"))


def test_deletion_is_asked_of_signed_maps(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[float]] = {"mosaic": [], "deletion": []}
    original = evaluation.Bench.heatmap

    def heatmap(self: Any, name: str, query: Any) -> np.ndarray:
        method, _ = self.explainers[name]
        brightness = query.image[:, :1] - query.image[:, :1].mean()
        self.explainers[name] = (method, lambda _: brightness)
        pixels = original(self, name, query)
        seen[self.protocol.name].append(float(pixels.min()))
        return pixels

    monkeypatch.setattr(evaluation.Bench, "heatmap", heatmap)
    assert run(methods="similarity_grad_cam") == 0
    assert len(seen["mosaic"]) == 3 * 8
    assert len(seen["deletion"]) == 2 * 2
    assert min(seen["mosaic"]) >= 0 > min(seen["deletion"])


def test_an_interrupted_run_goes_on_with_the_same_items(
    finished: tuple[Path, str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = evaluation.Evaluator.record
    with monkeypatch.context() as patch:
        calls: list[str] = []

        def interrupted(self: Any, work: Any) -> Any:
            calls.append(work.key)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return original(self, work)

        patch.setattr(evaluation.Evaluator, "record", interrupted)
        assert run("parts") == INTERRUPTED
    assert run("parts") == 0
    assert measured("parts") == measured(finished[0])


def test_the_processes_of_torchrun_give_the_numbers_of_one(
    finished: tuple[Path, str],
    place: Path,
    run_by_two_processes: Callable[..., list[int | None]],
) -> None:
    assert run_by_two_processes(words_of("parts")) == [0, 0]
    # In any order: a mosaic of one process, a deletion of the other.
    assert sorted(measured("parts"), key=str) == sorted(measured(finished[0]), key=str)
    for name, protocols in results(finished[0])["summary"].items():
        for protocol, numbers in protocols.items():
            assert results("parts")["summary"][name][protocol]["figures"] == numbers["figures"]
    assert results("parts")["counts"] == results(finished[0])["counts"]
    assert results("parts")["workers"] == 2


def test_slow_methods_take_some_items_of_each_protocol(place: Path) -> None:
    assert run(methods="occlusion,layer_activation", budget="4", slow_limit="1") == 0
    summary = results()["summary"]
    for name, counts in {"occlusion": (1, 1), "layer_activation": (3, 2)}.items():
        measured = tuple(summary[name][p]["num_images"] for p in ("mosaic", "deletion"))
        assert measured == counts


def test_too_few_classes_are_refused_before_banks_are_built(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(test_classes="3-5") == 1
    assert "4 test classes" in capsys.readouterr().err
    assert not list(Path("run/cache").iterdir())


def test_all_columns_are_there_and_swap_is_played_by_default(place: Path) -> None:
    assert FaithfulnessSettings(data="data", output=place).protocols == (
        "mosaic", "swap", "deletion",
    )  # fmt: skip
    assert run(protocols="swap", limit="3") == 0
    header = Path("run/results.csv").read_text().splitlines()[0].split(",")
    assert {
        "mosaic_mass", "mosaic_pointing", "mosaic_foil_mass", "mosaic_foil_pointing", "swap_1",
        "swap_5", "mark_difference", "mark_auroc", "deletion_spearman", "srg",
    } <= set(header)  # fmt: skip
    result = results()
    count = result["counts"]["measured"]["swap"]
    assert 0 < count <= 6
    assert result["counts"]["tried"]["swap"] >= count
    for name in METHODS.split(","):
        numbers = result["summary"][name]["swap"]
        assert numbers["num_images"] == count
        assert 0 <= numbers["figures"]["swap_1"]["value"] <= numbers["figures"]["swap_5"]["value"]
        assert numbers["curves"]["swap"]["y"][-1] == numbers["figures"]["swap_5"]["value"]


def write_objects(place: Path) -> None:
    """Grey things of one brightness for each class; colours are left to the marks."""
    rng = np.random.default_rng(0)
    lines = ["image,label,x,y,width,height"]
    for label in range(1, 7):
        for index in range(4):
            pixels = rng.integers(0, 40, (256, 256, 3))
            pixels[:90, :90] = 40 * label + rng.integers(0, 8, (90, 90, 1))
            name = f"{label}-{index}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / "data" / name)
            lines.append(f"{name},{label},0,0,90,90")
    (place / "data" / "boxes.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def retrieval(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, float]]:
    """What retrieval is said to follow; these tiny networks learn little."""
    recall = {name: {"mark": 0.1, "class": 0.8} for name in ("absent", "random")}
    recall["tied"] = {"mark": 0.9, "class": 0.05}
    networks = cycle(NETWORKS)
    monkeypatch.setattr(marked, "followed", lambda *_: recall[next(networks)])
    return recall


def test_the_mark_is_told_by_three_networks_of_one_start(
    place: Path, retrieval: dict[str, dict[str, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    write_objects(place)
    methods = "similarity_grad_cam,lafam,ours_explain_transfer"
    assert run(protocols="mark", methods=methods, mark_steps="2") == 0
    printed = capsys.readouterr().out
    assert "tied: by the mark 90.0%, by the class 5.0%" in printed
    result = results()
    assert result["mark_retrieval"] == retrieval
    assert "tied: by the mark 90.0%" in Path("run/results.md").read_text()
    edges = result["summary"]["edge_filter"]["mark"]["figures"]
    assert edges["mark_difference"]["value"] == 0
    assert edges["mark_auroc"]["value"] == 0.5
    for name in methods.split(","):
        numbers = result["summary"][name]["mark"]
        assert numbers["num_images"] == 2
        assert set(numbers["figures"]) == {
            "mark_difference", "mark_auroc", "mark_absent", "mark_tied", "mark_random",
        }  # fmt: skip
    states = [
        load_file(f"run/cache/{name}/mark/network.safetensors")
        for name in ("absent", "tied", "random")
    ]
    heads = [state["head.weight"] for state in states]
    assert not torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[1], heads[2])
    # Trained once: the same command reads the networks and the records.
    assert run(protocols="mark", methods=methods, mark_steps="2") == 0
    assert results()["summary"] == result["summary"]


def test_nothing_is_concluded_from_networks_that_did_not_learn(
    place: Path, retrieval: dict[str, dict[str, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    write_objects(place)
    retrieval["tied"] = {"mark": 0.2, "class": 0.7}
    assert run(protocols="mark", mark_steps="1") == 1
    assert "concludes nothing" in capsys.readouterr().err
    assert not Path("run/records.jsonl").exists()
    retrieval["tied"], retrieval["random"] = {"mark": 0.9, "class": 0.0}, {"mark": 0.9, "class": 0}
    assert run("other", protocols="mark", mark_steps="1") == 1
    assert "with marks at random the class" in capsys.readouterr().err
