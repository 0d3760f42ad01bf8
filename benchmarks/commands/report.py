"""``python -m benchmarks report``: the tables, figures and page of a finished run, made again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.core.settings import setting
from benchmarks.metrics.localization import THRESHOLDS
from benchmarks.report.cost import cost_plot, draw_costs
from benchmarks.report.faithfulness import draw_faithfulness, faithfulness_lines
from benchmarks.report.figures import curve_lines, draw_curves, save_figure
from benchmarks.report.html import write_html
from benchmarks.results.files import SCHEMA_VERSION, write_tables
from benchmarks.results.tables import images_of
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


def write_figures(run: Path, results: Mapping[str, Any]) -> list[Path]:
    """Curve, cost, deletion and insertion, each as PNG and SVG; what the run lacks is left out."""
    subtitle = images_of(results)
    figures = {}
    if lines := curve_lines(results["summary"], results["methods"], banded=results["main_method"]):
        figures["curve"] = draw_curves(lines, THRESHOLDS, subtitle)
    if plot := cost_plot(results):
        figures["cost"] = draw_costs(plot, subtitle)
    if pairs := faithfulness_lines(results["summary"], results["methods"]):
        figures["faithfulness"] = draw_faithfulness(pairs, subtitle)
    return [
        save_figure(figure, run / f"{name}.{kind}")
        for name, figure in figures.items()
        for kind in ("png", "svg")
    ]


def run(settings: ReportSettings) -> None:
    results = read_results(settings.run)
    paths = write_tables(settings.run, results)
    paths += write_figures(settings.run, results)
    paths.append(write_html(settings.run, results, images=settings.images))
    print("\n".join(str(path) for path in paths))


Settings = ReportSettings
