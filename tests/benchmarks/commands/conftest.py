"""Small runs of localize, and two processes of one job, as torchrun starts them."""

import contextlib
import io
import json
import multiprocessing
import os
import shutil
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.__main__ import main
from benchmarks.runs import evaluation

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


@pytest.fixture(scope="session")
def localized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
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
def finished(place: Path, localized: tuple[Path, str]) -> str:
    """A working folder with a copy of the finished run; what it printed."""
    shutil.copytree(localized[0] / "run", place / "run")
    return localized[1]


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


# One of the processes; with something done first.
ONE_OF_THE_PROCESSES = """
import contextlib, os, sys
os.environ.update({environment!r})
os.chdir({folder!r})
sys.path.insert(0, os.getcwd())
from benchmarks.runs import evaluation
from benchmarks.__main__ import main
{first}
with open({log!r}, "w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
    code = main({words!r})
os._exit(code)
"""

TwoProcesses = Callable[..., list[int | None]]


@pytest.fixture
def run_by_two_processes(monkeypatch: pytest.MonkeyPatch) -> TwoProcesses:
    """Runs a command (words, and code that the second does first); gives the exit codes.

    What was printed is in a log of each, in the working folder.
    """
    monkeypatch.setenv("PYTHONPATH", str(Path(evaluation.__file__).parents[2]))

    def run(words: Sequence[str], first: str = "") -> list[int | None]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        # A server that has imported everything starts them: that takes most of the time.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.commands.localize"])
        processes = []
        for rank in range(2):
            environment = {
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            code = ONE_OF_THE_PROCESSES.format(
                environment=environment,
                folder=os.getcwd(),
                first=first if rank else "",
                log=f"log{rank}.txt",
                words=list(words),
            )
            process = context.Process(
                target=exec, args=(f"import os; os.chdir({os.getcwd()!r})" + code, {})
            )
            process.start()
            processes.append(process)
        for process in processes:
            process.join(120)
        return [process.exitcode for process in processes]

    return run
