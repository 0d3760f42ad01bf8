"""An invented figure and an invented protocol: what declares them is in this file, and no more."""

import csv
import io
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.datasets.records import ImageRecord
from benchmarks.metrics.bootstrap import bootstrap_interval, paired_difference
from benchmarks.metrics.figures import Figure
from benchmarks.protocols.attention import AttentionProtocol
from benchmarks.protocols.protocol import (
    Embed,
    EvaluationProtocol,
    Frame,
    Item,
    Measures,
    Question,
    Source,
)
from benchmarks.protocols.registry import PROTOCOLS
from benchmarks.results.files import as_csv, markdown, write_results
from benchmarks.results.images import ImageTable
from benchmarks.results.summary import declared, forward_costs, summarize


class WithSpread(AttentionProtocol):
    """An invented figure of an existing protocol: the median of a measure."""

    figures = (
        *AttentionProtocol.figures,
        Figure(
            "spread", "spread of the map", "Standard deviation of the map", "lower", unit="",
            aggregate=lambda values, counts: np.array(
                [np.median(np.repeat(values, of.astype(int))) for of in counts]
            ),
        ),
    )  # fmt: skip

    def measure(
        self, heatmaps: Sequence[np.ndarray], frame: Frame, embed: Embed | None = None
    ) -> Measures:
        measures = super().measure(heatmaps, frame, embed)
        return {**measures, "spread": float(np.std(heatmaps[0]))}


class PairProtocol(EvaluationProtocol):
    """An invented protocol of pairs of images side by side, with one heatmap for each of them."""

    name = "pairs"
    title = "which of two images"
    shows = "pairs"
    figures = (
        Figure("pair_mass", "pair mass", "Share of each map in its half, %", "higher", lead=True),
    )

    def show(self, image: Image.Image) -> Tensor:
        return torch.zeros(3, 4, 4)

    def items(self, source: Source) -> list[Item]:
        records = list(source.records)
        return [
            ImageRecord(f"pair {a.key} {b.key}", a.path, a.label, "", (0, 0, 1, 1))
            for a, b in pairwise(records)
        ]

    def frame(self, item: Item) -> Frame:
        questions = tuple(
            Question(references=torch.eye(2)[[i]], foils=torch.eye(2)[[1 - i]]) for i in (0, 1)
        )
        return Frame(torch.zeros(3, 4, 8), (0, 0, 4, 4), questions=questions)

    def measure(
        self, heatmaps: Sequence[np.ndarray], frame: Frame, embed: Embed | None = None
    ) -> Measures:
        left, right = heatmaps
        mass = (left[:, :4].sum() / left.sum() + right[:, 4:].sum() / right.sum()) / 2
        return {"empty": False, "pair_mass": float(mass)}

    def floors(self, frame: Frame, embed: Embed | None = None) -> dict[str, Measures]:
        return {"uniform_heatmap": self.measure([np.ones((4, 8))] * 2, frame)}


