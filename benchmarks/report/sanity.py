"""The table and figure of a randomisation check, from the content of its sanity.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt

from benchmarks.report.chart_parts import HEIGHT, colour, dash
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
    for name, found in results["summary"].items():
        asked = [*((stage, figure) for figure in TITLES for stage in stages), (RANDOM, RISE)]
        cells = ["{:.2f} [{:.2f}, {:.2f}]".format(*found[stage][figure]) for stage, figure in asked]
        rows.append([titles[name], *cells, str(sum(of["num_empty"] for of in found.values()))])
    return rows


def sanity_chart(results: Mapping[str, Any]) -> Any:
    """Each figure over the stages, a line per method with its intervals; the floor apart."""
    # The trained network's maps are what the others are compared to.
    stages = ["trained", *results["stages"], results["floor"]]
    measured = [method for method in results["methods"] if method["name"] in results["summary"]]
    looks = looks_of(measured, results.get("main_method"))
    present = list(looks.values())
    panels = []
    for key, title in TITLES.items():
        rows = [
            {**look.row(), "stage": stage, "apart": stage == results["floor"],
             **dict(zip(("value", "low", "high"), _at(results, look.method, stage, key),
                        strict=True))}
            for look in sorted(present, key=lambda look: look.named)
            for stage in stages
        ]  # fmt: skip
        axis = alt.Axis(labelAngle=0, labelExpr="split(datum.label, ' ')", grid=False, labelLimit=0)
        x = alt.X("stage:N", title="re-initialised, from the head down", axis=axis,
                  scale=alt.Scale(domain=stages))  # fmt: skip
        aside = alt.XOffset("label:N", sort=[look.label for look in present])
        alike = "alike to the trained network's map"
        y = alt.Y("value:Q", title=alike)
        strength = alt.expr("datum.named ? 1 : 0.4")
        base = alt.Chart(alt.Data(values=rows))
        hue, each = colour(present), alt.Detail("apart:N")
        lines = base.mark_line(strokeWidth=1.5, opacity=strength)
        ends = base.mark_rule(strokeWidth=1, opacity=strength)
        dots = base.mark_point(filled=True, size=26, opacity=strength)
        panels.append(
            alt.layer(
                lines.encode(x, y, aside, hue, dash(present), each),
                ends.encode(
                    x, alt.Y("low:Q", title=alike), alt.Y2("high:Q"), aside, hue,
                ),
                dots.encode(x, y, aside, hue, tooltip=[alt.Tooltip("label:N"), "value:Q"]),
            ).properties(width=74 * len(stages), height=HEIGHT, title=alt.Title(title))
        )  # fmt: skip
    return alt.hconcat(*panels)


def _at(results: Mapping[str, Any], method: str, stage: str, key: str) -> list[float]:
    """Mean and interval; the trained network's maps are alike to themselves."""
    if stage == "trained":
        return [1.0, 1.0, 1.0]
    found: list[float] = results["summary"][method][stage][key]
    return found
