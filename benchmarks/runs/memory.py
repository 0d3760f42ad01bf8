"""Peak memory of every method on one image, beside the plain forward pass of the network.

It is what PyTorch's own allocator counts, on the CPU as on the GPU: the tensors held at once at
most, above those held before. What NumPy and other libraries take beside is not in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from benchmarks.core.files import write_json
from benchmarks.core.seeding import seeded
from benchmarks.protocols.protocol import Item
from benchmarks.runs.evaluation import Bench

MEASURED = "growth of the memory allocated by PyTorch"

Memory = dict[str, Any]


def peak_memory(bench: Bench, item: Item, path: Path, *, progress: bool) -> Memory | None:
    """Peak memory of every method on one item; read from a file when it is there.

    Args:
        bench (Bench): of the protocol that shows the item.
        item (Item): to explain.
        path (Path): JSON file that the answer is kept in.
        progress (bool): show a bar.

    Returns:
        dict: ``protocol``, ``image`` (its key), ``size`` (width, height), ``measured`` (in words),
            ``forward`` (bytes of the network's forward pass without gradients) and ``methods``
            (bytes by name). None for an item that the protocol leaves out.
    """
    if path.exists():
        kept: Memory = json.loads(path.read_text(encoding="utf-8"))
        return kept
    frame = bench.protocol.frame(item)
    if frame is None:
        return None
    query = bench.queries_of(item.key, frame)[0]
    height, width = frame.size
    peaks = {}
    for name in tqdm(bench.explainers, "memory", disable=not progress):
        with seeded(bench.plan.seed, bench.device):
            peaks[name] = peak_bytes(partial(bench.heatmap, name, query), bench.device)
    memory = {
        "protocol": bench.protocol.name,
        "image": item.key,
        "size": [width, height],
        "measured": MEASURED,
        "forward": peak_bytes(lambda: bench.embed(query.image), bench.device),
        "methods": peaks,
    }
    write_json(path, memory)
    return memory


def peak_bytes(task: Callable[[], Any], device: torch.device) -> int:
    """Bytes that a task's tensors take at most at once.

    Example:
        >>> def task():
        ...     torch.zeros(1000, 1000)
        ...     torch.zeros(500, 1000)
        >>> peak_bytes(task, torch.device("cpu"))
        4000000
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        task()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiled:
        task()
    assert profiled.profiler is not None
    held = peak = 0
    events = profiled.profiler.kineto_results.events()
    allocations = (event for event in events if event.name() == "[memory]")
    for event in sorted(allocations, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
