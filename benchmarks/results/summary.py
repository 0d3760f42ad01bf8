"""Figures of merit with intervals, paired differences and cost, from the measures of all images.

Which numbers there are follows from the figures that the protocols declare. Intervals are
percentile bootstraps over images (`benchmarks.metrics.bootstrap`), with the same resamples for
every method, so that differences are paired: what makes an image hard for two methods cancels out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.metrics.bootstrap import NUM_RESAMPLES, Draws, draw, of_mean
from benchmarks.metrics.figures import Curve, Figure
from benchmarks.protocols.protocol import EvaluationProtocol
from benchmarks.protocols.registry import PROTOCOLS
from benchmarks.results.images import ImageTable, Row

# What the others are compared with, where the run has it.
MAIN_METHOD = "ours_localize"
FLOORS = {
    "centre_box": "Centre box, 65% of each side",
    "uniform_heatmap": "Uniform heatmap",
    "whole_image": "Whole image",
    "edge_filter": "Edge filter",
}

Numbers = dict[str, Any]
Summary = dict[str, dict[str, Numbers]]
Memory = Mapping[str, Any]


def main_method(methods: Sequence[Mapping[str, Any]]) -> str | None:
    """The method that the others are compared with.

    Args:
        methods (sequence of Mapping): as in results.json: ``name``, ``family``, ``unavailable``.

    Returns:
        str, optional: the recipe for boxes, else the first of ours; None for a run without any.

    Example:
        >>> ours = [{"name": n, "family": "ours"} for n in ("ours_gradient", "ours_localize")]
        >>> main_method(ours)
        'ours_localize'
    """
    ours = [m["name"] for m in methods if m["family"] == "ours" and not m.get("unavailable")]
    return MAIN_METHOD if MAIN_METHOD in ours else next(iter(ours), None)


def declared(protocols: Sequence[str]) -> list[dict[str, Any]]:
    """The figures of some protocols as results.json echoes them, in the order of the table."""
    return [
        {
            "key": figure.key,
            "protocol": name,
            "heading": figure.heading,
            "about": figure.about,
            "better": figure.better,
            "unit": figure.unit,
            "lead": figure.lead,
            "in_terminal": figure.in_terminal,
            "at": None if figure.at is None else figure.at[0],
        }
        for name, protocol in PROTOCOLS.items()
        if name in protocols
        for figure in protocol.figures
    ]


def summarize(
    images: ImageTable,
    names: Sequence[str],
    main: str | None = None,
    *,
    memory: Memory | None = None,
    num_resamples: int = NUM_RESAMPLES,
) -> Summary:
    """Numbers of every method and floor: ``{name: {protocol: {...}}}``.

    Args:
        images (ImageTable): of the run.
        names (sequence of str): methods and floors, in the order wanted.
        main (str, optional): see `main_method`.
        memory (Mapping, optional): of `benchmarks.runs.memory.peak_memory`.
        num_resamples (int): of the bootstrap.

    Returns:
        dict: a protocol that did not measure a method has no entry. ``"figures"`` holds for each
            figure the ``"value"``, the ends ``"low"`` and ``"high"`` of its 95% interval, and, for
            all but the main method, ``"difference"``: this method minus the main one, on the
            images that both have, with ``"difference_low"`` and ``"difference_high"``.
            ``"curves"`` holds ``"x"``, ``"y"`` and the band. Times are medians, in seconds;
            ``"times_forward"`` is that over the plain forward pass on the same image.
    """
    summary: Summary = {name: {} for name in names}
    measured = images.protocols()
    for protocol in PROTOCOLS.values():
        if protocol.name not in measured:
            continue
        mains = _Drawn(images.rows(protocol.name, main) if main else [], num_resamples)
        for name in names:
            of_method = mains
            if name != main:
                of_method = _Drawn(images.rows(protocol.name, name), num_resamples)
            if of_method.rows:
                summary[name][protocol.name] = {
                    **_counted(of_method.rows, protocol),
                    "peak_memory_bytes": _peak(memory, protocol.name, name),
                    **_numbers(of_method, None if name == main else mains, protocol),
                }
    return summary


def forward_costs(
    images: ImageTable, protocols: Sequence[str], memory: Memory | None
) -> dict[str, dict[str, Any]]:
    """The plain forward pass: ``{protocol: {"median_seconds", "peak_memory_bytes"}}``."""
    costs = {}
    for protocol in protocols:
        passes = [shown["forward_seconds"] for shown in images.shown(protocol).values()]
        seconds = [one for one in passes if one is not None]
        here = memory is not None and memory["protocol"] == protocol
        costs[protocol] = {
            "median_seconds": float(np.median(seconds)) if seconds else None,
            "peak_memory_bytes": memory["forward"] if memory is not None and here else None,
        }
    return costs


@dataclass
class _Drawn:
    """One method's rows, and its figures of each resample of some images, drawn once."""

    rows: list[Row]
    num_resamples: int
    draws: dict[tuple[Any, tuple[str, ...]], Draws] = field(default_factory=dict)
    kept: dict[Any, dict[str, Any]] = field(default_factory=dict)

    def values(self, of: Figure | Curve) -> dict[str, Any]:
        """The value of each image that has one, by key."""
        if of not in self.kept:
            value = of.of if isinstance(of, Figure) else of.value
            values = {row["key"]: value(row) for row in self.rows}
            self.kept[of] = {key: one for key, one in values.items() if one is not None}
        return self.kept[of]

    def array(self, of: Figure | Curve, keys: tuple[str, ...]) -> NDArray[np.float64]:
        values = self.values(of)
        return np.array([values[key] for key in keys], dtype=np.float64)

    def draw(self, of: Figure | Curve, keys: tuple[str, ...]) -> Draws:
        if (of, keys) not in self.draws:
            aggregate = of.aggregate if isinstance(of, Figure) else of_mean()
            self.draws[of, keys] = draw(
                self.array(of, keys), aggregate, num_resamples=self.num_resamples
            )
        return self.draws[of, keys]


