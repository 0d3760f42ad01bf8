import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vl_convert
from PIL import Image

from benchmarks.report.chart_parts import CONFIG
from benchmarks.report.charts import (
    charts_of,
    cost_rows,
    frontier,
    planes_chart,
    save_charts,
)
from benchmarks.report.looks import GREY, looks_of_run


def expressions(spec: Any) -> list[str]:
    """All text of a specification that Vega evaluates."""
    texts: list[str] = []
    if isinstance(spec, dict):
        for key, value in spec.items():
            evaluated = key in ("expr", "test", "filter", "calculate", "labelExpr", "signal")
            if evaluated and isinstance(value, str):
                texts.append(value)
            elif key not in ("values", "datasets"):
                texts += expressions(value)
    elif isinstance(spec, list):
        for one in spec:
            texts += expressions(one)
    return texts


@pytest.fixture(scope="module")
def charts(invented_results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: chart.to_dict() for name, chart in charts_of(invented_results).items()}


def test_every_curve_leading_figure_and_pair_has_a_chart(charts: dict[str, Any]) -> None:
    assert list(charts) == [
        "curve_accuracy", "curve_deletion", "curve_wobbling", "cost", "against_score",
        "against_wobble", "intervals_accuracy_at_0.2", "intervals_score", "intervals_wobble",
    ]  # fmt: skip


def test_names_are_data_and_never_code(
    charts: dict[str, Any], invented_results: dict[str, Any]
) -> None:
    other = copy.deepcopy(invented_results)
    for method in other["methods"]:
        method["title"] = f"'); window.hacked = 1; ({method['name']}"
    for figure in other["figures"]:
        figure["heading"] += " datum['x'] ${1}"
    for name, chart in charts_of(other).items():
        evaluated = expressions(chart.to_dict(validate=False))
        assert evaluated == expressions(charts[name]), name
        assert evaluated
        assert not any("hacked" in text for text in evaluated)


def rows(chart: dict[str, Any]) -> list[dict[str, Any]]:
    """The widest data of a chart."""
    if "datasets" in chart:
        return list(chart["datasets"]["curves"])
    inline = [one["data"]["values"] for one in (chart, *chart["layer"]) if "data" in one]
    return max(inline, key=lambda values: len(json.dumps(values)))


def test_curves_and_intervals_are_those_of_the_run(
    charts: dict[str, Any], invented_results: dict[str, Any]
) -> None:
    summary = invented_results["summary"]
    for row in rows(charts["curve_accuracy"]):
        curve = summary[row["method"]]["boxes"]["curves"]["accuracy"]
        assert {key: row[key] for key in ("x", "y", "low", "high")} == curve
    drawn = {row["method"]: row for row in rows(charts["intervals_wobble"])}
    assert len(drawn) == 7
    for name, row in drawn.items():
        figure = summary[name]["tremor"]["figures"]["wobble"]
        assert {key: row[key] for key in ("value", "low", "high")} == {
            key: figure[key] for key in ("value", "low", "high")
        }
    values = [row["value"] for row in rows(charts["intervals_accuracy_at_0.2"])]
    assert len(values) == 9


def test_a_method_has_one_colour_in_all_charts(charts: dict[str, Any]) -> None:
    colours_of: dict[str, set[str]] = {}
    for chart in charts.values():
        for layer in chart["layer"]:
            scale = layer.get("encoding", {}).get("color", {}).get("scale")
            for label, colour in zip(scale["domain"], scale["range"], strict=True) if scale else ():
                colours_of.setdefault(label, set()).add(colour)
    assert len(colours_of) == 10
    assert all(len(colours) == 1 for colours in colours_of.values())


def test_methods_on_fewer_images_are_hollow_and_have_no_place_on_the_frontier(
    invented_results: dict[str, Any],
) -> None:
    better = copy.deepcopy(invented_results)
    better["summary"]["occlusion"]["boxes"]["figures"]["accuracy_at_0.2"]["value"] = 0.99
    rows = cost_rows(better, better["figures"][0], looks_of_run(better))
    assert [row["method"] for row in rows if row["fewer"]] == ["occlusion"]
    assert "occlusion" not in {row["method"] for row in frontier(rows, "higher")}


