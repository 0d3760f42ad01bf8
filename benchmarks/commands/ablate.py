"""``python -m benchmarks ablate``: the ablation study of transferred weights."""

from __future__ import annotations

from benchmarks.ablation.ablate import AblateSettings, ablate
from benchmarks.runs.folder import resumable


def run(settings: AblateSettings) -> None:
    with resumable(settings.output):
        ablate(settings)


Settings = AblateSettings
