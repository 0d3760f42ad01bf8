"""The settings of EXPLAIN, varied one at a time: what its choice is measured by.

``--methods variants`` runs them beside the recipe, on training classes:
``faithfulness --protocols mosaic``. The settings of LOCALIZE and TRANSFER are varied by ``ablate``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from benchmarks.methods.method import Method
from benchmarks.methods.ours import against_references, transferred
from captum_embed import channel_filters
from captum_embed.map_functions import MapFunction, agreed_evidence, border_mean
from captum_embed.recipes import EXPLAIN

BESIDE = ("ours_explain", "ours_explain_transfer", "ours_gradient")
"""Methods that the variants are compared with: the recipe, its transfer, and the plain sum."""


def _against_the_border(weights: Tensor, activations: Tensor) -> Tensor:
    """Each channel measured from its mean along the border."""
    return agreed_evidence()(weights, activations - border_mean(activations))


def _map(function: MapFunction) -> dict[str, Any]:
    return {"map_func": function}


_OF_THE_GRADIENT: dict[str, dict[str, Any]] = {
    "last block": {"layer": "last_block"},
    "power 0": _map(agreed_evidence(0.0)),
    "power 1": _map(agreed_evidence(1.0)),
    "power 3": _map(agreed_evidence(3.0)),
    "power 4": _map(agreed_evidence(4.0)),
    "sigma 0": _map(agreed_evidence(sigma=0.0)),
    "sigma 0.75": _map(agreed_evidence(sigma=0.75)),
    "sigma 3": _map(agreed_evidence(sigma=3.0)),
    "minus the border": _map(_against_the_border),
    "positive weights": {"channel_filter": channel_filters.positive},
    "50 channels": {"channel_filter": channel_filters.top_channels(50)},
}
_OF_THE_TRANSFER: dict[str, dict[str, Any]] = {
    "1 neighbour": {"num_neighbors": 1},
    "10 neighbours": {"num_neighbors": 10},
    "100 neighbours": {"num_neighbors": 100},
    "hardest 50 tuples": {"mining": "hardest", "num_tuples": 50},
}


def _varied() -> Iterator[Method]:
    for what, changes in _OF_THE_GRADIENT.items():
        recipe = replace(EXPLAIN, **changes)
        yield against_references(_name(what), f"EXPLAIN, {what}", recipe, f"EXPLAIN with {what}")
    for what, changes in _OF_THE_TRANSFER.items():
        recipe = replace(EXPLAIN, **changes)
        yield transferred(_name(what), f"EXPLAIN, transfer, {what}", recipe)
    yield transferred(_name("of the loss"), "EXPLAIN, transfer, of the loss", EXPLAIN, "loss")


def _name(what: str) -> str:
    return "explain_" + what.replace(" ", "_").replace(".", "_")


METHODS: dict[str, Method] = {method.name: method for method in _varied()}
