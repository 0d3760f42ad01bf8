"""``python -m benchmarks report``: the tables, figures and page of a finished run, made again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.core.settings import setting
from benchmarks.report.charts import charts_of, save_charts
from benchmarks.report.page import write_page
from benchmarks.report.panels import read_panels
from benchmarks.results.files import SCHEMA_VERSION, write_tables
from captum_embed.errors import InputError


@dataclass(frozen=True)
class ReportSettings:
    run: Path = setting("folder of a finished run, with its results.json", parse=Path)
    images: bool = setting("images and maps in the page, where the run has them", default=True)


def read_results(run: Path) -> dict[str, Any]:
    """Content of results.json.

    Raises:
        InputError: there is none, it is damaged, or another version wrote it.
    """
    path = run / "results.json"
    if not path.is_file():
        raise InputError(f"{run} holds no finished run: there is no {path.name} in it")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    version = results.get("schema_version") if isinstance(results, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {version}, expected {SCHEMA_VERSION}; start the run's "
            "command again: it computes nothing anew and writes results.json as it is now"
        )
    found: dict[str, Any] = results
    return found


def run(settings: ReportSettings) -> None:
    results = read_results(settings.run)
    paths = write_tables(settings.run, results)
    paths += save_charts(settings.run, charts_of(results))
    panels = read_panels(settings.run) if settings.images else None
    paths.append(write_page(settings.run, results, panels))
    print("\n".join(str(path) for path in paths))


Settings = ReportSettings
