"""EfficientNet-Lite0 in two parts: a frozen trunk that runs once, and a tail that is trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.networks.build import EmbeddingNetwork, lite0_network
from benchmarks.training.tail import TailTraining, in_batches, split, train_tail
from docs.examples.shortcut.data import as_batch

__all__ = [
    "TailTraining",
    "run_in_batches",
    "starting_network",
    "tail_of",
    "train_tail",
    "trunk_of",
]


def trunk_of(network: EmbeddingNetwork) -> nn.Module:
    """Images (N, 3, S, S) to activations (N, 112, S/16, S/16)."""
    return split(network)[0]


def tail_of(network: EmbeddingNetwork) -> EmbeddingNetwork:
    """The trunk's activations to embeddings (N, D); it shares the network's own modules."""
    tail = split(network)[1]
    assert isinstance(tail, EmbeddingNetwork)
    return tail


def starting_network(embedding_dim: int | None, seed: int) -> EmbeddingNetwork:
    """ImageNet weights, frozen; without a width there is no head."""
    network = lite0_network(embedding_dim, seed=seed).requires_grad_(False)
    return network.to(memory_format=torch.channels_last)


def run_in_batches(
    module: nn.Module,
    images: NDArray[np.uint8] | Tensor,
    what: str = "",
    *,
    progress: bool = False,
) -> Tensor:
    """Outputs of all images (N, S, S, 3), or of all activations (N, C, h, w)."""
    inputs: Sequence[Tensor] | Tensor = (
        images if isinstance(images, Tensor) else list(as_batch(images))
    )
    return in_batches(module, inputs, what, progress=progress)
