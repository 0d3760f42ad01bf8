"""The summary of a run with a method's numbers side by side, as the charts read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flat(results: Mapping[str, Any]) -> dict[str, Any]:
    """Content of results.json with each figure and curve also directly among the numbers."""
    summary = {
        name: {protocol: _flat(numbers) for protocol, numbers in protocols.items()}
        for name, protocols in results["summary"].items()
    }
    return {**results, "summary": summary}


def _flat(numbers: Mapping[str, Any]) -> dict[str, Any]:
    figures, curves = numbers["figures"], numbers["curves"]
    intervals: dict[str, Any] = {key: [one["low"], one["high"]] for key, one in figures.items()}
    intervals |= {f"{name}_curve": [one["low"], one["high"]] for name, one in curves.items()}
    values = {key: one["value"] for key, one in figures.items()}
    lines = {f"{name}_curve": one["y"] for name, one in curves.items()}
    return {**numbers, **values, **lines, "intervals": intervals}
