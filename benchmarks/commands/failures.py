"""``python -m benchmarks failures``: how the boxes of a finished run miss, by method.

Reads results.json and computes no map anew: the predicted boxes at the paper's threshold are in
its records. What counts as which kind of miss is told in `benchmarks.metrics.outcomes`.

Data sets annotate one box for each image, so what a map does where there are several objects
cannot be told from it; failures.json names the images of every kind of miss, to be looked at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.commands.report import read_results
from benchmarks.core.files import write_json, write_text
from benchmarks.core.settings import as_command, names, setting
from benchmarks.metrics.bootstrap import NUM_RESAMPLES, bootstrap_interval
from benchmarks.metrics.floors import centre_box, whole_image_box
from benchmarks.metrics.localization import PAPER_THRESHOLD
from benchmarks.metrics.outcomes import OUTCOMES, object_sizes, outcomes, size_names
from benchmarks.protocols.boxes import AT_PAPER, IOU_UNIT
from benchmarks.report.chart_parts import save_charts
from benchmarks.report.failures import as_markdown, as_text, failures_chart
from benchmarks.results.summary import shown
from captum_embed.errors import InputError

SCHEMA_VERSION = 1
PROTOCOL = "boxes"
# Their boxes follow from the image's size alone, and are not in the records.
FLOOR_BOXES = {"centre_box": centre_box, "whole_image": whole_image_box}


@dataclass(frozen=True)
class FailuresSettings:
    run: Path = setting("folder of a finished run, with its results.json", parse=Path)
    methods: tuple[str, ...] = setting(
        "names of methods of the run, separated by commas (default: all of them)",
        default=(),
        parse=names,
    )
    output: Path | None = setting(
        "Markdown file; the JSON and the figure stand beside it "
        "(default: failures.md in the run's folder)",
        default=None,
        parse=Path,
    )
    progress: bool = setting("show a progress bar", default=True)


@dataclass(frozen=True)
class Predictions:
    """The boxes of one method, an entry for each image it was measured on.

    Args:
        keys (tuple of str): of the images.
        labels (np.ndarray): (N,), their classes.
        sizes (np.ndarray): (N, 2), width and height.
        objects (np.ndarray): (N, 4), true boxes.
        predicted (np.ndarray): (N, 4), at the paper's threshold; all 0 for an empty map.
        overlap (np.ndarray): (N,), their IoU.
    """

    keys: tuple[str, ...]
    labels: np.ndarray
    sizes: np.ndarray
    objects: np.ndarray
    predicted: np.ndarray
    overlap: np.ndarray


def failures(settings: FailuresSettings) -> list[Path]:
    """Analyse a run, print the tables and write the files.

    Args:
        settings (FailuresSettings): see each field's help.

    Returns:
        list of Path: Markdown, JSON, and the chart as PNG and SVG.

    Raises:
        InputError: no finished run, none with the boxes needed, or a method that is not in it.
    """
    output = settings.output or settings.run / "failures.md"
    if output.suffix != ".md":
        raise InputError(f"--output {output}: a Markdown file is expected, its name ends in .md")
    results = read_results(settings.run)
    found = analyse(results, settings.methods, progress=settings.progress)
    found["command"] = as_command("benchmarks failures", settings)
    paths = [
        write_text(output, as_markdown(found)),
        write_json(output.with_suffix(".json"), found),
        *save_charts(output.parent, {output.stem: failures_chart(found)}),
    ]
    print(as_text(found))
    print("\n" + "\n".join(str(path) for path in paths))
    return paths


def analyse(
    results: Mapping[str, Any], chosen: Sequence[str] = (), *, progress: bool = False
) -> dict[str, Any]:
    """Content of failures.json: every method's outcomes, also by size of the object and by class.

    Args:
        results (Mapping): content of results.json.
        chosen (sequence of str): names of methods; none: all. The floors are there in any case.
        progress (bool): show a progress bar.

    Raises:
        InputError: the run has no predicted boxes, or not that method.
    """
    about = {method["name"]: method for method in results["methods"]}
    wanted = _wanted(results, chosen)
    num_resamples = results["settings"].get("num_resamples") or NUM_RESAMPLES
    classes = _class_names(results["images"])
    found = {}
    for name in tqdm(wanted, "methods", disable=not progress):
        boxes = predictions(results["images"], name)
        found[name] = {
            "title": about[name]["title"],
            "family": about[name]["family"],
            **_summary(boxes, classes, num_resamples),
        }
    ranked = sorted(found, key=lambda name: -found[name]["outcomes"]["correct"]["share"][0])
    return {
        "schema_version": SCHEMA_VERSION,
        "run": results["command"],
        "data": results["data"]["name"],
        "test_classes": results["data"]["test"]["classes"],
        "threshold": PAPER_THRESHOLD,
        "num_images": len(shown(results["images"], PROTOCOL)),
        "num_resamples": num_resamples,
        "main_method": results["main_method"],
        "methods": {name: found[name] for name in ranked},
    }


def _wanted(results: Mapping[str, Any], chosen: Sequence[str]) -> list[str]:
    measured = [name for name, found in results["summary"].items() if PROTOCOL in found]
    if not measured:
        raise InputError(
            "the run has no predicted boxes: it did not measure the protocol 'boxes'; run "
            "python -m benchmarks localize with it (--protocols boxes)"
        )
    if absent := [name for name in chosen if name not in measured]:
        raise InputError(
            f"no boxes of {', '.join(absent)} in this run; it has {', '.join(measured)}"
        )
    return [name for name in measured if not chosen or name in chosen or name in FLOOR_BOXES]


def predictions(records: Sequence[Mapping[str, Any]], name: str) -> Predictions:
    """What a method or floor predicted, from the records of a run.

    Raises:
        InputError: an earlier version wrote the records, without the predicted boxes.
    """
    rows = []
    for record in records:
        for image in shown([dict(record)], PROTOCOL):
            of = image["floors"] if name in FLOOR_BOXES else image["methods"]
            if name in of:
                rows.append((record, image, of[name]))
    if any("predicted" not in measures for *_, measures in rows) and name not in FLOOR_BOXES:
        raise InputError(
            f"the run's records have no predicted boxes of {name}: an earlier version made them; "
            "run its command again with another --output"
        )
    return Predictions(
        tuple(record["key"] for record, *_ in rows),
        np.array([record["label"] for record, *_ in rows]),
        np.array([image["size"] for _, image, _ in rows], dtype=np.float64),
        np.array([image["box"] for _, image, _ in rows], dtype=np.float64),
        np.array([_predicted(name, image, of) for _, image, of in rows], dtype=np.float64),
        np.array([_at_paper(of["iou"]) / IOU_UNIT for *_, of in rows]),
    )


def _predicted(name: str, image: Mapping[str, Any], measures: Mapping[str, Any]) -> Sequence[float]:
    if name in FLOOR_BOXES:
        return FLOOR_BOXES[name](*image["size"])
    box: Sequence[float] = measures["predicted"]
    return box


def _at_paper(overlaps: Sequence[int]) -> int:
    """Of the paper's threshold; a floor has one overlap for all of them."""
    return overlaps[AT_PAPER] if len(overlaps) > 1 else overlaps[0]


