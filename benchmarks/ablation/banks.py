"""Weight banks of the ablation, built by the library from kept activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.ablation.activations import ActivationCache, Tail
from benchmarks.ablation.variants import BankVariant, Variant
from captum_embed import MetricForward, TripletForward, WeightBank, build_weight_bank


class KeptActivations(Dataset[tuple[Tensor, int]]):
    """(activation, label) of some images at one layer: the input of a `Tail`."""

    def __init__(self, cache: ActivationCache, indices: Sequence[int], layer: str) -> None:
        self.cache = cache
        self.indices = indices
        self.layer = layer
        self.targets = [cache.records[index].label for index in indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return self.cache.load_layer(self.indices[place], self.layer)[0], self.targets[place]


class AllRolesTriplet(MetricForward):
    """Loss of an image as the anchor of a tuple, as its positive, and as a negative.

    References: a positive, a negative, and another image of the negative's class.
    """

    reference_roles = ("same", "different", "any")

    def __init__(self, encoder: Tail, margin: float) -> None:
        super().__init__(encoder)
        self.margin = margin

    def tuple_loss(self, anchor: Tensor, *references: Tensor) -> Tensor:
        positive, negative, negatives_positive = references

        def triplet(a: Tensor, p: Tensor, n: Tensor) -> Tensor:
            return F.relu(self.measure(a, p) - self.measure(a, n) + self.margin)

        return (
            triplet(anchor, positive, negative)
            + triplet(positive, anchor, negative)
            + triplet(negative, negatives_positive, anchor)
        )


def mine_all_roles(
    anchor: int, embeddings: Tensor, labels: Tensor, num_tuples: int, generator: torch.Generator
) -> Tensor:
    """The hardest triplets of an anchor, and for each negative another image of its class."""
    distances = (embeddings - embeddings[anchor]).square().sum(1)
    same = labels == labels[anchor]
    positives = torch.nonzero(same & (torch.arange(len(labels)) != anchor))[:, 0]
    negatives = torch.nonzero(~same)[:, 0]
    losses = distances[positives][:, None] - distances[negatives][None]
    hardest = losses.flatten().topk(min(num_tuples, losses.numel())).indices
    chosen_positives = positives[hardest // len(negatives)]
    chosen_negatives = negatives[hardest % len(negatives)]
    others = []
    for negative in chosen_negatives.tolist():
        members = torch.nonzero(labels == labels[negative])[:, 0]
        members = members[members != negative]
        others.append(int(members[torch.randint(len(members), (1,), generator=generator)]))
    return torch.stack([chosen_positives, chosen_negatives, torch.tensor(others)], dim=1)


def build_bank(
    cache: ActivationCache,
    indices: Sequence[int],
    variant: BankVariant,
    *,
    margin: float,
    seed: int,
) -> WeightBank:
    """The bank of some images."""
    tail = Tail(cache.network, variant)
    forward: MetricForward = TripletForward(tail, margin, variant.distance, variant.explains)
    mining: Any = variant.mining
    if variant.roles == "all":
        forward, mining = AllRolesTriplet(tail, margin), mine_all_roles
    return build_weight_bank(
        forward,
        tail.entry,
        KeptActivations(cache, indices, variant.layer),
        num_tuples=variant.num_tuples,
        mining=mining,
        batch_size=16,
        seed=seed,
        progress=False,
    )


def transferred(variant: Variant, bank: WeightBank, queries: Tensor) -> Tensor:
    """Filtered weights of queries (Q, D), as (Q, C)."""
    weights = bank.weights
    if variant.uniform:
        return torch.ones(len(queries), weights.shape[1])
    if variant.entry_filter is not None:
        weights = variant.entry_filter(weights)
    if variant.class_mean:
        assert bank.labels is not None
        for label in bank.labels.unique():
            members = bank.labels == label
            weights = weights.index_put((members,), weights[members].mean(0))
    distances, indices = bank.search(queries, min(variant.num_neighbors or len(bank), len(bank)))
    share = torch.ones_like(distances)
    if variant.nearer_counts_more:
        share = 1 / (distances + 1e-6)
    averaged = (weights[indices] * (share / share.sum(1, keepdim=True))[..., None]).sum(1)
    return averaged if variant.channel_filter is None else variant.channel_filter(averaged)
