"""The charts of a run as files, and the summary as they read it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.metrics.localization import THRESHOLDS
from benchmarks.report.cost import cost_plot, draw_costs
from benchmarks.report.faithfulness import draw_faithfulness, faithfulness_lines
from benchmarks.report.figures import curve_lines, draw_curves, save_figure
from benchmarks.report.flat import flat
from benchmarks.results.tables import images_of


def write_figures(run: Path, results: Mapping[str, Any]) -> list[Path]:
    """Curve, cost, deletion and insertion, each as PNG and SVG; what the run lacks is left out."""
    subtitle = images_of(results)
    results = flat(results)
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
