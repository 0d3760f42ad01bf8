"""``python -m benchmarks localize``: every method on one data set."""

from __future__ import annotations

from benchmarks.runs.folder import resumable
from benchmarks.runs.localize import LocalizeSettings, localize


def run(settings: LocalizeSettings) -> None:
    with resumable(settings.output):
        localize(settings)


Settings = LocalizeSettings