def _summary(
    boxes: Predictions, class_names: Mapping[int, str], num_resamples: int
) -> dict[str, Any]:
    outcome = outcomes(boxes.predicted, boxes.objects, boxes.overlap)
    one_hot = outcome[:, None] == np.arange(len(OUTCOMES))
    interval = bootstrap_interval(one_hot, num_resamples=num_resamples)
    shares = np.stack([interval.estimate, interval.low, interval.high], axis=1)
    keys = np.array(boxes.keys, dtype=object)
    return {
        "num_images": len(outcome),
        "outcomes": {
            kind: {"count": int(one_hot[:, index].sum()), "share": shares[index].tolist()}
            for index, kind in enumerate(OUTCOMES)
        },
        "sizes": _by_size(boxes, outcome, num_resamples),
        "classes": _by_class(boxes.labels, outcome, class_names),
        "misses": {
            kind: keys[outcome == index].tolist()
            for index, kind in enumerate(OUTCOMES)
            if kind != "correct"
        },
    }


def _by_size(boxes: Predictions, outcome: np.ndarray, num_resamples: int) -> dict[str, Any]:
    group = object_sizes(boxes.objects, boxes.sizes)
    found = {}
    for index, size in enumerate(size_names()):
        of_size = outcome[group == index]
        correct = of_size == OUTCOMES.index("correct")
        accuracy = None
        if len(correct):
            interval = bootstrap_interval(correct, num_resamples=num_resamples)
            accuracy = list(interval.as_floats())
        found[size] = {
            "count": len(of_size),
            "accuracy": accuracy,
            "outcomes": {kind: int((of_size == i).sum()) for i, kind in enumerate(OUTCOMES)},
        }
    return found


def _by_class(
    labels: np.ndarray, outcome: np.ndarray, class_names: Mapping[int, str]
) -> list[dict[str, Any]]:
    """The classes from the worst to the best; of equal ones the larger first."""
    found = []
    for label in np.unique(labels).tolist():
        correct = outcome[labels == label] == OUTCOMES.index("correct")
        found.append(
            {
                "label": label,
                "name": class_names[label],
                "count": len(correct),
                "accuracy": float(correct.mean()),
            }
        )
    return sorted(found, key=lambda one: (one["accuracy"], -one["count"], one["label"]))


def _class_names(records: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """The folder of a class's images where it has one of its own, else its number.

    Example:
        >>> keys = {"001.Auk/1.jpg": 1, "001.Auk/2.jpg": 1, "3.jpg": 3}
        >>> _class_names([{"key": key, "label": label} for key, label in keys.items()])
        {1: '001.Auk', 3: 'class 3'}
    """
    folders = defaultdict(set)
    labels = defaultdict(set)
    for record in records:
        folder = record["key"].rpartition("/")[0]
        folders[record["label"]].add(folder)
        labels[folder].add(record["label"])
    return {
        label: found[0] if len(found) == 1 and found[0] and len(labels[found[0]]) == 1
        else f"class {label}"
        for label, found in ((label, sorted(of)) for label, of in folders.items())
    }  # fmt: skip


def run(settings: FailuresSettings) -> None:
    failures(settings)


Settings = FailuresSettings
