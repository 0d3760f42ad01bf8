"""Evaluation of many items, in this process or in several."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.core.seeding import seed_of
from benchmarks.runs.evaluation import EvaluationPlan, Evaluator, Work
from benchmarks.runs.folder import RunFolder
from benchmarks.runs.settings import LocalizeSettings
from captum_embed.errors import InputError
from captum_embed.weight_bank.processes import Processes

_evaluator: Evaluator | None = None


def threads_of(workers: int) -> int:
    """Threads of PyTorch in each process that evaluates."""
    return torch.get_num_threads() if workers == 1 else max(1, (os.cpu_count() or 1) // workers)


def require_same_works(processes: Processes, works: Sequence[Work]) -> None:
    """Refuses processes that would not share the same items.

    Raises:
        InputError: One has other items than this one.
    """
    text = json.dumps([[work.key, list(work.items)] for work in works])
    own = hashlib.sha256(text.encode()).hexdigest()
    for rank, other in enumerate(processes.exchange(own)):
        if other != own:
            raise InputError(
                f"process {rank} has other images to measure than process {processes.rank}; start "
                "all of them with the same data and settings, on machines of one kind"
            )


def evaluate(
    settings: LocalizeSettings,
    plan: EvaluationPlan,
    run: RunFolder,
    works: Sequence[Work],
    processes: Processes,
) -> None:
    """Measure this process's share of what has no record yet."""
    missing = [work for work in works if work.key not in run.done]
    if len(missing) < len(works) and processes.rank == 0:
        print(f"going on: {len(works) - len(missing)} of {len(works)} images are done")
    # At random, so that a run that ends early has measured a sample; those of slow methods first.
    missing = sorted(missing, key=lambda work: seed_of(settings.seed, work.key))
    missing = missing[processes.rank :: processes.count]
    ends = time.monotonic() + 60 * (math.inf if settings.minutes is None else settings.minutes)
    if not missing:
        return
    bar = tqdm(
        total=len(missing),
        desc="test images",
        unit="image",
        disable=not settings.progress,
    )
    with bar:
        for record in evaluate_all(plan, missing, settings.workers):
            run.add(record)
            bar.update()
            if time.monotonic() >= ends:
                break


def evaluate_all(
    plan: EvaluationPlan, works: Sequence[Work], workers: int
) -> Iterator[dict[str, Any]]:
    """Records of the items, each as soon as it is ready, so in any order with several workers.

    Args:
        plan (EvaluationPlan): every worker builds its own network from it.
        works (sequence of Work): to evaluate.
        workers (int): processes; 1 is this one.
    """
    if workers == 1:
        evaluator = Evaluator(plan)
        for work in works:
            yield evaluator.record(work)
        return
    threads = threads_of(workers)
    # Spawned, not forked: a forked process cannot use CUDA, and inherits OpenMP's locks.
    executor = ProcessPoolExecutor(
        min(workers, max(1, len(works))),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=start_worker,
        initargs=(plan, threads),
    )
    try:
        for finished in as_completed([executor.submit(_work, work) for work in works]):
            yield finished.result()
    finally:
        executor.shutdown(cancel_futures=True)


def start_worker(plan: EvaluationPlan, threads: int) -> None:
    global _evaluator
    # Control-C reaches the whole process group; only the main process answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_main_process, daemon=True).start()
    torch.set_num_threads(threads)
    _evaluator = Evaluator(plan)


def _end_with_main_process() -> None:
    """A main process that was killed can stop nobody, and its workers would wait forever."""
    main = multiprocessing.parent_process()
    if main is not None:
        main.join()
        os._exit(1)


def _work(work: Work) -> dict[str, Any]:
    assert _evaluator is not None
    return _evaluator.record(work)


def overheads(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """What an item costs, by protocol, as a multiple of what its methods compute: the median.

    Example:
        >>> measured = {"seconds": 3.0, "methods_seconds": 2.0}
        >>> overheads([{"key": "a", "protocols": {"boxes": measured}}])
        {'boxes': 1.5}
    """
    ratios: dict[str, list[float]] = {}
    for record in records:
        for protocol, measured in record.get("protocols", {}).items():
            if measured.get("methods_seconds"):
                one = measured["seconds"] / measured["methods_seconds"]
                ratios.setdefault(protocol, []).append(one)
    return {protocol: float(np.median(of_items)) for protocol, of_items in ratios.items()}
