"""Two ways to the same end, timed in alternation: a turn of one, a turn of the other, and so on.

A ratio within one run outlives the machine; seconds do not.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

WIDTH = 512  # Numbers of an embedding, and channels of a layer, where none are computed.


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What the comparisons share.

    Args:
        encoder (nn.Module): embeds images; its parameters are frozen.
        layer (nn.Module): the layer explained.
        images (Tensor): 16 images (16, 3, S, S).
        entries (int): of the largest bank.
        num_anchors (int): of each bank that are mined for.
        num_images (int): of the bank that is built.
        device (torch.device): of the encoder and the images.
    """

    encoder: nn.Module
    layer: nn.Module
    images: Tensor
    entries: int
    num_anchors: int
    num_images: int
    device: torch.device


@dataclass(frozen=True)
class Comparison:
    """What is to be timed against what.

    Args:
        what (str): the part of the library.
        against (str): what a user would pay without it.
        ours, theirs (Callable, optional): run each; None where nothing is timed.
        queries (int): that ``ours`` answers, for their number per second; 0: none.
        facts (dict): further figures by name, such as a recall.
        missing (str): a package that has to be installed first, and how.
    """

    what: str
    against: str
    ours: Callable[[], Any] | None = None
    theirs: Callable[[], Any] | None = None
    queries: int = 0
    facts: dict[str, float] = field(default_factory=dict)
    missing: str = ""


@dataclass(frozen=True)
class Ratio:
    """A comparison that was made.

    Args:
        part (str): of the library or its costs.
        what (str): as in `Comparison`.
        against (str): likewise.
        ratio (float, optional): median of the ratios of all turns; None: a package is missing.
        seconds (float, optional): median of the part itself; None: nothing was timed.
        facts (dict): as in `Comparison`.
        missing (str): likewise.
    """

    part: str
    what: str
    against: str
    ratio: float | None
    seconds: float | None
    facts: dict[str, float]
    missing: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def compared(part: str, pair: Comparison, turns: int, device: torch.device) -> Ratio:
    """Both run once for nothing, then turn by turn.

    Args:
        part (str): named in the result.
        pair (Comparison): of which ``facts["ratio"]`` counts where nothing is timed.
        turns (int): of each.
        device (torch.device): waited for.

    Example:
        >>> pair = Comparison("a sum", "itself", lambda: sum(range(9)), lambda: sum(range(9)))
        >>> compared("sums", pair, 3, torch.device("cpu")).ratio > 0
        True
    """
    facts = dict(pair.facts)
    ratio, seconds = facts.pop("ratio", None), None
    if pair.ours is not None and pair.theirs is not None:
        pair.ours()
        pair.theirs()
        turned = [
            (_seconds(pair.ours, device), _seconds(pair.theirs, device)) for _ in range(turns)
        ]
        ratio = statistics.median(one / other for one, other in turned)
        seconds = statistics.median(one for one, _ in turned)
        if pair.queries:
            facts["queries per second"] = pair.queries / seconds
    return Ratio(part, pair.what, pair.against, ratio, seconds, facts, pair.missing)


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    clock = time.process_time if _one_thread(device) else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - started


def _one_thread(device: torch.device) -> bool:
    """Of one thread, the time of the processor tells the same, and no other program adds to it."""
    # Windows counts it in steps of 16 ms.
    return device.type == "cpu" and os.name == "posix" and torch.get_num_threads() == 1


def machine_of(device: torch.device) -> dict[str, Any]:
    """What the times depend on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "times": "of the processor" if _one_thread(device) else "by the clock",
        "load_before": os.getloadavg()[1] if hasattr(os, "getloadavg") else None,
    }


def as_markdown(ratios: list[Ratio], about: dict[str, Any], command: str) -> str:
    """The table, the machine and the command."""
    rows = "\n".join(
        f"| {r.what} | {r.against} | {_number(r.ratio, 2)} | {_milliseconds(r)} | {_facts(r)} |"
        for r in ratios
    )
    machine = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in about.items())
    return (
        f"| what | against | ratio | ms | besides |\n|---|---|---:|---:|---|\n{rows}\n\n"
        f"Medians of turns taken in alternation. Machine: {machine}.\n\n```\n{command}\n```\n"
    )


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _milliseconds(ratio: Ratio) -> str:
    return "" if ratio.seconds is None else _number(1000 * ratio.seconds, 1)


def _facts(ratio: Ratio) -> str:
    digits = {name: 3 if abs(value) < 10 else 0 for name, value in ratio.facts.items()}
    told = [f"{name} {_number(value, digits[name])}" for name, value in ratio.facts.items()]
    return ", ".join([*told, ratio.missing] if ratio.missing else told)
