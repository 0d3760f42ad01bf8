"""What grows with a bank: mining of tuples, and what opening its files takes."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.banks import CLASS_SIZE
from benchmarks.speed.comparison import WIDTH, Comparison, Setup
from captum_embed import TripletForward, WeightBank
from captum_embed.weight_bank.mining import NUM_TUPLES, mine_tuples
from captum_embed.weight_bank.tuples import AllTuples

# Of an entry whose files are opened; few, so that a million of them fit on a small disk.
OPENED_WEIGHTS = 50


def sizes(setup: Setup) -> list[int]:
    """Powers of ten from a thousand up to the largest bank, or that bank alone."""
    powers = [10**power for power in range(3, 9) if 10**power <= setup.entries]
    return powers or [setup.entries]


def mining(setup: Setup) -> Iterator[Comparison]:
    """The hardest tuples of an image against all of its tuples: once each, and their memory."""
    forward = TripletForward(nn.Identity())
    for count in sizes(setup):
        labels = torch.arange(count) % max(2, count // CLASS_SIZE)
        embeddings = _around_centres(labels)
        anchors = torch.randperm(count)[: setup.num_anchors]
        hardest = partial(
            mine_tuples,
            forward,
            embeddings,
            labels,
            num_tuples=NUM_TUPLES,
            mining="hardest",
            seed=0,
            anchors=anchors,
        )
        seconds, megabytes = measured(hardest)
        others, others_megabytes = measured(partial(_all_tuples, forward, embeddings, labels))
        of_one, of_one_by_all = seconds / len(anchors), others / count
        facts = {
            "ratio": of_one / of_one_by_all,
            "ms hardest": 1000 * of_one,
            "ms all": 1000 * of_one_by_all,
            "MB hardest": megabytes,
            "MB all": others_megabytes,
        }
        yield Comparison(
            f"{NUM_TUPLES} hardest triplets of an image, of {count:,}",
            "all its triplets in closed form",
            facts={name: value for name, value in facts.items() if not math.isnan(value)},
        )


def _around_centres(labels: Tensor) -> Tensor:
    """Unit vectors (B, D), those of a class around one."""
    centres = torch.randn(int(labels.max()) + 1, WIDTH)
    rows = centres[labels].add_(torch.randn(len(labels), WIDTH))
    return rows.div_(rows.norm(dim=1, keepdim=True))


def _all_tuples(forward: TripletForward, embeddings: Tensor, labels: Tensor) -> None:
    tuples = AllTuples(forward, embeddings, labels)
    for indices in torch.arange(len(labels)).split(1024):
        anchors = embeddings[indices].requires_grad_()
        tuples.losses(anchors, indices).sum().backward()


def measured(task: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of the processor, and megabytes that the process grew by; NaN but on Linux."""
    before = _resident(reset=True)
    started = time.process_time()
    task()
    seconds = time.process_time() - started
    return seconds, (_resident() - before) / 1000


def _resident(*, reset: bool = False) -> float:
    """Kilobytes of the process: the most since the last reset, which forgets what was before."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    except (OSError, StopIteration):
        return float("nan")


def opening(setup: Setup) -> Iterator[Comparison]:
    """A bank on disk, mapped as it is opened, against reading and comparing all of it."""
    for count in sizes(setup):
        bank = WeightBank(
            torch.randn(count, WIDTH).half(),
            torch.randn(count, OPENED_WEIGHTS).half(),
            torch.arange(count) // CLASS_SIZE,
            [f"photographs/{number}.jpg" for number in range(count)],
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "bank")
            bank.save(path)
            del bank
            size = sum(file.stat().st_size for file in path.iterdir())
            yield Comparison(
                f"opening a bank of {count:,} entries",
                "with its checksums",
                partial(WeightBank.load, path, verify=False),
                partial(WeightBank.load, path),
                facts={"MB": size / 1e6},
            )
