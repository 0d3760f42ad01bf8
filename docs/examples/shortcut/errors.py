"""What retrieval errors have in common: the wrong class, before the right background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.metrics.bootstrap import bootstrap_interval
from captum_embed.errors import InputError


@dataclass(frozen=True)
class AttributedErrors:
    """The nearest neighbour of each query, and what it shares with it.

    Args:
        nearest (np.ndarray): (N,) index of the nearest gallery image.
        right_class (np.ndarray): (N,) bool, it shows the query's class.
        same_background (np.ndarray): (N,) bool, it has the query's background.
        chance (np.ndarray): (N,) share of the gallery images of other classes that have the
            query's background: how often an error that ignores backgrounds would.
    """

    nearest: NDArray[np.intp]
    right_class: NDArray[np.bool_]
    same_background: NDArray[np.bool_]
    chance: NDArray[np.float64]

    @property
    def wrong(self) -> NDArray[np.intp]:
        """Indices of the queries whose nearest neighbour is of another class."""
        return np.flatnonzero(~self.right_class)

    def as_json(self) -> dict[str, Any]:
        """Recall@1 and the share of errors with the query's background, with 95% intervals."""
        wrong = self.wrong
        same = self.same_background[wrong]
        return {
            "queries": len(self.nearest),
            "recall_at_1": bootstrap_interval(self.right_class).as_floats(),
            "errors": len(wrong),
            "errors_with_the_querys_background": int(same.sum()),
            "share_with_the_querys_background": (
                bootstrap_interval(same).as_floats() if len(wrong) else None
            ),
            "share_by_chance": float(self.chance[wrong].mean()) if len(wrong) else None,
            "neighbours_with_the_querys_background": bootstrap_interval(
                self.same_background
            ).as_floats(),
        }


def attribute_errors(
    embeddings: Tensor, labels: Sequence[int], backgrounds: Sequence[str]
) -> AttributedErrors:
    """Find the nearest other image of each image, and what the two have in common.

    Args:
        embeddings (Tensor): (N, D); the distance is Euclidean, ties go to the lower index.
        labels (sequence of int): N classes.
        backgrounds (sequence of str): N names.

    Returns:
        AttributedErrors: of the N queries, each against the N - 1 others.

    Raises:
        InputError: fewer than two images, or labels or backgrounds of another length.

    Example:
        >>> embeddings = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
        >>> errors = attribute_errors(embeddings, [1, 2, 1, 1], ["moon", "moon", "wood", "moon"])
        >>> errors.nearest, errors.right_class, errors.same_background
        (array([1, 0, 3, 2]), array([False, False,  True,  True]), array([ True,  True, False, False]))
    """  # noqa: E501
    count = len(embeddings)
    if count < 2 or embeddings.ndim != 2:
        raise InputError(
            f"embeddings have shape {tuple(embeddings.shape)}; expected (N, D) of 2 images or more"
        )
    if len(labels) != count or len(backgrounds) != count:
        raise InputError(
            f"{count} embeddings, {len(labels)} labels and {len(backgrounds)} backgrounds; "
            "expected as many of each"
        )
    distances = _distances(embeddings, embeddings).fill_diagonal_(torch.inf)
    nearest = distances.argmin(1).numpy()
    classes, places = np.asarray(labels), np.asarray(backgrounds)
    other_class = classes[:, None] != classes[None]
    alike = places[:, None] == places[None]
    return AttributedErrors(
        nearest,
        classes[nearest] == classes,
        places[nearest] == places,
        (other_class & alike).sum(1) / np.maximum(other_class.sum(1), 1),
    )


def held_out_recall(
    queries: Tensor, query_labels: Sequence[int], gallery: Tensor, gallery_labels: Sequence[int]
) -> float:
    """Share of the queries whose nearest gallery image is of their class.

    Args:
        queries (Tensor): embeddings (Q, D).
        query_labels (sequence of int): Q classes.
        gallery (Tensor): embeddings (G, D) of other images.
        gallery_labels (sequence of int): G classes.
    """
    nearest = _distances(queries, gallery).argmin(1).numpy()
    return float((np.asarray(gallery_labels)[nearest] == np.asarray(query_labels)).mean())


def _distances(first: Tensor, second: Tensor) -> Tensor:
    # Differences rather than products, in which rounding decides between near neighbours.
    return torch.cdist(first.double(), second.double(), compute_mode="donot_use_mm_for_euclid_dist")
