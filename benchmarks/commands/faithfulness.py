"""``python -m benchmarks faithfulness``: do maps show what the embedding depends on?

The same run as ``localize``, with the protocols that know what a map should show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from benchmarks.core.settings import names, setting
from benchmarks.protocols.registry import FAITHFULNESS_PROTOCOLS, PROTOCOLS
from benchmarks.runs.folder import resumable
from benchmarks.runs.localize import localize
from benchmarks.runs.settings import LocalizeSettings


@dataclass(frozen=True, kw_only=True)
class FaithfulnessSettings(LocalizeSettings):
    command: ClassVar[str] = "faithfulness"

    protocols: tuple[str, ...] = setting(
        f"of {', '.join(PROTOCOLS)}", default=FAITHFULNESS_PROTOCOLS, parse=names
    )


def run(settings: FaithfulnessSettings) -> None:
    with resumable(settings.output):
        localize(settings)


Settings = FaithfulnessSettings
