"""Maps of the shortcut example: on which part of a picture does its embedding rest?"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.networks.build import EmbeddingNetwork
from captum_embed import (
    EmbeddingLayerGradCam,
    PairForward,
    TripletForward,
    build_weight_bank,
    channel_filters,
)
from captum_embed.recipes import LOCALIZE

MAPS = {
    "localize": "LOCALIZE",
    "absolute": "transferred weights, absolute",
    "signed": "transferred weights, signed",
    "pair": "likeness to the nearest, signed",
}
"""The maps compared, and what tables call them."""

_BATCH = 16


def explain(
    tail: EmbeddingNetwork,
    training: Tensor,
    labels: tuple[int, ...],
    queries: Tensor,
    neighbours: Tensor,
    *,
    num_neighbors: int,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Maps (N, 1, h, w) of queries, for each of `MAPS`.

    Args:
        tail (EmbeddingNetwork): the network above the trunk.
        training (Tensor): activations (T, C, H, W) of its training images, for the bank.
        labels (tuple of int): their T classes.
        queries (Tensor): activations (N, C, H, W) of the images to explain.
        neighbours (Tensor): (N, C, H, W), of the nearest other image of each query.
        num_neighbors (int): bank entries averaged.
        progress (bool): show bars.

    Returns:
        dict: signed where the map is. Above zero, ``"signed"`` speaks for the class that the
        query's neighbours in the bank have, and ``"pair"`` for its likeness to `neighbours`.
    """
    forward = TripletForward(tail)
    layers = tail.features, tail.features[0]  # type: ignore[index]
    images = list(zip(training, labels, strict=True))
    bank, block_bank = build_weight_bank(forward, layers, images, progress=progress)
    last, last_block = layers
    count = min(num_neighbors, len(bank))
    absolute = EmbeddingLayerGradCam(
        forward, last, weight_bank=bank, channel_filter=channel_filters.absolute
    )
    signed = EmbeddingLayerGradCam(forward, last, weight_bank=bank)
    pair = EmbeddingLayerGradCam(PairForward(tail, "similarity", distance="cosine"), last)
    localize = LOCALIZE.grad_cam(forward, last_block, weight_bank=block_bank)
    batches = list(zip(queries.split(_BATCH), neighbours.split(_BATCH), strict=True))
    return {
        "localize": torch.cat([localize.attribute(q) for q, _ in batches]),
        "absolute": torch.cat([absolute.attribute(q, num_neighbors=count) for q, _ in batches]),
        "signed": torch.cat([signed.attribute(q, num_neighbors=count) for q, _ in batches]),
        "pair": torch.cat([pair.attribute(both)[0] for both in batches]),
    }


def object_shares(
    maps: Tensor, masks: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of each map's positive mass on the object of its image, and by chance.

    Args:
        maps (Tensor): (N, 1, h, w), brought to the masks' size bilinearly after a ReLU.
        masks (np.ndarray): (N, H, W) bool.

    Returns:
        Share on the image's own mask, (N,), and the mean share on the masks of the other images,
        (N,): what a map that knows nothing of this image's object would have. An empty map has 0.

    Example:
        >>> masks = np.array([[[True, False]], [[False, True]]])
        >>> object_shares(torch.tensor([[[[3.0, 1.0]]], [[[1.0, 1.0]]]]), masks)
        (array([0.75, 0.5 ]), array([0.25, 0.5 ]))
    """
    heat = F.interpolate(F.relu(maps).double(), size=masks.shape[1:], mode="bilinear").flatten(1)
    on_masks = heat @ torch.from_numpy(masks).flatten(1).double().T
    shares = (on_masks / heat.sum(1, keepdim=True).clamp(min=1e-300)).numpy()
    own = shares.diagonal().copy()
    return own, (shares.sum(1) - own) / max(1, len(masks) - 1)
