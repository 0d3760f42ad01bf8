"""Peak memory of every method on one image, beside the plain forward pass of the network.

On the CPU, Linux alone says how much a process held at most, and allocators keep what they were
given back. So every method runs in a process forked off one in which the network is loaded and
has run, and nothing else has: what that process grows by at most is what the method takes, on one
thread, whatever ran before. On CUDA it is what PyTorch's allocator counts.
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.core.files import write_json
from benchmarks.datasets.records import ImageRecord
from benchmarks.runs.evaluation import Bench, EvaluationPlan, Evaluator

# For one method on one image; a child that takes longer is given up.
TIME_LIMIT = 1800.0
STATUS = Path("/proc/self/status")
FORKED = "growth of the resident memory of a process of its own, 1 thread"
ALLOCATED = "growth of the memory allocated by PyTorch on the GPU"

Memory = dict[str, Any]


def largest_image(records: Sequence[Mapping[str, Any]], protocol: str) -> str | None:
    """Key of the largest image that a protocol measured, the first of several; or None."""
    sizes = {
        record["key"]: measured["size"][0] * measured["size"][1]
        for record in records
        if "size" in (measured := record.get("protocols", {}).get(protocol, {}))
    }
    return min(sizes, key=lambda key: (-sizes[key], key)) if sizes else None


def peak_memory(
    plan: EvaluationPlan, protocol: str, image: ImageRecord, *, progress: bool
) -> Memory:
    """Peak memory of every method of a plan on one image; read from the cache when it is there.

    Args:
        plan (EvaluationPlan): of the run.
        protocol (str): how the image is shown.
        image (ImageRecord): one that this protocol can show.
        progress (bool): show a bar.

    Returns:
        dict: ``protocol``, ``image`` (its key), ``size`` (width, height), ``measured`` (in words),
            ``forward`` (bytes of the network's forward pass without gradients) and ``methods``
            (bytes by name). Bytes are above what was held before; None where that cannot be told.
    """
    path = plan.cache / "memory.json"
    if path.exists():
        found: Memory = json.loads(path.read_text(encoding="utf-8"))
        return found
    # Not forked off this process, which has threads and a past; see above.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=context) as executor:
            found = executor.submit(_measure, plan, protocol, image, progress).result()
    except (BrokenProcessPool, OSError) as error:
        # A long run is not lost for want of one column.
        warnings.warn(f"peak memory could not be measured: {error}", stacklevel=2)
        return {"protocol": protocol, "measured": None, "forward": None, "methods": {}}
    write_json(path, found)
    return found


def _measure(plan: EvaluationPlan, protocol: str, image: ImageRecord, progress: bool) -> Memory:
    # Control-C reaches the whole process group; only the main process answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    bench = Evaluator(plan).benches[protocol]
    frame = bench.protocol.frame(image)
    assert frame is not None
    height, width = frame.size
    tasks = _tasks(bench, image, frame.image)
    tasks["forward"]()
    on_gpu = bench.device.type == "cuda"
    peaks = {
        name: _allocated(task) if on_gpu else _forked(task, tasks["forward"])
        for name, task in tqdm(tasks.items(), "memory", disable=not progress)
    }
    return {
        "protocol": protocol,
        "image": image.key,
        "size": [width, height],
        "measured": ALLOCATED if on_gpu else FORKED,
        "forward": peaks.pop("forward"),
        "methods": {name.removeprefix("method "): peak for name, peak in peaks.items()},
    }


def _tasks(bench: Bench, image: ImageRecord, pixels: torch.Tensor) -> dict[str, Callable[[], Any]]:
    query = bench.query(image.key, pixels)

    @torch.no_grad()
    def forward() -> None:
        bench.network(query.image)

    def task(name: str) -> Callable[[], Any]:
        return lambda: bench.heatmap(name, query)

    return {"forward": forward, **{f"method {name}": task(name) for name in bench.explainers}}


def _allocated(task: Callable[[], Any]) -> int | None:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    task()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _forked(task: Callable[[], Any], forward: Callable[[], Any]) -> int | None:
    if not STATUS.exists():
        return None
    _give_back_freed_memory()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _child(task, forward, writer)
    os.close(writer)
    try:
        ready, _, _ = select.select([reader], [], [], TIME_LIMIT)
        answer = os.read(reader, 100) if ready else b""
        if not ready:
            os.kill(child, signal.SIGKILL)
    finally:
        os.close(reader)
        os.waitpid(child, 0)
    return int(answer) if answer else None


def _child(task: Callable[[], Any], forward: Callable[[], Any], writer: int) -> None:
    """Run the task and tell the growth; nothing of the parent's exit handlers runs."""
    status = 1
    try:
        # A forked process faults the libraries' pages in anew; they are not the method's. Every
        # method holds a forward pass, so that this one raises nobody's peak.
        forward()
        _give_back_freed_memory()
        before = _resident("VmRSS")
        task()
        os.write(writer, str(max(0, _resident("VmHWM") - before)).encode())
        status = 0
    finally:
        os._exit(status)


def _resident(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"{STATUS} has no {field}")


def _give_back_freed_memory() -> None:
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
