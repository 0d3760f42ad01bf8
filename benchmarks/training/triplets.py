"""Batches and loss of triplet training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_embed.errors import InputError

MINING = ("semihard", "hardest")


class ClassBalancedBatches:
    """P classes and K images of each per batch; batch number s depends on the seed and s alone.

    That makes a resumed training see exactly the batches of an uninterrupted one. Each index
    comes with a seed for its own augmentation.

    Args:
        labels (sequence of int): the class of each image.
        steps (range): the batches to give.
        classes_per_batch (int): P; all classes, where there are fewer.
        images_per_class (int): K; drawn with replacement from a class that has fewer.
        seed (int): of all draws.

    Raises:
        InputError: fewer than two classes, or a class with a single image, which has no positive.
    """

    def __init__(
        self,
        labels: Sequence[int],
        steps: range,
        classes_per_batch: int,
        images_per_class: int,
        seed: int,
    ) -> None:
        if classes_per_batch < 2 or images_per_class < 2:
            raise InputError(
                "a batch needs 2 classes and 2 images of each or more, got "
                f"classes_per_batch={classes_per_batch}, images_per_class={images_per_class}"
            )
        numbers = np.asarray(labels)
        self.members = {int(c): np.flatnonzero(numbers == c) for c in np.unique(numbers)}
        lonely = [c for c, members in self.members.items() if len(members) < 2]
        if len(self.members) < 2:
            raise InputError(
                f"triplets need two classes or more, the images have {len(self.members)}"
            )
        if lonely:
            raise InputError(
                f"class {lonely[0]} has a single image; a triplet needs two of a class"
            )
        self.steps = steps
        self.classes_per_batch = min(classes_per_batch, len(self.members))
        self.images_per_class = images_per_class
        self.seed = seed

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            rng = np.random.default_rng((self.seed, step))
            classes = rng.choice(list(self.members), self.classes_per_batch, replace=False)
            chosen = [self._members_of(int(c), rng) for c in classes]
            indices = np.concatenate(chosen)
            seeds = rng.integers(2**62, size=len(indices))
            yield [(int(i), int(s)) for i, s in zip(indices, seeds, strict=True)]

    def _members_of(self, number: int, rng: np.random.Generator) -> np.ndarray:
        members = self.members[number]
        enough = len(members) >= self.images_per_class
        drawn: np.ndarray = rng.choice(members, self.images_per_class, replace=not enough)
        return drawn


def batch_triplet_loss(
    embeddings: Tensor, labels: Tensor, margin: float, mining: str = "semihard"
) -> Tensor:
    """Triplet loss of squared Euclidean distances, over the triplets mined in the batch.

    Args:
        embeddings (Tensor): (N, D).
        labels (Tensor): (N,) integers.
        margin (float): a negative should be at least this much farther than the positive.
        mining (str): ``"hardest"``, per anchor its farthest positive and nearest negative (Hermans
            et al. 2017); ``"semihard"``, per anchor and positive the nearest negative that is
            farther than the positive, or the farthest where there is none (Schroff et al. 2015).

    Returns:
        Tensor: scalar, the mean over the mined triplets with non-zero loss; zero without any.
    """
    if mining not in MINING:
        raise InputError(f"mining is {mining!r}; expected one of {MINING}")
    squared = (embeddings[:, None] - embeddings[None]).square().sum(-1)
    same = labels[:, None] == labels[None]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    if mining == "hardest":
        near = squared.masked_fill(same, torch.inf).amin(1)
        far = squared.masked_fill(~positive, -torch.inf).amax(1)
        losses = F.relu(far - near + margin)[positive.any(1) & (~same).any(1)]
    else:
        anchors, positives = positive.nonzero(as_tuple=True)
        pair = squared[anchors, positives]
        to_negatives = squared[anchors].masked_fill(same[anchors], torch.inf)
        farther = to_negatives.masked_fill(to_negatives <= pair[:, None], torch.inf).amin(1)
        farthest = squared[anchors].masked_fill(same[anchors], -torch.inf).amax(1)
        negative = torch.where(farther.isfinite(), farther, farthest)
        losses = F.relu(pair - negative + margin)[negative.isfinite()]
    return losses.sum() / (losses > 0).sum().clamp(min=1)