def _numbers(
    method: _Drawn, main: _Drawn | None, protocol: EvaluationProtocol
) -> dict[str, dict[str, Any]]:
    figures = {}
    for figure in protocol.figures:
        if keys := tuple(method.values(figure)):
            figures[figure.key] = _figure(method, main, figure, keys)
    curves = {}
    for curve in protocol.curves:
        if keys := tuple(method.values(curve)):
            drawn = method.draw(curve, keys)
            band = drawn.interval()
            parts = {"y": band.estimate, "low": band.low, "high": band.high}
            rounded = {name: part.round(5).tolist() for name, part in parts.items()}
            curves[curve.name] = {"x": list(curve.x), **rounded}
    return {"figures": figures, "curves": curves}


def _figure(
    method: _Drawn, main: _Drawn | None, figure: Figure, keys: tuple[str, ...]
) -> dict[str, Any]:
    value, low, high = method.draw(figure, keys).interval().as_floats()
    entry: dict[str, Any] = {"value": value, "low": low, "high": high}
    if figure.at is not None:
        name, at = figure.at
        entry[name] = at(method.array(figure, keys))
    mains = {} if main is None else main.values(figure)
    common = tuple(key for key in keys if key in mains)
    if main is not None and common:
        difference = method.draw(figure, common) - main.draw(figure, common)
        ends = difference.interval().as_floats()
        names = ("difference", "difference_low", "difference_high")
        entry |= dict(zip(names, ends, strict=True))
    return entry


def _counted(rows: Sequence[Row], protocol: EvaluationProtocol) -> dict[str, Any]:
    seconds = [row["seconds"] for row in rows if "seconds" in row]
    ratios = [
        row["seconds"] / row["forward_seconds"]
        for row in rows
        if "seconds" in row and row.get("forward_seconds")
    ]
    masked = [figure for figure in protocol.figures if figure.masked]
    return {
        "num_images": len(rows),
        "num_empty": sum(bool(row.get("empty")) for row in rows),
        "num_not_finite": sum(bool(row.get("not_finite")) for row in rows),
        "num_masks": max((sum(f.of(row) is not None for row in rows) for f in masked), default=0),
        "median_seconds": float(np.median(seconds)) if seconds else None,
        "times_forward": float(np.median(ratios)) if ratios else None,
    }


def _peak(memory: Memory | None, protocol: str, name: str) -> int | None:
    if memory is None or memory["protocol"] != protocol:
        return None
    peak: int | None = memory["methods"].get(name)
    return peak
