"""The table and figure of an ablation, from the content of its ablation.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt

from benchmarks.report.chart_parts import ROW, with_field
from benchmarks.report.looks import COLOURS, GREY
from benchmarks.results.tables import as_markdown as as_table

HEADINGS = (
    "setting",
    "IoU≥0.5 at τ=0.2 [95%]",
    "least, τ 0.15-0.25",
    "best (τ)",
    "minus LOCALIZE [95%]",
)


def as_markdown(results: Mapping[str, Any]) -> str:
    """Both tables, with what they were made from."""
    counts = results["num_images"]
    parts = [
        f"Chosen on {counts['validation']} images of the training classes; {results['choice']}: "
        f"**{results['chosen']}**.",
        as_table([HEADINGS, *map(_cells, results["validation"])]),
    ]
    if results["test"]:
        parts.append(f"Reported once on {counts['test']} test images:")
        parts.append(as_table([HEADINGS, *map(_cells, results["test"])]))
    parts.append(f"```\n{results['command']}\n```")
    return "\n\n".join(parts) + "\n"


def _cells(row: Mapping[str, Any]) -> list[str]:
    accuracy, low, high = (100 * share for share in row["accuracy_at_0.2"])
    difference, least, most = (100 * share for share in row["difference_at_0.2"])
    forwards = f" ({row['forwards']} forwards)" if row["forwards"] > 1 else ""
    return [
        f"{row['axis']}: {row['name']}{forwards}",
        f"{accuracy:.1f} [{low:.1f}, {high:.1f}]",
        f"{100 * row['least_accuracy_0.15_to_0.25']:.1f}",
        f"{100 * row['max_box_acc'][0]:.1f} ({row['max_box_acc_threshold']:.2f})",
        f"{difference:+.1f} [{least:+.1f}, {most:+.1f}]",
    ]


def ablation_chart(results: Mapping[str, Any]) -> Any:
    """Accuracy at 0.2 with its interval, and at the best threshold, a line per setting."""
    rows = [
        {"axis": row["axis"], "label": f"{row['axis']}: {row['name']}",
         **dict(zip(("value", "low", "high"), row["accuracy_at_0.2"], strict=True)),
         "best": row["max_box_acc"][0]}
        for row in results["validation"]
    ]  # fmt: skip
    axes = list(dict.fromkeys(row["axis"] for row in rows))
    title = "images with IoU ≥ 0.5; full: at τ = 0.2, with 95% interval; hollow: at the best τ"
    x = alt.X("value:Q", title=title, axis=alt.Axis(format=".0%")).scale(domain=[0, 1])
    y = alt.Y("label:N", sort=[row["label"] for row in rows], title=None,
              axis=alt.Axis(grid=False, ticks=False))  # fmt: skip
    hues = [COLOURS[number % len(COLOURS)] for number in range(len(axes))]
    hue = alt.Color("axis:N", legend=None).scale(domain=axes, range=hues)
    base = alt.Chart(alt.Data(values=rows)).encode(y, hue)
    return alt.layer(
        alt.Chart(alt.Data(values=rows[:1])).mark_rule(color=GREY).encode(x),
        base.mark_rule(strokeWidth=1.6).encode(with_field(x, "low:Q"), alt.X2("high:Q")),
        base.mark_point(filled=True, size=45, opacity=1).encode(x),
        base.mark_point(shape="diamond", size=45).encode(with_field(x, "best:Q")),
    ).properties(
        width=420, height=ROW * len(rows),
        title=alt.Title(
            "Accuracy by setting",
            subtitle=f"{results['num_images']['validation']} images of the training classes",
        ),
    )  # fmt: skip
