"""The reductions that were chosen on training classes, and the one place where they are kept.

``python -m benchmarks reductions`` measures the candidates and writes the file; docs/results/
holds the table that the choice was made from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.core.files import write_json
from benchmarks.methods.method import Method
from benchmarks.methods.reductions import Reduction

PATH = Path(__file__).with_suffix(".json")


def with_chosen_reductions(method: Method) -> Method:
    """The method with the reductions of the file, if there are any."""
    chosen = {
        question: Reduction(**by_name[method.name])
        for question, by_name in _read().items()
        if method.name in by_name
    }
    return replace(method, reductions=chosen)


def save(question: str, chosen: Mapping[str, Reduction]) -> None:
    """Put the choice for a question into the file; methods not named keep theirs."""
    kept = _read()
    of_question = {
        **kept.get(question, {}),
        **{name: {"channels": one.channels, "sigma": one.sigma} for name, one in chosen.items()},
    }
    write_json(PATH, {**kept, question: of_question})


def _read() -> dict[str, dict[str, dict[str, Any]]]:
    if not PATH.exists():
        return {}
    table: dict[str, dict[str, dict[str, Any]]] = json.loads(PATH.read_text(encoding="utf-8"))
    return table
