"""A run's results made from drawn numbers: no network, no data set."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.metrics.removal import area_under_curve
from benchmarks.report.flat import flat
from benchmarks.report.panels import (
    FOLDER,
    ImagePanels,
    MapPanel,
    Panels,
    compared_methods,
    worst_images,
    write_index,
    write_map,
    write_photo,
)
from benchmarks.results.files import header
from benchmarks.results.images import ImageTable
from benchmarks.results.summary import FLOORS, declared, forward_costs, main_method, summarize

# What a careless page would run, or lose.
HOSTILE_TITLE = 'Saliency <script>window.hacked = 1</script> & "more"'
HOSTILE_CLASS = '"><img src=x onerror="window.hacked = 2">'
NUM_IMAGES = 12
METHODS = {
    "ours_localize": ("Ours, LOCALIZE", "ours", 0.75, 0.03),
    "ours_paper": ("Ours, transfer", "ours", 0.4, 0.025),
    "control_uniform": ("Control, uniform weights", "control", 0.55, 0.02),
    "layer_grad_cam": ("LayerGradCam", "captum: layer", 0.5, 0.05),
    "saliency": (HOSTILE_TITLE, "captum: input", 0.2, 0.3),
    "occlusion": ("Occlusion", "captum: input", 0.6, 12.0),
    "eigen_cam": ("Eigen-CAM", "rival", 0.65, 0.04),
}
FLOOR_QUALITY = {
    "attention": {"centre_box": 0.58, "uniform_heatmap": 0.5},
    "boxes": {"centre_box": 0.58, "whole_image": 0.2},
}


def _overlap(rng: np.random.Generator, quality: float, thresholds: int) -> list[int]:
    """IoU in ten-thousandths that is best near a threshold of 0.25."""
    taus = np.linspace(0.01, 0.99, thresholds)
    values = np.clip(quality + rng.normal(0, 0.15) - 0.9 * (taus - 0.25) ** 2, 0, 1)
    return [int(value) for value in 10_000 * values]


def _measures(rng: np.random.Generator, quality: float, thresholds: int) -> dict[str, Any]:
    iou = _overlap(rng, quality, thresholds)
    return {"empty": False, "iou": iou, "best_iou": [min(10_000, value + 400) for value in iou]}


def _image(rng: np.random.Generator, number: int) -> dict[str, Any]:
    def protocol(name: str) -> dict[str, Any]:
        def measures(quality: float, thresholds: int) -> dict[str, Any]:
            if name == "boxes":
                return _measures(rng, quality, thresholds)
            return {"empty": False, "score": float(np.clip(quality + rng.normal(0, 0.1), 0, 1))}

        return {
            "size": [120, 90],
            "box": [20, 15, 90, 75],
            "forward_seconds": 0.02,
            "floors": {
                floor: measures(quality, 1) for floor, quality in FLOOR_QUALITY[name].items()
            },
            "methods": {
                method: {**measures(quality, 99), "seconds": seconds * rng.uniform(0.9, 1.1)}
                for method, (_, _, quality, seconds) in METHODS.items()
            },
        }

    return {
        "key": f"00{number % 2 + 1}.Thing/{number:02}.jpg",
        "label": number % 2 + 1,
        "protocols": {"attention": protocol("attention"), "boxes": protocol("boxes")},
    }


def make_results() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    images = [_image(rng, number) for number in range(NUM_IMAGES)]
    images[3]["protocols"]["attention"] = {"left_out": "its box lies outside the crop"}
    empty = images[5]["protocols"]["boxes"]["methods"]["saliency"]
    empty |= {"empty": True, "iou": [0] * 99, "best_iou": [0] * 99}
    methods: list[dict[str, Any]] = [
        {"name": name, "title": title, "family": family, "explains": f"map of {name}",
         "cost": "slow" if seconds > 1 else "fast", "unavailable": None}
        for name, (title, family, _, seconds) in METHODS.items()
    ]  # fmt: skip
    methods.append({"name": "lrp", "title": "LRP", "family": "captum: input", "explains": "",
                    "cost": "fast", "unavailable": "no rule for the layer <Swish>"})  # fmt: skip
    methods += [
        {"name": name, "title": title, "family": "floor", "unavailable": None}
        for name, title in FLOORS.items()
    ]
    memory = {
        "protocol": "boxes", "image": images[0]["key"], "size": [120, 90],
        "measured": "growth of a process", "forward": 50_000_000,
        "methods": {name: 60_000_000 + index for index, name in enumerate(METHODS)},
    }  # fmt: skip
    main = main_method(methods)
    names = [method["name"] for method in methods if not method["unavailable"]]
    table = ImageTable.from_records(images)
    protocols = ("attention", "boxes")
    part = {"classes": "1-2", "images": NUM_IMAGES, "absent": 1, "masks": 0}
    results = {
        **header(),
        "command": "python -m benchmarks localize --data 'a <b> & c'",
        "settings": {"network": "efficientnet_lite0", "layer": "features", "limit": None},
        "versions": {"python": "3.11", "captum-embed": "0.1.0"},
        "threads": 1,
        "device": "cpu",
        "identity": {"network_fingerprint": "0123abcd"},
        "data": {"name": "things <b>", "root": "/data", "train": part, "test": part,
                 "unreadable": ["cannot read <x>.jpg"]},
        "counts": table.counts(protocols, unreadable=1),
        "methods": methods,
        "main_method": main,
        "memory": memory,
        "forward": forward_costs(table, protocols, memory),
        "figures": declared(protocols),
        "summary": summarize(table, names, main, memory=memory, num_resamples=200),
        # Not in the file: what tests compare with.
        "images": images,
    }  # fmt: skip
    return flat(results)


def with_faithfulness(results: dict[str, Any]) -> dict[str, Any]:
    """The same run with deletion and insertion measured as well, on all images but one."""
    rng = np.random.default_rng(2)
    shares = np.linspace(0, 1, 11)

    def measures(quality: float) -> dict[str, Any]:
        slope = (0.5 + 1.5 * quality) * rng.uniform(0.9, 1.1)
        curves = {
            "deletion": 1 - 0.6 * shares ** (1 / slope),
            "insertion": 0.4 + 0.6 * shares ** (1 / slope),
        }
        return {
            "empty": False,
            **{kind: area_under_curve(curve) for kind, curve in curves.items()},
            **{f"{kind}_curve": curve.round(5).tolist() for kind, curve in curves.items()},
        }

    found = copy.deepcopy(results)
    protocols = ("attention", "boxes", "faithfulness")
    for image in found["images"][1:]:
        image["protocols"]["faithfulness"] = {
            "size": [120, 90],
            "box": [20, 15, 90, 75],
            "forward_seconds": 0.02,
            "floors": {n: measures(q) for n, q in FLOOR_QUALITY["attention"].items()},
            "methods": {
                name: {**measures(quality), "seconds": seconds}
                for name, (_, _, quality, seconds) in METHODS.items()
            },
        }
    table = ImageTable.from_records(found["images"])
    memory, names = found["memory"], list(found["summary"])
    found |= {
        "figures": declared(protocols),
        "summary": summarize(table, names, found["main_method"], memory=memory, num_resamples=200),
        "forward": forward_costs(table, protocols, memory),
        "counts": table.counts(protocols, unreadable=1),
    }
    return flat(found)


@pytest.fixture(scope="session")
def faithful_results(shared_results: dict[str, Any]) -> dict[str, Any]:
    """Content of results.json of a run with deletion and insertion; not to be changed."""
    return with_faithfulness(shared_results)


@pytest.fixture(scope="session")
def shared_results() -> dict[str, Any]:
    return make_results()


@pytest.fixture
def results(shared_results: dict[str, Any]) -> dict[str, Any]:
    """Content of results.json, to be changed at will."""
    return copy.deepcopy(shared_results)


def write_panels(run: Path, results: dict[str, Any]) -> Panels:
    """Panels of drawn images, as a run leaves them in its folder."""
    rng = np.random.default_rng(1)
    yy, xx = np.mgrid[:90, :120]

    def panels(key: str) -> ImagePanels:
        number = key[-6:-4]
        pixels = rng.integers(0, 255, (90, 120, 3)).astype(np.uint8)
        photo = write_photo(pixels, run / FOLDER / f"image-{number}.png")
        heat = np.exp(-((xx - 50) ** 2 + (yy - 40) ** 2) / 400.0)
        maps = tuple(
            MapPanel(
                name,
                write_map(heat, run / FOLDER / f"map-{number}-{name}.png").name,
                None if name == "saliency" else (30.0, 20.0, 70.0, 60.0),
                0.5,
            )
            for name in compared_methods(results, "boxes")
        )
        return ImagePanels(
            key, HOSTILE_CLASS, (120, 90), (20.0, 15.0, 90.0, 75.0), photo.name, maps
        )

    chosen = tuple(panels(results["images"][index]["key"]) for index in (0, 1))
    worst = tuple(
        panels(key)
        for key in worst_images(
            ImageTable.from_records(results["images"]), "boxes", results["main_method"], 2
        )
    )
    made = Panels("boxes", chosen, worst)
    write_index(run, made)
    return made


@pytest.fixture(scope="session")
def finished_run(shared_results: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with results.json and panels; not to be changed."""
    from benchmarks.core.files import write_json

    run = tmp_path_factory.mktemp("finished")
    write_json(run / "results.json", shared_results)
    write_panels(run, shared_results)
    return run