NAMES = ["ours", "other", "uniform_heatmap"]


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a run of both protocols keeps."""
    monkeypatch.setitem(PROTOCOLS, "attention", WithSpread())
    monkeypatch.setitem(PROTOCOLS, "pairs", PairProtocol())
    rng = np.random.default_rng(0)
    source = Source([ImageRecord(f"{i}.png", Path("x"), 1, "", (0, 0, 2, 2)) for i in range(9)])
    frames = {"attention": Frame(torch.zeros(3, 4, 8), (0, 0, 4, 4)), "pairs": None}
    lines = []
    for name in ("attention", "pairs"):
        protocol = PROTOCOLS[name]
        for item in protocol.items(source):
            frame = frames[name] or protocol.frame(item)
            assert frame is not None
            methods = {
                method: protocol.measure([rng.random((4, 8)) for _ in frame.questions], frame)
                for method in ("ours", "other")
            }
            shown = {"methods": methods, "floors": protocol.floors(frame)}
            lines.append({"key": item.key, "label": 1, "protocols": {name: shown}})
    return lines


@pytest.fixture
def results(records: list[dict[str, Any]]) -> dict[str, Any]:
    table = ImageTable.from_records(records)
    part = {"classes": "1", "images": 9, "absent": 0, "masks": 0}
    protocols = ["attention", "pairs"]
    return {
        "command": "python -m benchmarks localize",
        "data": {"name": "things", "train": part, "test": part},
        "counts": table.counts(protocols),
        "methods": [{"name": n, "title": n, "family": "ours", "unavailable": None} for n in NAMES],
        "main_method": "ours",
        "forward": forward_costs(table, protocols, None),
        "figures": declared(protocols),
        "summary": summarize(table, NAMES, "ours", num_resamples=200),
    }


def test_both_are_in_the_summary_with_intervals_and_differences(
    records: list[dict[str, Any]], results: dict[str, Any]
) -> None:
    masses = {
        name: [r["protocols"]["pairs"]["methods"][name]["pair_mass"] for r in records[9:]]
        for name in ("ours", "other")
    }
    figure = results["summary"]["other"]["pairs"]["figures"]["pair_mass"]
    interval = bootstrap_interval(masses["other"], num_resamples=200)
    difference = paired_difference(masses["other"], masses["ours"], num_resamples=200)
    expected = [*interval.as_floats(), *difference.as_floats()]
    assert list(figure.values()) == pytest.approx(expected)
    assert results["summary"]["other"]["pairs"]["num_images"] == 8
    floor = results["summary"]["uniform_heatmap"]["pairs"]["figures"]["pair_mass"]
    assert floor["value"] == 0.5

    spreads = [r["protocols"]["attention"]["methods"]["other"]["spread"] for r in records[:9]]
    spread = results["summary"]["other"]["attention"]["figures"]["spread"]
    assert spread["value"] == pytest.approx(np.median(spreads))
    assert spread["low"] < spread["value"] < spread["high"]
    assert spread["difference_low"] <= spread["difference"] <= spread["difference_high"]


def test_both_are_in_every_file(
    records: list[dict[str, Any]], results: dict[str, Any], tmp_path: Path
) -> None:
    rows = {
        (row["method"], row["protocol"]): row
        for row in csv.DictReader(io.StringIO(as_csv(results)))
    }
    for protocol, figure in (("attention", "spread"), ("pairs", "pair_mass")):
        numbers = results["summary"]["other"][protocol]["figures"][figure]
        row = rows["other", protocol]
        assert float(row[figure]) == numbers["value"]
        for part in ("low", "high", "difference", "difference_low", "difference_high"):
            assert float(row[f"{figure}_{part}"]) == numbers[part]
    text = markdown(results)
    mass = 100 * results["summary"]["other"]["pairs"]["figures"]["pair_mass"]["value"]
    assert "spread of the map" in text
    assert "pair mass" in text
    assert f"| {mass:.1f} [" in text
    table = ImageTable.from_records(records)
    write_results(tmp_path, results, table)
    again = ImageTable.read(tmp_path)
    assert again.rows("pairs", "other") == table.rows("pairs", "other")
    assert '"key": "pair_mass"' in (tmp_path / "results.json").read_text()


def test_differences_are_percentage_points_where_all_compared_figures_are_shares(
    results: dict[str, Any],
) -> None:
    compared = [figure for figure in results["figures"] if figure["lead"]]
    for unit, said in (("%", True), ("", False)):
        compared[-1]["unit"] = unit
        for figure in compared[:-1]:
            figure["unit"] = "%"
        assert ("percentage points" in markdown(results)) == said


def test_a_measure_cannot_hide_what_an_image_is() -> None:
    shown = {"methods": {"a": {"key": 1}}, "floors": {}}
    with pytest.raises(ValueError, match="a measure cannot be named key"):
        ImageTable.from_records([{"key": "1", "protocols": {"pairs": shown}}])
