"""From the records of all images to the numbers of the table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.metrics.localization import (
    THRESHOLDS,
    accuracy_at,
    accuracy_curve,
    max_box_acc,
    max_box_acc_v2,
    mean_accuracy,
)
from benchmarks.metrics.pixel_counts import unpack_counts
from benchmarks.metrics.pxap import pxap
from benchmarks.protocols.boxes import IOU_UNIT

Record = dict[str, Any]

FLOORS = {
    "centre_box": "Centre box, 65% of each side",
    "uniform_heatmap": "Uniform heatmap",
    "whole_image": "Whole image",
}


def shown(records: Iterable[Record], protocol: str) -> list[Record]:
    """What a protocol measured, for the images that it could show."""
    found = [r["protocols"][protocol] for r in records if protocol in r.get("protocols", {})]
    return [measured for measured in found if "left_out" not in measured]


def counts(
    records: Sequence[Record], protocols: Sequence[str], *, unreadable: int = 0
) -> dict[str, Any]:
    """How many images were measured, and why the others were not.

    Args:
        records (sequence of dict): of the test images.
        protocols (sequence of str): of the run.
        unreadable (int): training and test images that were dropped before.
    """
    return {
        "images": len(records),
        "unreadable": unreadable + sum("unreadable" in record for record in records),
        "measured": {name: len(shown(records, name)) for name in protocols},
        "left_out": {
            name: sum("left_out" in r.get("protocols", {}).get(name, {}) for r in records)
            for name in protocols
        },
    }


def summarize(records: Sequence[Record], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Numbers of every method and floor: ``{name: {protocol: {...}}}``.

    Args:
        records (sequence of dict): of the images, as in ``records.jsonl``.
        names (sequence of str): methods and floors, in the order wanted.

    Returns:
        dict: shares in [0, 1], times in seconds (medians). A protocol without an image has none.
    """
    images = {protocol: shown(records, protocol) for protocol in _FIGURES}
    summary: dict[str, dict[str, Any]] = {}
    for name in names:
        summary[name] = {}
        for protocol, figures in _FIGURES.items():
            if measures := measures_of(images[protocol], name):
                summary[name][protocol] = {**_shared(measures), **figures(measures)}
    return summary


def measures_of(shown_images: Iterable[Record], name: str) -> list[dict[str, Any]]:
    """The measures of one method or floor, image by image."""
    found = ({**image["floors"], **image["methods"]}.get(name) for image in shown_images)
    return [measures for measures in found if measures is not None]


def overlaps(measures: Sequence[dict[str, Any]], kind: str = "iou") -> np.ndarray:
    """IoU of each image at each threshold, (N, 99); a floor has one value for all."""
    rows = [np.broadcast_to(np.asarray(m[kind]) / IOU_UNIT, THRESHOLDS.shape) for m in measures]
    return np.stack(rows)


def histograms(measures: Sequence[dict[str, Any]]) -> np.ndarray:
    """Pixel histograms of the images that have a mask, (N, 2, B + 1)."""
    return np.stack([unpack_counts(m["pixel_counts"]) for m in measures])


def _mean(measures: Sequence[dict[str, Any]], figure: str) -> float | None:
    values = [m[figure] for m in measures if figure in m]
    return float(np.mean(values)) if values else None


def _attention(measures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        **{figure: _mean(measures, figure) for figure in ("score", "mask_score")},
        **_pointing(measures),
        "num_masks": sum("mask_score" in m for m in measures),
    }


def _pointing(measures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {figure: _mean(measures, figure) for figure in ("pointing", "mask_pointing")}


def _faithfulness(measures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    curves = {
        f"{kind}_curve": np.mean([m[f"{kind}_curve"] for m in measures], axis=0).round(5).tolist()
        for kind in ("deletion", "insertion")
    }
    return {**{kind: _mean(measures, kind) for kind in ("deletion", "insertion")}, **curves}


def _boxes(measures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    largest, any_component = overlaps(measures), overlaps(measures, "best_iou")
    best = max_box_acc(largest)
    masked = [m for m in measures if "pixel_counts" in m]
    return {
        "accuracy_at_0.2": float(accuracy_at(largest)),
        "mean_accuracy_0.15_to_0.25": float(mean_accuracy(largest)),
        "max_box_acc": float(best.accuracy),
        "max_box_acc_threshold": float(best.threshold),
        "max_box_acc_v2": float(max_box_acc_v2(any_component)),
        "accuracy_curve": [round(float(share), 5) for share in accuracy_curve(largest)],
        **_pointing(measures),
        "pxap": float(pxap(histograms(masked).sum(axis=0))) if masked else None,
        "num_masks": len(masked),
    }


def _shared(measures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    seconds = [m["seconds"] for m in measures if "seconds" in m]
    return {
        "num_images": len(measures),
        "num_empty": sum(m["empty"] for m in measures),
        "num_not_finite": sum(m.get("not_finite", False) for m in measures),
        "median_seconds": float(np.median(seconds)) if seconds else None,
    }


_FIGURES: dict[str, Callable[[Sequence[dict[str, Any]]], dict[str, Any]]] = {
    "attention": _attention,
    "boxes": _boxes,
    "faithfulness": _faithfulness,
}
