"""``python -m benchmarks speed``: ratios of running times, measured side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.core.files import require_writable_folder, write_json, write_text
from benchmarks.core.settings import DeviceSettings, as_command, as_json, positive_int, setting
from benchmarks.results.files import package_versions
from benchmarks.runs.speed import Ratio, as_markdown, measure


@dataclass(frozen=True, kw_only=True)
class SpeedSettings(DeviceSettings):
    output: Path = setting("folder for speed.json and speed.md", parse=Path)
    side: int = setting("of the square images, in pixels", default=224, parse=positive_int)
    turns: int = setting("of each pair; the median counts", default=7, parse=positive_int)
    entries: int = setting("of the largest bank", default=100_000, parse=positive_int)
    images: int = setting("of the bank that is built", default=64, parse=positive_int)
    seed: int = setting("of network, images and embeddings", default=0, parse=int)
    progress: bool = setting("show a progress bar", default=True)


def run(settings: SpeedSettings) -> list[Ratio]:
    """Measure, print the table and write both files."""
    require_writable_folder(settings.output, "--output")
    ratios, about = measure(
        device=settings.device,
        side=settings.side,
        turns=settings.turns,
        entries=settings.entries,
        images=settings.images,
        seed=settings.seed,
        progress=settings.progress,
    )
    command = as_command("benchmarks speed", settings)
    table = as_markdown(ratios, about, command)
    write_json(
        settings.output / "speed.json",
        {
            "command": command,
            "settings": as_json(settings),
            "versions": package_versions(),
            "machine": about,
            "ratios": [ratio.as_json() for ratio in ratios],
        },
    )
    write_text(settings.output / "speed.md", table)
    print(table)
    return ratios


Settings = SpeedSettings
