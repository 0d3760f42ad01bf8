"""``python -m benchmarks report``: makes tables, charts and page of a finished run again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.core.settings import setting
from benchmarks.report.charts import charts_of, save_charts
from benchmarks.report.page import write_page
from benchmarks.report.panels import read_panels
from benchmarks.results.files import read_results, write_tables


@dataclass(frozen=True)
class ReportSettings:
    run: Path = setting("folder of a finished run, with its results.json", parse=Path)
    images: bool = setting("images and maps in the page, where the run has them", default=True)


def run(settings: ReportSettings) -> None:
    results = read_results(settings.run)
    paths = write_tables(settings.run, results)
    paths += save_charts(settings.run, charts_of(results))
    panels = read_panels(settings.run) if settings.images else None
    paths.append(write_page(settings.run, results, panels))
    print("\n".join(str(path) for path in paths))


Settings = ReportSettings
