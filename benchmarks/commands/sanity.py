"""``python -m benchmarks sanity``: do maps change when the network is replaced by a random one?"""

from __future__ import annotations

from benchmarks.runs.folder import resumable
from benchmarks.runs.sanity import SanitySettings, sanity


def run(settings: SanitySettings) -> None:
    with resumable(settings.output):
        sanity(settings)


Settings = SanitySettings
