"""The table and figure of a randomisation check, from the content of its sanity.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import altair as alt

from benchmarks.report.chart_parts import lines
from benchmarks.report.looks import looks_of
from benchmarks.results.tables import as_markdown as as_table

TITLES = {"rank_correlation": "rank correlation", "ssim": "SSIM"}
# Compares the trained network with the one in which all is random.
RISE, RANDOM = "emprt", "all"


def as_markdown(results: Mapping[str, Any]) -> str:
    """The table with what it was made from."""
    parts = [
        f"Maps of the trained network against those of the network with random parameters, "
        f"absolute values, {results['num_images']} images; mean [95% bootstrap interval]. Near 0: "
        f"the map depends on what was re-initialised. The floor, {results['floor']}: the trained "
        "network's maps of two images. eMPRT: the relative rise of the signed map's complexity "
        "when all parameters are random (Hedstroem et al., 2024); above 0: training makes maps "
        "simpler.",
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
        [
            "method",
            *(f"{title}, {stage}" for title in TITLES.values() for stage in stages),
            "eMPRT",
            "empty",
        ]
    ]
    for name, stages_of in results["summary"].items():
        asked = [*((stage, figure) for figure in TITLES for stage in stages), (RANDOM, RISE)]
        cells = ["{:.2f} [{:.2f}, {:.2f}]".format(*stages_of[stage][figure])
                 for stage, figure in asked]  # fmt: skip
        empty = sum(stage["num_empty"] for stage in stages_of.values())
        rows.append([titles[name], *cells, str(empty)])
    return rows


def sanity_chart(results: Mapping[str, Any]) -> Any:
    """Each figure over the stages, a line per method with its intervals; the floor apart."""
    floor, stages = results["floor"], ["trained", *results["stages"], results["floor"]]
    measured = [method for method in results["methods"] if method["name"] in results["summary"]]
    present = list(looks_of(measured, results.get("main_method")).values())
    axis = alt.Axis(labelAngle=0, labelExpr="split(datum.label, ' ')", grid=False)
    x = alt.X("stage:N", title="re-initialised, from the head down", axis=axis)
    x = x.scale(domain=stages)
    y = alt.Y("value:Q", title="alike to the trained network's map")
    panels = []
    for key, title in TITLES.items():
        rows = [
            {**asdict(look), "stage": stage, "apart": stage == floor,
             **dict(zip(("value", "low", "high"), numbers, strict=True))}
            for look in sorted(present, key=lambda look: look.named)
            # The trained network's maps are alike to themselves.
            for stage, numbers in (
                ("trained", [1, 1, 1]),
                *((stage, results["summary"][look.method][stage][key]) for stage in stages[1:]),
            )
        ]  # fmt: skip
        panel = lines(rows, present, x, y, alt.Detail("apart:N"))
        panels.append(panel.properties(width=74 * len(stages), title=alt.Title(title)))
    return alt.hconcat(*panels)
