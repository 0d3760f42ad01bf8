"""``python -m benchmarks speed``: ratios of running times, measured side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.core.files import require_writable_folder, write_json, write_text
from benchmarks.core.settings import (
    DeviceSettings,
    as_command,
    as_json,
    names,
    positive_int,
    setting,
    whole_number,
)
from benchmarks.results.files import package_versions
from benchmarks.speed.comparison import Ratio, as_markdown
from benchmarks.speed.measure import PARTS, draw, measure
from captum_embed.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SpeedSettings(DeviceSettings):
    output: Path = setting("folder for speed.json, .md, .png and .svg", parse=Path)
    parts: tuple[str, ...] = setting(f"of {', '.join(PARTS)}", default=tuple(PARTS), parse=names)
    side: int = setting("of the square images, in pixels", default=224, parse=positive_int)
    turns: int = setting("of each comparison; the median counts", default=7, parse=positive_int)
    entries: int = setting("of the largest bank", default=100_000, parse=positive_int)
    anchors: int = setting(
        "of each bank that are mined for; each by itself, so that some tell the time of all",
        default=1000,
        parse=positive_int,
    )
    images: int = setting("of the bank that is built", default=64, parse=positive_int)
    seed: int = setting("of network, images and embeddings", default=0, parse=whole_number)
    progress: bool = setting("show a progress bar", default=True)


def run(settings: SpeedSettings) -> list[Ratio]:
    """Measure, print the table and write the files."""
    require_writable_folder(settings.output, "--output")
    unknown = [part for part in settings.parts if part not in PARTS]
    if unknown:
        raise InputError(f"unknown part {', '.join(unknown)}; known: {', '.join(PARTS)}")
    ratios, about = measure(
        settings.parts,
        device=settings.device,
        side=settings.side,
        turns=settings.turns,
        entries=settings.entries,
        anchors=settings.anchors,
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
    draw(settings.output, ratios)
    print(table)
    return ratios


Settings = SpeedSettings
