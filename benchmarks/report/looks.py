"""Colour, line style, shape and label of each method, in every chart and on the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

FLOOR = "floor"
GREY = "#8d949c"
MOST_COLOURED = 12
# Told apart by everyone, and dark or light enough for a white page as well as for a black one.
COLOURS = (
    "#d55e00", "#0072b2", "#009e73", "#b8528f", "#a87000", "#2b8cc4",
    "#8c62ac", "#8c6d31", "#d1453b", "#5b7f00", "#4b6fd0", "#008b8b",
)  # fmt: skip
# The methods that most runs have in colour; all others take theirs from their name.
FIXED = {
    "ours_localize": 0, "layer_grad_cam": 1, "control_uniform": 2, "saliency": 3,
    "embedding_layer_cam": 4, "layer_activation": 5, "ours_explain": 6, "occlusion": 7,
    "ours_paper": 8, "eigen_cam": 9, "activation_decomposition": 10, "lime": 11,
}  # fmt: skip
DASHES = {
    "ours": [1, 0], "control": [10, 3], "captum: layer": [5, 3], "captum: input": [2, 2],
    "rival": [8, 3, 2, 3], FLOOR: [1, 4],
}  # fmt: skip
# Paths of the size of a circle of radius 1.
SHAPES = {
    "ours": "M1,0A1,1,0,1,1,-1,0A1,1,0,1,1,1,0Z", "control": "M-1,-0.9H1L0,1Z",
    "captum: layer": "M-0.9,-0.9H0.9V0.9H-0.9Z", "captum: input": "M0,-1L1,0.9H-1Z",
    "rival": "M0,-1.25L1,0L0,1.25L-1,0Z", FLOOR: "M-0.25,-1.2H0.25V1.2H-0.25Z",
}  # fmt: skip
OTHER_DASH = [12, 3, 2, 3, 2, 3]
OTHER_SHAPE = "M-1.2,-0.4H-0.4V-1.2H0.4V-0.4H1.2V0.4H0.4V1.2H-0.4V0.4H-1.2Z"


@dataclass(frozen=True)
class Look:
    """One method in every chart.

    Args:
        method (str): its name.
        label (str): its title, with the number of images where it had fewer than the others.
        family (str): decides on the line style and the shape.
        colour (str): grey for those that are not told apart.
        named (bool): in the legends: has a colour of its own, or is a floor.
        main (bool): is the method that the others are compared with.
        fewer (bool): was measured on fewer images than the others.
    """

    method: str
    label: str
    family: str
    colour: str
    named: bool
    main: bool
    fewer: bool

    @property
    def dash(self) -> list[int]:
        return DASHES.get(self.family, OTHER_DASH)

    @property
    def shape(self) -> str:
        return SHAPES.get(self.family, OTHER_SHAPE)


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each of at most twelve names, by the name alone as far as they do not collide.

    Example:
        >>> colours(["saliency", "eigen_cam"]) == colours(["eigen_cam", "saliency"])
        True
    """
    chosen: dict[str, str] = {}
    for name in sorted(names, key=lambda name: (name not in FIXED, name)):
        first = FIXED.get(name, int.from_bytes(sha256(name.encode()).digest()[:4], "big"))
        wanted = (COLOURS[(first + step) % len(COLOURS)] for step in range(len(COLOURS)))
        chosen[name] = next(colour for colour in wanted if colour not in chosen.values())
    return chosen


def looks_of(
    methods: Sequence[Mapping[str, Any]],
    main: str | None,
    images: Mapping[str, int] | None = None,
) -> dict[str, Look]:
    """The looks of a run's methods.

    Coloured are the main method, the best of each family, then the best of all; methods measured
    on fewer images come after the others.

    Args:
        methods (sequence of Mapping): ``name``, ``title`` and ``family`` each, the best first.
        main (str, optional): what the others are compared with.
        images (Mapping, optional): number of images each was measured on.
    """
    images = images or {}
    fewer = {name for name, count in images.items() if count < max(images.values())}
    ranked = sorted((m for m in methods if m["family"] != FLOOR), key=lambda m: m["name"] in fewer)
    first: dict[str, str] = {}
    for method in ranked:
        first.setdefault(method["family"], method["name"])
    names = [method["name"] for method in ranked]
    wanted = dict.fromkeys([*(n for n in names if n == main), *first.values(), *names])
    chosen = colours(list(wanted)[:MOST_COLOURED])
    looks: dict[str, Look] = {}
    for method in methods:
        name, label = method["name"], method["title"]
        label += f" (n = {images[name]})" if name in fewer else ""
        if label in {look.label for look in looks.values()}:  # Scales go by the label.
            label += f" [{name}]"
        looks[name] = Look(
            name, label, method["family"], chosen.get(name, GREY),
            name in chosen or method["family"] == FLOOR, name == main, name in fewer,
        )  # fmt: skip
    return looks


def figure_of(
    results: Mapping[str, Any], name: str, figure: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Value and interval of one method; None where it was not measured."""
    numbers = results["summary"].get(name, {}).get(figure["protocol"], {})
    value: dict[str, Any] = numbers.get("figures", {}).get(figure["key"]) or {}
    return value if value.get("value") is not None else None


def leading_figures(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The declared figures that lead and some method has; without any, each protocol's first."""
    figures = [figure for figure in results["figures"]
               if any(figure_of(results, name, figure) for name in results["summary"])]  # fmt: skip
    first = {figure["protocol"]: figure for figure in reversed(figures)}
    return [figure for figure in figures if figure.get("lead")] or list(first.values())[::-1]


def ranked(results: Mapping[str, Any]) -> list[str]:
    """What was measured, by the first leading figure, the best first; those without it last."""
    leading = leading_figures(results)

    def place(name: str) -> float:
        value = figure_of(results, name, leading[0]) if leading else None
        if value is None:
            return float("inf")
        return float(-value["value"] if leading[0]["better"] == "higher" else value["value"])

    return sorted((name for name, of in results["summary"].items() if of), key=place)


def looks_of_run(results: Mapping[str, Any]) -> dict[str, Look]:
    """The looks of all methods and floors of a results.json, the best first."""
    about = {method["name"]: method for method in results["methods"]}
    images = {
        name: min(numbers["num_images"] for numbers in protocols.values())
        for name, protocols in results["summary"].items()
        if protocols and about[name]["family"] != FLOOR
    }
    return looks_of([about[name] for name in ranked(results)], results["main_method"], images)
