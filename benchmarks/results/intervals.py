"""How sure the figures of a run are: 95% bootstrap intervals, and differences to our method.

Both are percentile bootstraps over images (`benchmarks.metrics.bootstrap`), with the same
resamples for every method, so that differences are paired: what makes an image hard for two
methods cancels out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.metrics.bootstrap import (
    NUM_RESAMPLES,
    Interval,
    bootstrap_interval,
    paired_difference,
)
from benchmarks.metrics.localization_intervals import (
    localization_differences,
    localization_intervals,
)
from benchmarks.metrics.pxap import pxap
from benchmarks.results.summary import Record, histograms, measures_of, overlaps, shown

# What the others are compared with, where the run has it.
MAIN_METHOD = "ours_localize"

# Figures that are the mean over images of a measure of the same name.
MEANS = ("score", "mask_score", "pointing", "mask_pointing", "deletion", "insertion")
# Figures that follow from the IoU at each threshold: in results.json, and in the metrics.
BOX_FIGURES = {
    "accuracy_at_0.2": "accuracy_at",
    "mean_accuracy_0.15_to_0.25": "mean_accuracy",
    "max_box_acc": "max_box_acc",
    "max_box_acc_v2": "max_box_acc_v2",
}
CURVE = "accuracy_curve"
PXAP = "pxap"

ByImage = dict[str, dict[str, Any]]
Summary = dict[str, dict[str, dict[str, Any]]]


def main_method(methods: Sequence[Mapping[str, Any]]) -> str | None:
    """The method that the others are compared with.

    Args:
        methods (sequence of Mapping): as in results.json: ``name``, ``family``, ``unavailable``.

    Returns:
        str, optional: the recommended transfer, else the first of our transfers, else the first
            of ours; None for a run without any.

    Example:
        >>> ours = [{"name": n, "family": "ours"} for n in ("ours_gradient", "ours_transfer")]
        >>> main_method(ours)
        'ours_transfer'
    """
    ours = [m["name"] for m in methods if m["family"] == "ours" and not m.get("unavailable")]
    transfers = [name for name in ours if name.startswith("ours_transfer")]
    return MAIN_METHOD if MAIN_METHOD in ours else next(iter([*transfers, *ours]), None)


def with_intervals(
    summary: Mapping[str, Mapping[str, Mapping[str, Any]]],
    records: Sequence[Record],
    main: str | None,
    *,
    num_resamples: int = NUM_RESAMPLES,
) -> Summary:
    """A summary in which every method and protocol also has its uncertainty.

    Args:
        summary (Mapping): of `benchmarks.results.summary.summarize`.
        records (sequence of dict): the same that it was made from.
        main (str, optional): see `main_method`.
        num_resamples (int): of the bootstrap.

    Returns:
        dict: the summary with ``"intervals"``: ``{figure: [low, high]}``, the curve's as two
            lists; and, for all but the main method, ``"difference"``: this method minus the main
            one, ``{figure: [difference, low, high]}``, over their ``"num_images"`` common images.
    """
    names = {protocol for protocols in summary.values() for protocol in protocols}
    measured = {protocol: _shown(records, protocol) for protocol in names}
    mains = {p: {} if main is None else _of(images, main) for p, images in measured.items()}
    enriched: Summary = {}
    for name, protocols in summary.items():
        enriched[name] = {}
        for protocol, numbers in protocols.items():
            theirs = _of(measured[protocol], name)
            found = {**numbers, "intervals": _intervals(theirs, num_resamples)}
            if name != main and (difference := _difference(theirs, mains[protocol], num_resamples)):
                found["difference"] = difference
            enriched[name][protocol] = found
    return enriched


def _shown(records: Sequence[Record], protocol: str) -> dict[str, Any]:
    """What a protocol measured, by the image's key."""
    return {record["key"]: found for record in records for found in shown([record], protocol)}


def _of(images: Mapping[str, Any], name: str) -> ByImage:
    """The measures of one method or floor, by the image's key."""
    return {key: found for key, image in images.items() for found in measures_of([image], name)}


def _intervals(measures: ByImage, num_resamples: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for figure in MEANS:
        if values := _values(measures, figure):
            interval = bootstrap_interval(list(values.values()), num_resamples=num_resamples)
            found[figure] = _ends(interval)
    if boxes := _boxes(measures):
        intervals = localization_intervals(*boxes, num_resamples=num_resamples)
        found |= {ours: _ends(getattr(intervals, theirs)) for ours, theirs in BOX_FIGURES.items()}
        curve = intervals.accuracy_curve
        found[CURVE] = [_rounded(curve.low), _rounded(curve.high)]
    if masked := _masked(measures):
        counts = histograms(list(masked.values()))
        found[PXAP] = _ends(bootstrap_interval(counts, pxap, num_resamples=num_resamples))
    return found


def _difference(first: ByImage, second: ByImage, num_resamples: int) -> dict[str, Any]:
    """First minus second, over the images that both have; empty where there are none."""
    common = [key for key in first if key in second]
    if not common:
        return {}
    first, second = ({key: of[key] for key in common} for of in (first, second))
    found: dict[str, Any] = {"num_images": len(common)}
    for figure in MEANS:
        ours, theirs = _values(first, figure), _values(second, figure)
        if both := [key for key in ours if key in theirs]:
            interval = paired_difference(
                [ours[key] for key in both],
                [theirs[key] for key in both],
                num_resamples=num_resamples,
            )
            found[figure] = [float(interval.estimate), *_ends(interval)]
    boxes, main_boxes = _boxes(first), _boxes(second)
    if boxes and main_boxes:
        differences = localization_differences(boxes, main_boxes, num_resamples=num_resamples)
        for figure, name in BOX_FIGURES.items():
            interval = getattr(differences, name)
            found[figure] = [float(interval.estimate), *_ends(interval)]
    if both := list(_masked(first)):
        counts, main_counts = (histograms([of[key] for key in both]) for of in (first, second))
        interval = paired_difference(counts, main_counts, pxap, num_resamples=num_resamples)
        found[PXAP] = [float(interval.estimate), *_ends(interval)]
    return found


def _masked(measures: ByImage) -> ByImage:
    return {key: of for key, of in measures.items() if "pixel_counts" in of}


def _values(measures: ByImage, figure: str) -> dict[str, float]:
    """A measure that figures as a mean, by image; not all images have a mask."""
    return {key: of[figure] for key, of in measures.items() if figure in of}


def _boxes(measures: ByImage) -> tuple[np.ndarray, np.ndarray] | None:
    with_boxes = [of for of in measures.values() if "iou" in of]
    return (overlaps(with_boxes), overlaps(with_boxes, "best_iou")) if with_boxes else None


def _ends(interval: Interval) -> list[float]:
    return [float(interval.low), float(interval.high)]


def _rounded(curve: np.ndarray) -> list[float]:
    return [round(float(share), 5) for share in curve]
