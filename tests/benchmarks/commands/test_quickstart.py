"""``python -m benchmarks quickstart`` on a network and data of a second or two."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks.__main__ import main
from benchmarks.commands.quickstart import QuickstartSettings, train_network
from benchmarks.core.settings import ClassNumbers

NETWORK = """
import torch
from safetensors.torch import load_file
from torch import nn
from benchmarks.networks.build import EmbeddingNetwork

def build(checkpoint=None):
    torch.manual_seed(0)
    features = nn.Sequential(
        nn.Conv2d(3, 8, 8, stride=8), nn.ReLU(), nn.Conv2d(8, 20, 2, stride=2), nn.ReLU()
    )
    network = EmbeddingNetwork(features, nn.Linear(20, 8, bias=False)).eval()
    if checkpoint is not None:
        network.load_state_dict(load_file(checkpoint))
    return network
"""
COLOURS = [(230, 60, 60), (60, 220, 70), (60, 60, 240), (220, 220, 60), (80, 80, 80), (20, 90, 160)]
METHODS = ["ours_localize", "ours_explain", "layer_activation", "saliency", "lafam"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network, and three images of each of six colours, in which a run was made."""
    folder = tmp_path_factory.mktemp("quickstart")
    rng = np.random.default_rng(0)
    lines = ["image,label,x,y,width,height"]
    (folder / "data").mkdir()
    for label, colour in enumerate(COLOURS, start=1):
        for index in range(3):
            name = f"{label}-{index}.png"
            pixels = np.array(colour) + rng.integers(-20, 16, (80, 90, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "data" / name)
            # Far from where any map could be: every box is wrong.
            lines.append(f"{name},{label},0,0,2,2")
    (folder / "data" / "boxes.csv").write_text("\n".join(lines) + "\n")
    (folder / "trained_encoders.py").write_text(NETWORK)
    return folder


@pytest.fixture(autouse=True)
def in_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))


def run(output: str = "run", **changes: str) -> int:
    options = {
        "data": "data", "train-classes": "1-2", "test-classes": "3-6", "device": "cpu",
        "network": "trained_encoders:build", "methods": ",".join(METHODS), "output": output,
        "num-resamples": "50", "num-mosaics": "2", "limit": "3", "steps": "3",
        **changes,
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return main(["quickstart", "--no-progress", "--no-figures", *words])


@pytest.fixture(scope="module")
def told() -> list[str]:
    """What each run in one folder has printed."""
    return []


@pytest.fixture
def printed(told: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """By the first run."""
    if not told:
        assert run() == 0
        told.append(capsys.readouterr().out)
    return told[0]


def test_it_trains_and_tells_how_unseen_classes_are_retrieved(printed: str) -> None:
    assert "trained on 6 images of classes 1-2" in printed
    assert "12 images of other classes (3-6)" in printed
    trained = load_file("run/network.safetensors")
    from trained_encoders import build

    start = build().state_dict()
    assert all(not torch.equal(trained[name], start[name]) for name in start)
    settings = QuickstartSettings(
        data="data",
        train_classes=ClassNumbers([1, 2]),
        test_classes=ClassNumbers([3, 4, 5, 6]),
        network="trained_encoders:build",
        output=Path("again"),
        steps=3,
        device="cpu",
        progress=False,
    )
    train_network(settings, Path("again/network.safetensors"))
    again = load_file("again/network.safetensors")
    assert all(torch.equal(trained[name], again[name]) for name in trained)


def test_a_second_run_neither_trains_nor_measures(
    printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [Path("run/network.safetensors"), Path("run/records.jsonl")]
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    assert run() == 0
    told = capsys.readouterr().out
    assert "trained on" not in told
    assert "going on: 5 of 5 images are done" in told
    assert [(file.read_bytes(), file.stat().st_mtime_ns) for file in files] == before


def test_every_method_is_a_sentence_beside_both_answers(printed: str) -> None:
    results = json.loads(Path("run/results.json").read_text())
    table = printed.split("Where is the object?")[1].split("\nBest")[0]
    assert "What does the match rest on?" in table
    for sentence in (
        "Ours. Shows what differs from the border of the image, distractors too.",
        "Ours. Shows what makes the image match its references",
        "Mean of the channels, whatever the match.",
        "No map: a box around every image.",
    ):
        assert " ".join(table.split()).count(sentence) == 1
    for method in results["methods"]:
        mass = results["summary"][method["name"]].get("mosaic", {}).get("figures")
        if mass:
            share = f"{100 * mass['mosaic_mass']['value']:.1f}"
            (row,) = (line for line in table.split("\n") if line.startswith(method["title"]))
            assert share in row


def test_the_best_answers_are_those_of_the_results(printed: str) -> None:
    results = json.loads(Path("run/results.json").read_text())
    titles = {method["name"]: method["title"] for method in results["methods"]}
    masses = {
        name: results["summary"][name]["mosaic"]["figures"]["mosaic_mass"]["value"]
        for name in METHODS
    }
    best = "; ".join(titles[n] for n, mass in masses.items() if mass == max(masses.values()))
    (line,) = (line for line in printed.split("\nBest")[1].split("\n") if "share" in line)
    assert line.endswith(f": {best}")


def test_a_row_of_zeros_has_its_reason_beside_it(printed: str) -> None:
    results = json.loads(Path("run/results.json").read_text())
    zeros = [
        name
        for name in METHODS
        if not results["summary"][name]["boxes"]["figures"]["accuracy_at_0.2"]["value"]
    ]
    assert zeros == METHODS
    words = " ".join(printed.split())
    assert words.count("Wrong boxes: 3; ") == len([*METHODS, "centre_box", "whole_image"])
    assert "3 of them the object and much more" in words


def test_both_questions_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("neither", protocols="boxes") == 1
    assert "the two questions need boxes and mosaic" in capsys.readouterr().err
    assert not Path("neither").exists()
