"""Evaluation of many items, in this process or in several."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import torch

from benchmarks.runs.evaluation import EvaluationPlan, Evaluator, Work

_evaluator: Evaluator | None = None


def threads_of(workers: int) -> int:
    """Threads of PyTorch in each process that evaluates."""
    return torch.get_num_threads() if workers == 1 else max(1, (os.cpu_count() or 1) // workers)


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