def test_no_cheaper_method_equals_one_of_the_frontier() -> None:
    rng = np.random.default_rng(0)
    points = [{"seconds": float(s), "value": round(float(a), 1), "fewer": False}
              for s, a in rng.uniform(0.1, 1, (40, 2))]  # fmt: skip
    for better, sign in (("higher", 1), ("lower", -1)):
        kept = frontier(points, better)
        for point in points:
            matched = any(
                sign * other["value"] >= sign * point["value"]
                and other["seconds"] < point["seconds"]
                for other in points
            )
            assert (point in kept) == (not matched)


def test_a_run_of_crops_alone_puts_their_figure_against_cost(results: dict[str, Any]) -> None:
    for protocols in results["summary"].values():
        protocols.pop("boxes", None)
    chart = charts_of(results)["cost"].to_dict()
    assert chart["title"]["text"] == "attention, box against cost"


def test_nothing_timed_is_no_cost_chart(results: dict[str, Any]) -> None:
    for protocols in results["summary"].values():
        for numbers in protocols.values():
            numbers["median_seconds"] = None
    assert "cost" not in charts_of(results)


def test_a_figures_name_never_leads_out_of_the_folder(results: dict[str, Any]) -> None:
    keys = ("../../etc/x", "a/b", "..", "")
    figure = results["figures"][0]
    results["figures"] = [{**figure, "key": key, "lead": True} for key in keys]
    for protocols in results["summary"].values():
        for numbers in protocols.values():
            numbers["figures"] = dict.fromkeys(keys, next(iter(numbers["figures"].values())))
    charts = charts_of(results)
    assert len([name for name in charts if name.startswith("intervals")]) == len(keys)
    for name in charts:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)


def test_files_are_whole_and_the_same_each_time(results: dict[str, Any], tmp_path: Path) -> None:
    wanted = {"cost": charts_of(results)["cost"]}
    contents = []
    for _ in range(2):
        png, svg = save_charts(tmp_path, wanted)
        contents.append((png.read_bytes(), svg.read_bytes()))
    assert contents[0] == contents[1]
    assert np.asarray(Image.open(png).convert("L")).std() > 5
    text = svg.read_text()
    assert "<script" not in text
    for title in ("Ours, recommended", "Occlusion (n = 4)", "Eigen-CAM"):
        assert f">{title}<" in text
    assert CONFIG["legend"]["labelLimit"] == 0


def test_runs_stand_one_above_the_other(shared_results: dict[str, Any]) -> None:
    planes = [(title, shared_results, "accuracy_at_0.2", "score") for title in ("one", "two")]
    spec = planes_chart(planes).to_dict()
    assert [panel["title"] for panel in spec["vconcat"]] == ["one", "two"]
    assert vl_convert.vegalite_to_svg({**spec, "config": CONFIG}).count("Eigen-CAM") >= 2


def test_a_method_looks_the_same_in_every_run(shared_results: dict[str, Any]) -> None:
    # The floor comes in the second run alone, where it must not take the colour of another.
    first = {**shared_results, "summary": {**shared_results["summary"], "centre_box": {}}}
    planes = [("one", first, "accuracy_at_0.2", "score")]
    planes.append(("two", shared_results, "accuracy_at_0.2", "score"))
    spec = planes_chart(planes).to_dict()
    scales = [
        tuple(zip(scale["domain"], scale["range"], strict=True))
        for panel in spec["vconcat"]
        for layer in panel["layer"]
        for channel in ("color", "fill", "stroke")
        if "domain" in (scale := layer["encoding"].get(channel, {}).get("scale", {}))
    ]
    assert len(scales) >= 4
    assert len(set(scales)) == 1
    assert shared_results["summary"]["centre_box"]
    assert dict(scales[0])["Centre box"] == GREY
