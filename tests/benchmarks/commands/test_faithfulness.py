"""``python -m benchmarks faithfulness`` on a network and data of a second or two."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.__main__ import main
from benchmarks.core.command_line import INTERRUPTED
from benchmarks.runs import evaluation

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
    rng = np.random.default_rng(0)
    lines = ["image,label,x,y,width,height"]
    for label, colour in enumerate(COLOURS, start=1):
        for index in range(3):
            name = f"{label}-{index}.png"
            (tmp_path / "data").mkdir(exist_ok=True)
            pixels = np.array(colour) + rng.integers(-20, 16, (80, 90, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / "data" / name)
            lines.append(f"{name},{label},10,10,60,50")
    (tmp_path / "data" / "boxes.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "tiny_encoders.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def run(output: str = "run", **changes: str) -> int:
    options = {
        "data": "data", "train-classes": "1-2", "test-classes": "3-6", "device": "cpu",
        "network": "tiny_encoders:build", "methods": METHODS, "output": output,
        "num-resamples": "50", "num-mosaics": "3", "limit": "2",
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return main(["faithfulness", "--no-progress", "--no-figures", *words])


def results(folder: str = "run") -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(Path(folder, "results.json").read_text())
    return loaded


def measured(folder: str) -> list[dict[str, Any]]:
    table = pq.read_table(Path(folder, "images.parquet"))
    return table.drop_columns(["seconds", "forward_seconds"]).to_pylist()


def test_it_measures_mosaics_and_deletion_with_all_their_files(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    printed = capsys.readouterr().out
    found = results()
    assert found["command"].startswith("python -m benchmarks faithfulness ")
    assert found["counts"]["measured"] == {"mosaic": 3, "deletion": 2}
    tried = found["counts"]["tried"]["mosaic"]
    assert tried >= 3
    assert f"3 measured (mosaic, of {tried} tried)" in printed
    assert f"of {tried} tried" in Path("run/results.md").read_text()
    header = Path("run/results.csv").read_text()
    for key in (
        "mosaic_mass", "mosaic_pointing", "mosaic_foil_mass", "mosaic_foil_pointing",
        "deletion_spearman", "srg",
    ):  # fmt: skip
        assert key in header
    summary = found["summary"]
    for name in ("uniform_heatmap", "layer_activation"):
        figures = summary[name]["mosaic"]["figures"]
        assert [figures[key]["value"] for key in figures] == pytest.approx([0.25] * 4)
    assert summary["similarity_grad_cam"]["mosaic"]["figures"]["mosaic_mass"]["value"] > 0.25
    floor = summary["uniform_heatmap"]["deletion"]["figures"]
    assert floor["deletion_spearman"]["value"] == floor["srg"]["value"] == 0
    # Its questions bring their references: no tuples were mined.
    assert not list(Path("run/cache").rglob("queries*"))


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
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("whole") == 0
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
    assert measured("parts") == measured("whole")


def test_slow_methods_take_some_items_of_each_protocol(place: Path) -> None:
    assert run(methods="occlusion,layer_activation", budget="4", slow_limit="1") == 0
    summary = results()["summary"]
    for name, counts in {"occlusion": (1, 1), "layer_activation": (3, 2)}.items():
        found = tuple(summary[name][p]["num_images"] for p in ("mosaic", "deletion"))
        assert found == counts


def test_too_few_classes_are_refused_before_banks_are_built(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(test_classes="3-5") == 1
    assert "4 test classes" in capsys.readouterr().err
    assert not list(Path("run/cache").iterdir())
