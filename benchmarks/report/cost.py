"""What a method costs, beside one plain forward pass of the same network in the same run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.results.summary import Record, shown


def with_costs(
    summary: Mapping[str, Mapping[str, Mapping[str, Any]]],
    records: Sequence[Record],
    memory: Mapping[str, Any] | None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """A summary in which every method also has its cost.

    Args:
        summary (Mapping): of `benchmarks.results.summary.summarize`.
        records (sequence of dict): the same that it was made from.
        memory (Mapping, optional): of `benchmarks.runs.memory.peak_memory`.

    Returns:
        dict: the summary with ``"times_forward"``, the median over images of the method's time
            over that of the plain forward pass on the same image, and, in the protocol that it
            was measured in, ``"peak_memory_bytes"``; None where they cannot be told.
    """
    enriched: dict[str, dict[str, dict[str, Any]]] = {}
    for name, protocols in summary.items():
        enriched[name] = {}
        for protocol, numbers in protocols.items():
            ratios = _ratios(shown(records, protocol), name)
            enriched[name][protocol] = {
                **numbers,
                "times_forward": float(np.median(ratios)) if ratios else None,
                "peak_memory_bytes": memory["methods"].get(name)
                if memory is not None and memory["protocol"] == protocol
                else None,
            }
    return enriched


def _ratios(images: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [
        image["methods"][name]["seconds"] / image["forward_seconds"]
        for image in images
        if image["methods"].get(name, {}).get("seconds") is not None
        and image.get("forward_seconds")
    ]


def forward_costs(
    records: Sequence[Record], protocols: Sequence[str], memory: Mapping[str, Any] | None
) -> dict[str, dict[str, Any]]:
    """The plain forward pass: ``{protocol: {"median_seconds", "peak_memory_bytes"}}``."""
    costs = {}
    for protocol in protocols:
        seconds = [i["forward_seconds"] for i in shown(records, protocol) if "forward_seconds" in i]
        here = memory is not None and memory["protocol"] == protocol
        costs[protocol] = {
            "median_seconds": float(np.median(seconds)) if seconds else None,
            "peak_memory_bytes": memory["forward"] if memory is not None and here else None,
        }
    return costs
