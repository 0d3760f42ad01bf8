"""The files of a finished run: results.json, results.csv and results.md."""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.files import write_json, write_text
from benchmarks.metrics.localization import THRESHOLDS
from benchmarks.protocols import IOU_UNIT
from benchmarks.report.tables import as_markdown, counts_text, table_rows

SCHEMA_VERSION = 1
PACKAGES = ("captum-embed", "captum", "torch", "torchvision", "numpy", "pillow", "scikit-image")
CSV_COLUMNS = (
    "method", "title", "family", "protocol", "num_images", "num_empty", "num_not_finite", "score",
    "mask_score", "num_masks", "accuracy_at_0.2", "mean_accuracy_0.15_to_0.25", "max_box_acc",
    "max_box_acc_threshold", "max_box_acc_v2", "median_seconds", "unavailable",
)  # fmt: skip


def package_versions() -> dict[str, str]:
    """Versions that results depend on, Python's among them."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def write_results(folder: Path, results: Mapping[str, Any]) -> list[Path]:
    """All three files, from the content of results.json.

    Args:
        folder (Path): of the run.
        results (Mapping): settings, versions, data, methods, counts, summary, images.

    Returns:
        list of Path: what was written.
    """
    content = {
        "schema_version": SCHEMA_VERSION,
        "thresholds": [round(float(threshold), 2) for threshold in THRESHOLDS],
        "iou_unit": f"1/{IOU_UNIT}, rounded down",
        **results,
    }
    return [
        write_json(folder / "results.json", content),
        write_text(folder / "results.csv", as_csv(results["summary"], results["methods"])),
        write_text(folder / "results.md", markdown(results)),
    ]


def as_csv(summary: Mapping[str, Mapping[str, Any]], methods: Sequence[Mapping[str, Any]]) -> str:
    """One row per method and protocol; a method that cannot serve the network has one row."""
    about = {method["name"]: method for method in methods}
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for name, protocols in summary.items():
        for protocol, numbers in protocols.items():
            writer.writerow({**about[name], "method": name, "protocol": protocol, **numbers})
    for method in methods:
        if method.get("unavailable"):
            writer.writerow({**method, "method": method["name"]})
    return buffer.getvalue()


def markdown(results: Mapping[str, Any]) -> str:
    """The table with the images behind it, the methods not in it, and the command."""
    titles = {method["name"]: method["title"] for method in results["methods"]}
    parts = [
        as_markdown(table_rows(results["summary"], titles)),
        counts_text(results["counts"], results["data"]) + ".",
    ]
    missing = [m for m in results["methods"] if m.get("unavailable")]
    if missing:
        parts.append(
            "Not available: " + "; ".join(f"{m['title']} ({m['unavailable']})" for m in missing)
        )
    parts.append(f"```\n{results['command']}\n```")
    return "\n\n".join(parts) + "\n"
