"""A run's results made from drawn numbers: no network, no data set."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.core.files import write_json
from benchmarks.report.panels import (
    FOLDER,
    ImagePanels,
    MapPanel,
    Panels,
    compared_methods,
    write_index,
    write_map,
    write_photo,
)

# What a careless page would run, or lose.
HOSTILE_TITLE = 'Saliency <script>window.hacked = 1</script> & "more"'
HOSTILE_NAME = "saliency'); window.hacked = 3; ('"
HOSTILE_CLASS = '"><img src=x onerror="window.hacked = 2">'
NUM_IMAGES, FEWER = 12, 4
METHODS = {
    "ours_recommended": ("Ours, recommended", "ours", 0.75, 0.03),
    "ours_transfer": ("Ours, transfer", "ours", 0.4, 0.025),
    "control_uniform": ("Control, uniform weights", "control", 0.55, 0.02),
    "layer_grad_cam": ("LayerGradCam", "captum: layer", 0.5, 0.05),
    HOSTILE_NAME: (HOSTILE_TITLE, "captum: input", 0.2, 0.3),
    "occlusion": ("Occlusion", "captum: input", 0.6, 12.0),
    "eigen_cam": ("Eigen-CAM", "rival", 0.65, 0.04),
}
SLOW = ("occlusion",)  # measured on fewer images
FLOORS = {"centre_box": ("Centre box", 0.58), "whole_image": ("Whole image", 0.2)}
FIGURES = [
    {"key": "accuracy_at_0.2", "protocol": "boxes", "heading": "IoU≥0.5 at τ=0.2",
     "better": "higher", "unit": "%", "lead": True},
    {"key": "max_box_acc", "protocol": "boxes", "heading": "MaxBoxAcc", "better": "higher",
     "unit": "%", "lead": False},
    {"key": "score", "protocol": "attention", "heading": "attention, box", "better": "higher",
     "unit": "%", "lead": True},
]  # fmt: skip
for _figure in FIGURES:
    _figure |= {"at": None, "about": _figure["heading"], "in_terminal": True}
THRESHOLDS = [round(0.01 * step, 2) for step in range(1, 100)]
SHARES = [round(0.1 * step, 1) for step in range(11)]


def value(share: float, rng: np.random.Generator, main: float | None = None) -> dict[str, float]:
    """A figure of merit with its interval, and its difference to the main method."""
    half = rng.uniform(0.02, 0.06)
    figure = {"value": share, "low": max(0.0, share - half), "high": share + half}
    if main is not None:
        gap = share - main
        figure |= {"difference": gap, "difference_low": gap - half, "difference_high": gap + half}
    return figure


def band(x: list[float], y: np.ndarray) -> dict[str, list[float]]:
    ends = {"low": np.clip(y - 0.05, 0, 1), "high": np.clip(y + 0.05, 0, 1)}
    return {"x": x, "y": y.round(5).tolist(), **{key: e.tolist() for key, e in ends.items()}}


def numbers(
    figures: dict[str, Any], curves: dict[str, Any], seconds: float | None, count: int
) -> dict[str, Any]:
    return {
        "num_images": count, "num_empty": 1, "num_not_finite": 0, "num_masks": 0,
        "median_seconds": seconds, "times_forward": None if seconds is None else seconds / 0.02,
        "peak_memory_bytes": None if seconds is None else 60_000_000,
        "figures": figures, "curves": curves,
    }  # fmt: skip


def make_results() -> dict[str, Any]:
    """Content of results.json of a run with boxes and attention."""
    rng = np.random.default_rng(0)
    main = METHODS["ours_recommended"][2]
    qualities = {name: (quality, seconds) for name, (_, _, quality, seconds) in METHODS.items()}
    qualities |= {name: (quality, None) for name, (_, quality) in FLOORS.items()}
    summary: dict[str, Any] = {}
    for name, (quality, seconds) in qualities.items():
        base = None if name == "ours_recommended" else main
        count = FEWER if name in SLOW else NUM_IMAGES
        curve = np.clip(quality - 1.5 * (np.array(THRESHOLDS) - 0.2) ** 2, 0, 1)
        boxes = {"accuracy_at_0.2": value(quality, rng, base),
                 "max_box_acc": value(quality + 0.05, rng, base)}  # fmt: skip
        score = {"score": value(1 - quality / 2, rng, base)}
        summary[name] = {
            "boxes": numbers(boxes, {"accuracy": band(THRESHOLDS, curve)}, seconds, count),
            "attention": numbers(score, {}, seconds, count),
        }
    score = {"score": value(0.5, rng, main)}
    summary["uniform_heatmap"] = {"attention": numbers(score, {}, None, NUM_IMAGES)}
    methods: list[dict[str, Any]] = [
        {"name": name, "title": title, "family": family, "explains": f"map of {title}",
         "cost": "slow" if seconds > 1 else "fast", "unavailable": None}
        for name, (title, family, _, seconds) in METHODS.items()
    ]  # fmt: skip
    methods.append({"name": "lrp", "title": "LRP", "family": "captum: input", "explains": "",
                    "cost": "fast", "unavailable": "no rule for the layer <Swish>"})  # fmt: skip
    floors = {**{n: title for n, (title, _) in FLOORS.items()}, "uniform_heatmap": "Uniform"}
    methods += [
        {"name": name, "title": title, "family": "floor", "explains": None, "cost": None,
         "unavailable": None}
        for name, title in floors.items()
    ]  # fmt: skip
    part = {"classes": "1-2", "images": NUM_IMAGES, "absent": 1, "masks": 0}
    return {
        "schema_version": 4,
        "command": "python -m benchmarks localize --data 'a <b> & c'",
        "settings": {"network": "efficientnet_lite0", "layer": "features", "limit": None},
        "versions": {"python": "3.11", "captum-embed": "0.1.0"},
        "machine": {"cores": 2}, "device": "cpu", "workers": 1, "threads": 1,
        "identity": {"network_fingerprint": "0123abcd"},
        "data": {"name": "things <b>", "root": "/data", "train": part, "test": part,
                 "unreadable": ["cannot read <x>.jpg"]},
        "counts": {"images": NUM_IMAGES, "unreadable": 1,
                   "measured": {"attention": NUM_IMAGES - 1, "boxes": NUM_IMAGES},
                   "left_out": {"attention": 1, "boxes": 0}},
        "methods": methods, "main_method": "ours_recommended",
        "memory": {"protocol": "boxes", "size": [120, 90], "measured": "growth of a process",
                   "forward": 50_000_000, "methods": {}},
        "forward": {"boxes": {"median_seconds": 0.02, "peak_memory_bytes": 50_000_000},
                    "attention": {"median_seconds": 0.01, "peak_memory_bytes": None}},
        "figures": FIGURES, "summary": summary, "thresholds": THRESHOLDS,
    }  # fmt: skip


def with_invented(results: dict[str, Any]) -> dict[str, Any]:
    """The same run with a protocol, a figure of merit and curves that nothing in report/ knows."""
    invented = copy.deepcopy(results)
    rng = np.random.default_rng(1)
    for name, (_, _, quality, seconds) in METHODS.items():
        figures = {"wobble": value(3 - quality, rng, 2.25)}
        curves = {kind: band(SHARES, 1 - quality * np.array(SHARES) ** power)
                  for kind, power in (("deletion", 1), ("wobbling", 2))}  # fmt: skip
        invented["summary"][name]["tremor"] = numbers(figures, curves, seconds, NUM_IMAGES)
    invented["figures"] = [
        *invented["figures"],
        {"key": "wobble", "protocol": "tremor", "heading": "Wobble <i>of</i> maps",
         "better": "lower", "unit": "", "lead": True, "at": None, "about": "How maps wobble",
         "in_terminal": True},
    ]  # fmt: skip
    invented["counts"]["measured"]["tremor"] = NUM_IMAGES
    invented["counts"]["left_out"]["tremor"] = 0
    return invented


@pytest.fixture(scope="session")
def shared_results() -> dict[str, Any]:
    """Content of results.json; not to be changed."""
    return make_results()


@pytest.fixture(scope="session")
def invented_results(shared_results: dict[str, Any]) -> dict[str, Any]:
    """Content of results.json with an invented protocol; not to be changed."""
    return with_invented(shared_results)


@pytest.fixture
def results(shared_results: dict[str, Any]) -> dict[str, Any]:
    """Content of results.json, to be changed at will."""
    return copy.deepcopy(shared_results)


def write_panels(run: Path, results: dict[str, Any]) -> Panels:
    """Panels of drawn images, as a run leaves them in its folder."""
    rng = np.random.default_rng(1)
    yy, xx = np.mgrid[:90, :120]

    def panels(number: int) -> ImagePanels:
        pixels = rng.integers(0, 255, (90, 120, 3)).astype(np.uint8)
        photo = write_photo(pixels, run / FOLDER / f"image-{number}.png")
        heat = np.exp(-((xx - 50) ** 2 + (yy - 40) ** 2) / 400.0)
        maps = []
        for index, name in enumerate(compared_methods(results, "boxes")):
            empty = name == HOSTILE_NAME
            file = write_map(heat, run / FOLDER / f"map-{number}-{index}.png").name
            box = None if empty else (30.0, 20.0, 70.0, 60.0)
            maps.append(MapPanel(name, file, box, 0.0 if empty else 0.62))
        key = f"001.Thing/{number:02}.jpg"
        true = (20.0, 15.0, 90.0, 75.0)
        return ImagePanels(key, HOSTILE_CLASS, (120, 90), true, photo.name, tuple(maps))

    made = Panels("boxes", (panels(0), panels(1)), (panels(2), panels(3)))
    write_index(run, made)
    return made


@pytest.fixture(scope="session")
def finished_run(shared_results: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with results.json and panels; not to be changed."""
    run = tmp_path_factory.mktemp("finished")
    write_json(run / "results.json", shared_results)
    write_panels(run, shared_results)
    return run
