"""The files of a finished run: results.json, images.parquet, results.csv and results.md."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.core.files import write_json, write_text
from benchmarks.metrics.localization import THRESHOLDS
from benchmarks.protocols.registry import PROTOCOLS
from benchmarks.results.images import ImageTable
from benchmarks.results.summary import declared
from benchmarks.results.tables import (
    as_markdown,
    counts_text,
    forward_text,
    retrieval_text,
    table_rows,
)
from captum_embed.errors import InputError

# 4: figures by their declarations; what was measured on each image stands in images.parquet.
SCHEMA_VERSION = 4
PACKAGES = ("captum-embed", "captum", "torch", "torchvision", "numpy", "pillow", "scikit-image")
ENDS = ("low", "high")
DIFFERENCES = ("difference", "difference_low", "difference_high")


def package_versions() -> dict[str, str]:
    """Versions that results depend on, Python's among them."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def machine(device: str) -> dict[str, Any]:
    """What times depend on."""
    facts: dict[str, Any] = {"processor": _processor(), "cores": os.cpu_count()}
    if torch.device(device).type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


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
    }


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
            "command again with another --output"
        )
    checked: dict[str, Any] = results
    return checked


def write_results(folder: Path, results: Mapping[str, Any], images: ImageTable) -> list[Path]:
    """All files of a finished run.

    Args:
        folder (Path): of the run.
        results (Mapping): content of results.json.
        images (ImageTable): what it was made from.

    Returns:
        list of Path: what was written, results.json first.
    """
    return [
        write_json(folder / "results.json", results),
        images.write(folder),
        *write_tables(folder, results),
    ]


def write_tables(folder: Path, results: Mapping[str, Any]) -> list[Path]:
    """results.csv and results.md, from the content of results.json."""
    return [
        write_text(folder / "results.csv", as_csv(results)),
        write_text(folder / "results.md", markdown(results)),
    ]


def as_csv(results: Mapping[str, Any]) -> str:
    """One row per method and protocol; a method that cannot serve the network has one row."""
    methods = results["methods"]
    about = {method["name"]: method for method in methods}
    buffer = io.StringIO()
    columns = _csv_columns(results)
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for name, protocols in results["summary"].items():
        for protocol, numbers in protocols.items():
            row = {**about[name], "method": name, "protocol": protocol, **_flat(numbers)}
            writer.writerow(row)
    for method in methods:
        if method.get("unavailable"):
            writer.writerow({**method, "method": method["name"]})
    return buffer.getvalue()


def _csv_columns(results: Mapping[str, Any]) -> list[str]:
    """The same for every run of this version: those of all protocols are there."""
    declarations = [*declared(list(PROTOCOLS)), *results["figures"]]
    figures = list(dict.fromkeys(figure["key"] for figure in declarations))
    reached = dict.fromkeys(f"{f['key']}_{f['at']}" for f in declarations if f["at"])
    return [
        "method", "title", "family", "protocol", "num_images", "num_empty", "num_not_finite",
        "num_masks", *figures, *reached, "median_seconds", "times_forward", "peak_memory_bytes",
        "unavailable",
        *(f"{figure}_{end}" for figure in figures for end in ENDS),
        *(f"{figure}_{end}" for figure in figures for end in DIFFERENCES),
    ]  # fmt: skip


def _flat(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a method in one row: each figure, and what belongs to it beside it."""
    flat = dict(numbers)
    for figure, values in numbers["figures"].items():
        flat |= {f"{figure}_{part}": number for part, number in values.items()}
        flat[figure] = values["value"]
    return flat


def markdown(results: Mapping[str, Any]) -> str:
    """The table with the images behind it, the methods not in it, and the command."""
    titles = {method["name"]: method["title"] for method in results["methods"]}
    parts = [
        as_markdown(table_rows(results)),
        "In brackets: 95% bootstrap intervals over images. " + _compared_with(results, titles),
        counts_text(results["counts"], results["data"]) + ".",
    ]
    if retrieval := results.get("mark_retrieval"):
        parts.append(retrieval_text(retrieval).capitalize() + ".")
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
    shares = all(figure["unit"] == "%" for figure in results["figures"] if figure["lead"])
    points = ", in percentage points" if shares else ""
    return f"Minus main: the difference to {titles[main]} on the same images{points}."
