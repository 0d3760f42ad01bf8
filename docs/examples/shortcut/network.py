"""EfficientNet-Lite0 in two parts: a frozen trunk that runs once, and a tail that is trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.networks.build import EmbeddingNetwork, lite0_network
from benchmarks.networks.lite0 import Lite0Features
from benchmarks.training.triplets import ClassBalancedBatches, batch_triplet_loss
from docs.examples.shortcut.data import as_batch

FIRST_TRAINED_BLOCK = 11
"""Blocks from here on, at stride 32, are the tail; there are 16."""

BATCH = 16
_IMAGES_PER_CLASS = 4


def trunk_of(network: EmbeddingNetwork) -> nn.Module:
    """Images (N, 3, S, S) to activations (N, 112, S/16, S/16)."""
    features = _features_of(network)
    return nn.Sequential(features.stem, features.blocks[:FIRST_TRAINED_BLOCK])


def tail_of(network: EmbeddingNetwork) -> EmbeddingNetwork:
    """The trunk's activations to embeddings (N, D); it shares the network's own modules."""
    features = _features_of(network)
    blocks = features.blocks[FIRST_TRAINED_BLOCK:]
    return EmbeddingNetwork(nn.Sequential(blocks, features.last), network.head).eval()


def _features_of(network: EmbeddingNetwork) -> Lite0Features:
    assert isinstance(network.features, Lite0Features)
    return network.features


def starting_network(embedding_dim: int | None, seed: int) -> EmbeddingNetwork:
    """ImageNet weights, frozen; without a width there is no head."""
    network = lite0_network(embedding_dim, seed=seed).requires_grad_(False)
    return network.to(memory_format=torch.channels_last)


@torch.no_grad()
def run_in_batches(
    module: nn.Module,
    images: NDArray[np.uint8] | Tensor,
    what: str = "",
    *,
    progress: bool = False,
) -> Tensor:
    """Outputs of all images (N, S, S, 3), or of all activations (N, C, h, w)."""
    starts: Iterable[int] = range(0, len(images), BATCH)
    outputs = []
    for start in tqdm(starts, what, leave=False, disable=not progress):
        batch = images[start : start + BATCH]
        outputs.append(module(batch if isinstance(batch, Tensor) else as_batch(batch)))
    return torch.cat(outputs)


@dataclass(frozen=True)
class TailTraining:
    """Settings of `train_tail`.

    Args:
        steps (int): batches of all classes with four images of each.
        margin (float): of the triplet loss, in squared Euclidean distance.
        learning_rate (float): of AdamW, for the tail's blocks.
        head_learning_rate (float): likewise for the head.
        seed (int): of the batches.
    """

    steps: int
    margin: float
    learning_rate: float
    head_learning_rate: float
    seed: int


def train_tail(
    tail: EmbeddingNetwork,
    activations: Tensor,
    labels: Sequence[int],
    training: TailTraining,
    what: str = "training",
    *,
    progress: bool = False,
) -> list[float]:
    """Train with the triplet loss; batch normalisation keeps its ImageNet statistics.

    Args:
        tail (EmbeddingNetwork): trained in place, and handed back frozen.
        activations (Tensor): (N, 112, h, w), of the trunk.
        labels (sequence of int): N classes, with two images of each or more.
        training (TailTraining): settings.
        what (str): on the progress bar.
        progress (bool): show it.

    Returns:
        list of float: the loss of each batch.
    """
    classes = torch.tensor(labels)
    tail.eval().requires_grad_(True)
    optimizer = torch.optim.AdamW(
        [
            {"params": list(tail.features.parameters()), "lr": training.learning_rate},
            {"params": list(tail.head.parameters()), "lr": training.head_learning_rate},
        ]
    )
    batches = ClassBalancedBatches(
        labels, range(training.steps), len(set(labels)), _IMAGES_PER_CLASS, training.seed
    )
    losses = []
    for batch in tqdm(batches, what, leave=False, disable=not progress):
        indices = torch.tensor([index for index, _ in batch])
        loss = batch_triplet_loss(tail(activations[indices]), classes[indices], training.margin)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    tail.requires_grad_(False)
    return losses
