"""How the boxes of a finished run miss, by method.

Reads what was measured on each image and computes no map anew. What counts as which kind of miss
is told in `benchmarks.metrics.outcomes`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.metrics.bootstrap import NUM_RESAMPLES, bootstrap_interval
from benchmarks.metrics.floors import centre_box, whole_image_box
from benchmarks.metrics.localization import PAPER_THRESHOLD
from benchmarks.metrics.outcomes import OUTCOMES, object_sizes, outcomes, size_names
from benchmarks.protocols.boxes import AT_PAPER, overlaps
from benchmarks.results.images import ImageTable
from captum_embed.errors import InputError

SCHEMA_VERSION = 1
PROTOCOL = "boxes"
# Their boxes follow from the image's size alone, and are not in the records.
FLOOR_BOXES = {"centre_box": centre_box, "whole_image": whole_image_box}


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


def analyse(
    results: Mapping[str, Any],
    images: ImageTable,
    chosen: Sequence[str] = (),
    *,
    progress: bool = False,
) -> dict[str, Any]:
    """Content of failures.json: every method's outcomes, also by size of the object and by class.

    Args:
        results (Mapping): content of results.json.
        images (ImageTable): of the same run.
        chosen (sequence of str): names of methods; none: all. The floors are there in any case.
        progress (bool): show a progress bar.

    Raises:
        InputError: the run has no predicted boxes, or not that method.
    """
    about = {method["name"]: method for method in results["methods"]}
    wanted = _wanted(results, chosen)
    num_resamples = results["settings"].get("num_resamples") or NUM_RESAMPLES
    classes = _class_names(images.classes())
    analysed = {}
    for name in tqdm(wanted, "methods", disable=not progress):
        boxes = predictions(images, name)
        analysed[name] = {
            "title": about[name]["title"],
            "family": about[name]["family"],
            **_summary(boxes, classes, num_resamples),
        }
    ranked = sorted(analysed, key=lambda name: -analysed[name]["outcomes"]["correct"]["share"][0])
    return {
        "schema_version": SCHEMA_VERSION,
        "run": results["command"],
        "data": results["data"]["name"],
        "test_classes": results["data"]["test"]["classes"],
        "threshold": PAPER_THRESHOLD,
        "num_images": results["counts"]["measured"][PROTOCOL],
        "num_resamples": num_resamples,
        "main_method": results["main_method"],
        "methods": {name: analysed[name] for name in ranked},
    }


def _wanted(results: Mapping[str, Any], chosen: Sequence[str]) -> list[str]:
    measured = [name for name, protocols in results["summary"].items() if PROTOCOL in protocols]
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


def predictions(images: ImageTable, name: str) -> Predictions:
    """What a method or floor predicted.

    Raises:
        InputError: an earlier version made the run, without the predicted boxes.
    """
    rows = images.rows(PROTOCOL, name)
    if any("predicted" not in row for row in rows) and name not in FLOOR_BOXES:
        raise InputError(
            f"the run has no predicted boxes of {name}: an earlier version made it; run its "
            "command again with another --output"
        )
    sizes = [(row["width"], row["height"]) for row in rows]
    predicted = [row["predicted"] if name not in FLOOR_BOXES else FLOOR_BOXES[name](*size)
                 for row, size in zip(rows, sizes, strict=True)]  # fmt: skip
    return Predictions(
        tuple(row["key"] for row in rows),
        np.array([row["label"] for row in rows]),
        np.array(sizes, dtype=np.float64),
        np.array([row["box"] for row in rows], dtype=np.float64),
        np.array(predicted, dtype=np.float64),
        np.array([overlaps(row)[AT_PAPER] for row in rows]),
    )


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
    by_size = {}
    for index, size in enumerate(size_names()):
        of_size = outcome[group == index]
        correct = of_size == OUTCOMES.index("correct")
        accuracy = None
        if len(correct):
            interval = bootstrap_interval(correct, num_resamples=num_resamples)
            accuracy = list(interval.as_floats())
        by_size[size] = {
            "count": len(of_size),
            "accuracy": accuracy,
            "outcomes": {kind: int((of_size == i).sum()) for i, kind in enumerate(OUTCOMES)},
        }
    return by_size


def _by_class(
    labels: np.ndarray, outcome: np.ndarray, class_names: Mapping[int, str]
) -> list[dict[str, Any]]:
    """The classes from the worst to the best; of equal ones the larger first."""
    by_class = []
    for label in np.unique(labels).tolist():
        correct = outcome[labels == label] == OUTCOMES.index("correct")
        by_class.append(
            {
                "label": label,
                "name": class_names[label],
                "count": len(correct),
                "accuracy": float(correct.mean()),
            }
        )
    return sorted(by_class, key=lambda one: (one["accuracy"], -one["count"], one["label"]))


def _class_names(labels: Mapping[str, int]) -> dict[int, str]:
    """The folder of a class's images where it has one of its own, else its number.

    Example:
        >>> _class_names({"001.Auk/1.jpg": 1, "001.Auk/2.jpg": 1, "3.jpg": 3})
        {1: '001.Auk', 3: 'class 3'}
    """
    folders = defaultdict(set)
    in_folder = defaultdict(set)
    for key, label in labels.items():
        folder = key.rpartition("/")[0]
        folders[label].add(folder)
        in_folder[folder].add(label)
    return {
        label: only[0] if len(only) == 1 and only[0] and len(in_folder[only[0]]) == 1
        else f"class {label}"
        for label, only in ((label, sorted(of)) for label, of in folders.items())
    }  # fmt: skip
