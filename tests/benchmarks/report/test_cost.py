from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.report.cost import (
    CostPlot,
    CostPoint,
    cost_plot,
    draw_costs,
    frontier,
)
from benchmarks.report.figures import save_figure
from benchmarks.results.images import ImageTable
from benchmarks.results.summary import forward_costs, summarize


def test_times_are_ratios_to_the_forward_pass_on_the_same_image(results: dict[str, Any]) -> None:
    images = results["images"][:3]
    for image, seconds, forward in zip(images, (1.0, 6.0, 20.0), (0.5, 2.0, 1.0), strict=True):
        boxes = image["protocols"]["boxes"]
        boxes["methods"]["saliency"]["seconds"] = seconds
        boxes["forward_seconds"] = forward
    table = ImageTable.from_records(images)
    summary = summarize(table, ["saliency", "centre_box"], num_resamples=10)
    # Ratios 2, 3 and 20; the ratio of the medians would be 6.
    assert summary["saliency"]["boxes"]["times_forward"] == 3
    assert summary["saliency"]["boxes"]["peak_memory_bytes"] is None
    assert summary["centre_box"]["boxes"]["times_forward"] is None
    assert forward_costs(table, ["boxes"], None)["boxes"]["median_seconds"] == 1


def test_memory_stands_in_the_protocol_that_it_was_measured_in(results: dict[str, Any]) -> None:
    summary, forward = results["summary"], results["forward"]
    assert summary["ours_paper"]["boxes"]["peak_memory_bytes"] == 60_000_001
    assert summary["ours_paper"]["attention"]["peak_memory_bytes"] is None
    assert forward["boxes"]["peak_memory_bytes"] == 50_000_000
    assert forward["attention"]["peak_memory_bytes"] is None


def test_the_plot_has_every_method_that_was_timed(results: dict[str, Any]) -> None:
    plot = cost_plot(results)
    assert plot is not None
    assert [point.name for point in plot.points] == [
        name for name in results["summary"] if not name.endswith(("box", "heatmap", "image"))
    ]
    point = plot.points[0]
    boxes = results["summary"]["ours_localize"]["boxes"]
    assert point.accuracy == boxes["accuracy_at_0.2"]
    assert [point.low, point.high] == boxes["intervals"]["accuracy_at_0.2"]
    assert plot.floor == results["summary"]["centre_box"]["boxes"]["accuracy_at_0.2"]


def test_a_run_of_crops_alone_plots_the_attention_score(results: dict[str, Any]) -> None:
    for protocols in results["summary"].values():
        protocols.pop("boxes", None)
    plot = cost_plot(results)
    assert plot is not None
    assert plot.protocol == "attention"
    assert "attention" in plot.label


def test_nothing_timed_is_no_plot(results: dict[str, Any]) -> None:
    results["summary"] = {"centre_box": results["summary"]["centre_box"]}
    assert cost_plot(results) is None


def test_no_cheaper_method_equals_one_of_the_frontier() -> None:
    rng = np.random.default_rng(0)
    points = [
        CostPoint(str(i), "", "ours", float(s), None, round(float(a), 1), 0, 1)
        for i, (s, a) in enumerate(rng.uniform(0.1, 1, (40, 2)))
    ]
    kept = {point.name for point in frontier(points)}
    for point in points:
        matched = any(
            other.accuracy >= point.accuracy and other.seconds < point.seconds for other in points
        )
        assert (point.name in kept) == (not matched)


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_the_figure_is_drawn_and_the_same_each_time(
    results: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    plot = cost_plot(results)
    assert plot is not None
    files = [
        save_figure(draw_costs(plot, "things"), tmp_path / f"{number}.{kind}") for number in (1, 2)
    ]
    assert files[0].read_bytes() == files[1].read_bytes()
    if kind == "png":
        assert np.asarray(Image.open(files[0])).std() > 10
    (axes,) = draw_costs(plot, "things").axes
    assert axes.get_xscale() == "log"


def test_labels_do_not_lie_on_each_other_and_the_best_has_one() -> None:
    points = [
        CostPoint(name, name, family, seconds, None, accuracy, accuracy, accuracy)
        for name, family, seconds, accuracy in (
            ("best", "ours", 1.1, 0.87), ("control", "control", 1.0, 0.85),
            ("worse", "rival", 0.9, 0.4), ("slow", "captum: input", 40.0, 0.86),
        )
    ]  # fmt: skip
    plot = CostPlot(tuple(points), "accuracy", "boxes", None)
    figure = draw_costs(plot, "things")
    (axes,) = figure.axes
    assert {text.get_text() for text in axes.texts} == {"best", "worse"}
    # The control is drawn, though its name is left out.
    assert "control" in {text.get_text() for text in figure.legends[0].get_texts()}
