"""The numbers of the shortcut example, each with a 95% bootstrap interval over photographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.metrics.bootstrap import bootstrap_interval, paired_difference
from benchmarks.results.tables import as_markdown, as_text
from docs.examples.shortcut.data import SWAPS
from docs.examples.shortcut.maps import MAPS, object_shares

MODELS = {"start": "ImageNet", "shortcut": "planted", "fixed": "fixed"}
"""The models, and what tables call them: by what they were trained on."""


def summarize_swaps(embeddings: Mapping[str, Tensor]) -> dict[str, Any]:
    """How far each exchange moves the embedding.

    Args:
        embeddings (Mapping): by model, unit vectors (N, 4, D) in the order of `SWAPS`.

    Returns:
        dict: by model, the mean squared Euclidean distance of each exchange from the original,
        and the background's share: its mean over that of the background and the object.
    """
    return {model: _summarize_swaps(vectors) for model, vectors in embeddings.items()}


def _summarize_swaps(embeddings: Tensor) -> dict[str, Any]:
    moved = (embeddings[:, 1:] - embeddings[:, :1]).square().sum(-1).double().numpy()
    of_both = moved[:, [SWAPS.index("other_background") - 1, SWAPS.index("other_object") - 1]]
    return {
        **{
            name: bootstrap_interval(moved[:, place]).as_floats()
            for place, name in enumerate(SWAPS[1:])
        },
        "share_of_the_background": bootstrap_interval(
            of_both, lambda means: means[:, 0] / np.maximum(means.sum(1), 1e-300)
        ).as_floats(),
    }


def summarize_maps(
    maps: Mapping[str, Mapping[str, Tensor]], masks: NDArray[np.bool_]
) -> dict[str, Any]:
    """How much of each map lies on the object, by map and model.

    Args:
        maps (Mapping): by model and map, (N, 1, h, w).
        masks (np.ndarray): (N, H, W) bool.
    """
    figures: dict[str, Any] = {}
    for name in MAPS:
        shares = {model: object_shares(of[name], masks) for model, of in maps.items()}
        figures[name] = {
            model: {
                "on_object": bootstrap_interval(own).as_floats(),
                "by_chance": float(chance.mean()),
                "above_chance": paired_difference(own, chance).as_floats(),
                "num_empty": int((own + chance == 0).sum()),
            }
            for model, (own, chance) in shares.items()
        }
        figures[name]["fixed_minus_shortcut"] = paired_difference(
            shares["fixed"][0], shares["shortcut"][0]
        ).as_floats()
    return figures


def as_tables(results: Mapping[str, Any], *, markdown: bool = False) -> str:
    """Three tables: retrieval, exchanges, maps."""
    render = as_markdown if markdown else as_text
    tables = (_retrieval_rows(results), _swap_rows(results), _map_rows(results))
    return "\n\n".join(render(rows) for rows in tables)


def _retrieval_rows(results: Mapping[str, Any]) -> list[list[str]]:
    rows = [
        [
            "trained on",
            "recall@1, held out",
            "recall@1, test",
            "errors",
            "with the query's background",
            "by chance",
            "recall@1, unseen classes",
        ]
    ]
    for model, figures in results["retrieval"].items():
        test, held_out = figures["test"], figures.get("held_out_recall_at_1")
        rows.append(
            [
                MODELS[model],
                "" if held_out is None else f"{held_out:.1%}",
                _percent(test["recall_at_1"]),
                str(test["errors"]),
                str(test["errors_with_the_querys_background"]),
                "" if test["share_by_chance"] is None else f"{test['share_by_chance']:.0%}",
                _percent(figures["unseen"]["recall_at_1"]),
            ]
        )
    return rows


def _swap_rows(results: Mapping[str, Any]) -> list[list[str]]:
    rows = [
        [
            "trained on",
            "same background again",
            "other background",
            "other object",
            "share of the background",
        ]
    ]
    for model, figures in results["swaps"].items():
        moved = [_number(figures[name]) for name in SWAPS[1:]]
        rows.append([MODELS[model], *moved, _percent(figures["share_of_the_background"])])
    return rows


def _map_rows(results: Mapping[str, Any]) -> list[list[str]]:
    rows = [["mass on the object", "planted", "by chance", "fixed", "by chance", "difference"]]
    for name, title in MAPS.items():
        figures = results["maps"][name]
        cells = [title]
        for model in ("shortcut", "fixed"):
            cells += [_percent(figures[model]["on_object"]), f"{figures[model]['by_chance']:.1%}"]
        rows.append([*cells, _percent(figures["fixed_minus_shortcut"], signed=True)])
    return rows


def _percent(estimate: Sequence[float], *, signed: bool = False) -> str:
    value, low, high = (100 * number for number in estimate)
    return f"{value:{'+' if signed else ''}.1f}% [{low:.1f}, {high:.1f}]"


def _number(estimate: Sequence[float]) -> str:
    value, low, high = estimate
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"
