"""Training of a network's last part alone: the frozen part runs once on all images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.networks.build import EmbeddingNetwork
from benchmarks.networks.lite0 import Lite0Features
from benchmarks.training.triplets import ClassBalancedBatches, batch_triplet_loss

FIRST_TRAINED_BLOCK = 11
"""Blocks of EfficientNet-Lite0 from here on, at stride 32, are the tail; there are 16."""

BATCH = 16
IMAGES_PER_CLASS = 4


def split(network: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Trunk and tail, which share the network's own modules.

    Args:
        network (nn.Module): of EfficientNet-Lite0 the tail is the last blocks and the head;
            of any other network it is the whole, and the trunk gives the images themselves.

    Returns:
        tuple: images (N, 3, S, S) to activations, and activations to embeddings (N, D).

    Example:
        >>> trunk, tail = split(EmbeddingNetwork(nn.Conv2d(3, 4, 3), nn.Linear(4, 2)))
        >>> tail(trunk(torch.rand(5, 3, 8, 8))).shape
        torch.Size([5, 2])
    """
    if not isinstance(network, EmbeddingNetwork) or not isinstance(network.features, Lite0Features):
        return nn.Identity(), network
    features = network.features
    trunk = nn.Sequential(features.stem, features.blocks[:FIRST_TRAINED_BLOCK])
    above = nn.Sequential(features.blocks[FIRST_TRAINED_BLOCK:], features.last)
    return trunk, EmbeddingNetwork(above, network.head, network.pool).eval()


@torch.no_grad()
def in_batches(
    module: nn.Module, inputs: Sequence[Tensor] | Tensor, what: str = "", *, progress: bool = False
) -> Tensor:
    """Outputs of all inputs, each (C, h, w); a sequence may load an input when it is asked for."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    starts: Iterable[int] = range(0, len(inputs), BATCH)
    outputs = []
    for start in tqdm(starts, what, leave=False, disable=not progress):
        batch = [inputs[index] for index in range(start, min(start + BATCH, len(inputs)))]
        shown = torch.stack(batch).to(device, memory_format=torch.channels_last)
        outputs.append(module(shown))
    return torch.cat(outputs)


@dataclass(frozen=True)
class TailTraining:
    """Settings of `train_tail`.

    Args:
        steps (int): batches of all classes, or 8 of them, with four images of each.
        margin (float): of the triplet loss, in squared Euclidean distance.
        learning_rate (float): of AdamW, for all but the head.
        head_learning_rate (float): likewise for the head.
        seed (int): of the batches.
        classes_per_batch (int): at most.
    """

    steps: int
    margin: float = 0.2
    learning_rate: float = 1e-4
    head_learning_rate: float = 1e-3
    seed: int = 0
    classes_per_batch: int = 8


def train_tail(
    tail: nn.Module,
    activations: Tensor,
    labels: Sequence[int],
    training: TailTraining,
    what: str = "training",
    *,
    progress: bool = False,
) -> list[float]:
    """Train with the triplet loss; batch normalisation keeps its statistics.

    Args:
        tail (nn.Module): trained in place, and handed back frozen.
        activations (Tensor): (N, C, h, w), of the trunk.
        labels (sequence of int): N classes, with two images of each or more.
        training (TailTraining): settings.
        what (str): on the progress bar.
        progress (bool): show it.

    Returns:
        list of float: the loss of each batch.

    Raises:
        InputError: a single class, or a class with a single image.
    """
    classes = torch.tensor(labels, device=activations.device)
    tail.eval().requires_grad_(True)
    head = list(tail.head.parameters()) if isinstance(tail, EmbeddingNetwork) else []
    in_head = {id(parameter) for parameter in head}
    others = [p for p in tail.parameters() if id(p) not in in_head]
    optimizer = torch.optim.AdamW(
        [
            {"params": parameters, "lr": rate}
            for parameters, rate in (
                (others, training.learning_rate),
                (head, training.head_learning_rate),
            )
            if parameters
        ]
    )
    batches = ClassBalancedBatches(
        labels,
        range(training.steps),
        min(training.classes_per_batch, len(set(labels))),
        IMAGES_PER_CLASS,
        training.seed,
    )
    losses = []
    for batch in tqdm(batches, what, leave=False, disable=not progress):
        indices = torch.tensor([index for index, _ in batch])
        with torch.enable_grad():
            loss = batch_triplet_loss(tail(activations[indices]), classes[indices], training.margin)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    tail.requires_grad_(False)
    return losses
