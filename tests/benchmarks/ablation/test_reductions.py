"""The choice of reductions on a tiny network and a few of the embedded photographs."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.ablation import reductions
from benchmarks.core.settings import INTERRUPTED
from benchmarks.datasets import composition, embedded
from benchmarks.datasets.cut_outs import CLASSES
from benchmarks.datasets.embedded import write_embedded
from benchmarks.methods import chosen_reductions, select

NETWORK = """
import torch
from torch import nn
from benchmarks.networks.build import EmbeddingNetwork

def build():
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 6, 9, stride=8), nn.ReLU())
    return EmbeddingNetwork(features, nn.Linear(6, 4, bias=False))
"""
LOSS, SALIENCY = select(["layer_grad_cam_loss", "saliency"])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes, at half the size."""
    folder = tmp_path_factory.mktemp("data") / "embedded"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "CLASSES", CLASSES[:4])
        patch.setattr(composition, "SIZES", ((250, 188), (188, 250)))
        return write_embedded(folder, images_per_class=2, progress=False)


@pytest.fixture
def place(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "networks_of_reductions.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(chosen_reductions, "PATH", tmp_path / "chosen.json")
    return data


def run(command: str, data: Path, *options: str) -> int:
    common = {
        "data": str(data), "train-classes": "1-2", "test-classes": "3-4", "protocols": "boxes",
        "network": "networks_of_reductions:build", "methods": "layer_grad_cam_loss,saliency",
        "device": "cpu", "output": command, "num-resamples": "20",
    }  # fmt: skip
    words = [word for name, value in common.items() for word in (f"--{name}", value)]
    return main([command, "--no-progress", *words, *options])


def chosen(folder: str = "reductions") -> dict[str, Any]:
    results: dict[str, Any] = json.loads(Path(folder, "reductions.json").read_text())
    return results


def test_a_candidate_s_value_is_what_the_benchmark_reports_for_it(place: Path) -> None:
    assert run("reductions", place, "--save") == 0
    assert run("localize", place, "--no-figures") == 0
    reported = json.loads(Path("localize", "results.json").read_text())["summary"]
    loss, saliency = chosen()["methods"]
    boxes = reported["saliency"]["boxes"]["figures"]["max_box_acc"]["value"]
    assert saliency["values"][str(SALIENCY.reduction("where"))] == pytest.approx(boxes)
    assert saliency["num_images"] == 4
    # A second reading of another's map has nothing to choose.
    assert list(loss["values"]) == [str(LOSS.customary)]
    saved = json.loads(chosen_reductions.PATH.read_text())["where"]
    assert list(saved) == ["saliency"]
    (best,) = [
        name for name in saliency["values"] if saved["saliency"] == reductions_of("saliency")[name]
    ]
    assert saliency["values"][saliency["best"]] == max(saliency["values"].values())
    assert best == saliency["chosen"]


def reductions_of(name: str) -> dict[str, dict[str, Any]]:
    (method,) = select([name])
    return {
        str(one): {"channels": one.channels, "sigma": one.sigma}
        for one in reductions.candidates(method)
    }


def test_an_interrupted_choice_goes_on_to_the_same(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("reductions", place) == 0
    record, calls = reductions.ReductionBench.record, []

    def interrupted(self: Any, work: Any) -> Any:
        calls.append(work.key)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return record(self, work)

    with monkeypatch.context() as patch:
        patch.setattr(reductions.ReductionBench, "record", interrupted)
        assert run("reductions", place, "--output", "parts") == INTERRUPTED
    assert run("reductions", place, "--output", "parts") == 0
    assert chosen("parts")["methods"] == chosen()["methods"]
    assert not chosen_reductions.PATH.exists()


def test_of_several_as_good_the_first_is_chosen() -> None:
    names = [str(one) for one in reductions.candidates(SALIENCY)]
    values = dict.fromkeys(names, 0.25) | {names[2]: 0.75, names[4]: 0.75}
    records = [{"methods": {"saliency": values}}, {"methods": {}}]
    (row,) = reductions.summary(records, [LOSS, SALIENCY], "mosaic")
    assert (row["chosen"], row["num_images"]) == (names[2], 1)


@pytest.mark.parametrize(
    ("gains", "changes"),
    [
        # Resamples of 20 equal gains are all above zero; of one gain and 19 ties about a third
        # hold the ties alone.
        ([0.2] * 20, True),
        ([0.9] + [0.0] * 19, False),
        ([0.3, -0.2] * 10, False),
    ],
)
def test_the_customary_reduction_stays_where_another_is_better_by_chance(
    gains: list[float], changes: bool
) -> None:
    customary, other = (
        str(one) for one in (SALIENCY.customary, reductions.candidates(SALIENCY)[2])
    )
    names = [str(one) for one in reductions.candidates(SALIENCY)]
    records = [
        {"methods": {"saliency": dict.fromkeys(names, 0.3) | {other: 0.3 + gain}}} for gain in gains
    ]
    (row,) = reductions.summary(records, [SALIENCY], "mosaic", num_resamples=1000)
    assert row["best"] == other
    assert row["chosen"] == (other if changes else customary)
    assert row["gain"][0] == pytest.approx(sum(gains) / len(gains))
    table = reductions.as_markdown([row], reductions.deciding_figure("mosaic"), "command")
    assert f"| {'best' if changes else 'customary'} |" in table


def test_a_customary_reduction_that_is_the_best_is_called_customary() -> None:
    names = [str(one) for one in reductions.candidates(SALIENCY)]
    values = dict.fromkeys(names, 0.3) | {str(SALIENCY.customary): 0.5}
    records = [{"methods": {"saliency": values}}] * 5
    (row,) = reductions.summary(records, [SALIENCY], "mosaic", num_resamples=100)
    assert row["best"] == row["chosen"] == str(SALIENCY.customary)
    table = reductions.as_markdown([row], reductions.deciding_figure("mosaic"), "command")
    assert table.splitlines()[2].endswith("| customary |")


@pytest.mark.parametrize("protocol", ["attention", "boxes,mosaic"])
def test_a_protocol_without_a_deciding_figure_is_refused(
    protocol: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("reductions", place, "--protocols", protocol) == 1
    assert "expected one of boxes, mosaic" in capsys.readouterr().err
