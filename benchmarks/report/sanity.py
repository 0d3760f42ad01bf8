"""The table and figure of a randomisation check, from the content of its sanity.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report.figures import COLOURS, DASHES, STYLE
from benchmarks.results.tables import as_markdown as as_table

TITLES = {"rank_correlation": "rank correlation", "ssim": "SSIM"}


def as_markdown(results: Mapping[str, Any]) -> str:
    """The table with what it was made from."""
    parts = [
        f"Maps of the trained network against those of the network with random parameters, "
        f"absolute values, {results['num_images']} images; mean [95% bootstrap interval]. Near 0: "
        f"the map depends on what was re-initialised. The floor, {results['floor']}: the trained "
        "network's maps of two images.",
        as_table(_rows(results)),
        "Re-initialised: "
        + "; ".join(f"{stage}: {_named(units)}" for stage, units in results["stages"].items())
        + ".",
    ]
    if missing := [m for m in results["methods"] if m["unavailable"]]:
        parts.append(
            "Not available: " + "; ".join(f"{m['title']} ({m['unavailable']})" for m in missing)
        )
    parts.append(f"```\n{results['command']}\n```")
    return "\n\n".join(parts) + "\n"


def _named(units: list[str]) -> str:
    return ", ".join(units) if len(units) <= 6 else f"{len(units)} parts, {units[0]} to {units[-1]}"


def _rows(results: Mapping[str, Any]) -> list[list[str]]:
    titles = {method["name"]: method["title"] for method in results["methods"]}
    stages = [*results["stages"], results["floor"]]
    rows = [
        ["method", *(f"{title}, {stage}" for title in TITLES.values() for stage in stages), "empty"]
    ]
    for name, found in results["summary"].items():
        cells = [
            "{:.2f} [{:.2f}, {:.2f}]".format(*found[stage][figure])
            for figure in TITLES
            for stage in stages
        ]
        rows.append([titles[name], *cells, str(sum(of["num_empty"] for of in found.values()))])
    return rows


def draw_sanity(results: Mapping[str, Any]) -> Figure:
    """Each figure over the stages, a line per method with its intervals."""
    about = {method["name"]: method for method in results["methods"]}
    # The trained network's maps are what the others are compared to.
    stages = [None, *results["stages"], results["floor"]]
    num_methods = len(results["summary"])
    with mpl.rc_context(STYLE):
        height = max(3.4, 1.2 + 0.17 * num_methods)
        figure = Figure(figsize=(9.6, height), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (key, title) in zip(panels, TITLES.items(), strict=True):
            for number, (name, found) in enumerate(results["summary"].items()):
                # Side by side, so that intervals do not hide each other.
                aside = 0.3 * (number / max(1, num_methods - 1) - 0.5)
                style = {
                    "color": COLOURS[number % len(COLOURS)],
                    "ls": DASHES[about[name]["family"]],
                    "label": about[name]["title"],
                }
                *values, floor = ([1.0] * 3 if s is None else found[s][key] for s in stages)
                _draw_line(
                    axes, [0, *(aside + 1 + n for n in range(len(values) - 1))], values, style
                )
                _draw_line(axes, [aside + len(values)], [floor], {**style, "label": None})
            axes.axhline(0, color="black", alpha=0.35, lw=0.8)
            axes.axvline(len(stages) - 1.5, color="black", alpha=0.35, lw=0.8)
            axes.set_xticks(
                range(len(stages)), ["trained", *(s.replace(" ", "\n") for s in stages[1:])]
            )
            axes.set(title=title, xlabel="re-initialised, from the head down")
        panels[0].set_ylabel("alike to the trained network's map")
        handles, labels = panels[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside right upper", fontsize=7, frameon=False)
    return figure


def _draw_line(
    axes: Axes, places: Sequence[float], values: Sequence[Sequence[float]], style: dict[str, Any]
) -> None:
    """Means over places, each with its interval (mean, low, high)."""
    axes.errorbar(
        places,
        [mean for mean, _, _ in values],
        yerr=[
            [max(0.0, mean - low) for mean, low, _ in values],
            [max(0.0, high - mean) for mean, _, high in values],
        ],
        marker="o",
        ms=3,
        lw=1.2,
        elinewidth=0.8,
        **style,
    )
