"""The files of a finished run: results.json, results.csv and results.md."""

from __future__ import annotations

import csv
import io
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.core.files import write_json, write_text
from benchmarks.metrics.localization import THRESHOLDS
from benchmarks.protocols.boxes import IOU_UNIT
from benchmarks.results.tables import as_markdown, counts_text, forward_text, table_rows

# 2: every method has intervals, differences to the main method, and costs.
# 3: pointing game, PxAP (pixel_counts in the images), and the faithfulness protocol.
SCHEMA_VERSION = 3
PACKAGES = ("captum-embed", "captum", "torch", "torchvision", "numpy", "pillow", "scikit-image")
FIGURES = (
    "score", "mask_score", "accuracy_at_0.2", "mean_accuracy_0.15_to_0.25", "max_box_acc",
    "max_box_acc_v2", "pxap", "pointing", "mask_pointing", "deletion", "insertion",
)  # fmt: skip
CSV_COLUMNS = (
    "method", "title", "family", "protocol", "num_images", "num_empty", "num_not_finite",
    "num_masks", *FIGURES, "max_box_acc_threshold", "median_seconds", "times_forward",
    "peak_memory_bytes", "unavailable",
    *(f"{figure}_{end}" for figure in FIGURES for end in ("low", "high")),
    *(f"{figure}_difference{end}" for figure in FIGURES for end in ("", "_low", "_high")),
)  # fmt: skip


def package_versions() -> dict[str, str]:
    """Versions that results depend on, Python's among them."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def machine(device: str) -> dict[str, Any]:
    """What times depend on."""
    found: dict[str, Any] = {"processor": _processor(), "cores": os.cpu_count()}
    if torch.device(device).type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def header() -> dict[str, Any]:
    """How results.json is to be read."""
    return {
        "schema_version": SCHEMA_VERSION,
        "thresholds": [round(float(threshold), 2) for threshold in THRESHOLDS],
        "iou_unit": f"1/{IOU_UNIT}, rounded down",
    }


def write_results(folder: Path, results: Mapping[str, Any]) -> list[Path]:
    """All three files, from the content of results.json.

    Args:
        folder (Path): of the run.
        results (Mapping): `header`, settings, versions, data, methods, counts, summary, images.

    Returns:
        list of Path: what was written.
    """
    return [write_json(folder / "results.json", results), *write_tables(folder, results)]


def write_tables(folder: Path, results: Mapping[str, Any]) -> list[Path]:
    """results.csv and results.md, from the content of results.json."""
    return [
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
            row = {**about[name], "method": name, "protocol": protocol, **_flat(numbers)}
            writer.writerow(row)
    for method in methods:
        if method.get("unavailable"):
            writer.writerow({**method, "method": method["name"]})
    return buffer.getvalue()


def _flat(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a method with the ends of their intervals beside them."""
    flat = dict(numbers)
    for figure, ends in numbers["intervals"].items():
        flat |= dict(zip((f"{figure}_low", f"{figure}_high"), ends, strict=True))
    for figure in FIGURES:
        if found := numbers.get("difference", {}).get(figure):
            names = (f"{figure}_difference{end}" for end in ("", "_low", "_high"))
            flat |= dict(zip(names, found, strict=True))
    return flat


def markdown(results: Mapping[str, Any]) -> str:
    """The table with the images behind it, the methods not in it, and the command."""
    titles = {method["name"]: method["title"] for method in results["methods"]}
    parts = [
        as_markdown(table_rows(results["summary"], titles)),
        "In brackets: 95% bootstrap intervals over images. " + _compared_with(results, titles),
        counts_text(results["counts"], results["data"]) + ".",
    ]
    if forward := forward_text(results["forward"]):
        parts.append(forward[0].upper() + forward[1:] + ".")
    missing = [m for m in results["methods"] if m.get("unavailable")]
    if missing:
        parts.append(
            "Not available: " + "; ".join(f"{m['title']} ({m['unavailable']})" for m in missing)
        )
    parts.append(f"```\n{results['command']}\n```")
    return "\n\n".join(parts) + "\n"


def _compared_with(results: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    main = results["main_method"]
    if main is None:
        return "None of our methods is in this run, so there are no differences to it."
    return f"Minus main: the difference to {titles[main]} on the same images, in percentage points."
