"""``python -m benchmarks reductions``: choose how each method's attributions become a map."""

from __future__ import annotations

from benchmarks.ablation.reductions import ReductionSettings, choose_reductions
from benchmarks.runs.folder import resumable


def run(settings: ReductionSettings) -> None:
    with resumable(settings.output):
        choose_reductions(settings)


Settings = ReductionSettings
