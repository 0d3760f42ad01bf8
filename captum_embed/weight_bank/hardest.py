"""The tuples of largest loss of each anchor, found exactly without enumerating all of them.

A triplet or quadruplet loss grows with the distance from anchor to positive and shrinks as
negatives come nearer. So the M hardest triplets of an anchor lie among its M farthest positives
and its M nearest negatives. Those quadruplets lie among the M farthest positives, the M first
negatives whose best quadruplet is hardest, and of each of these the M nearest second negatives.
The hardest pairs are among the nearest and farthest of each kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

# Numbers of one temporary: 8 MiB in float64, near the size of a cache.
_BLOCK_NUMBERS = 2**20

# Losses (...) of an anchor's embeddings (..., D) and references (..., D), broadcast. For pairs,
# whether they are of one class (...) follows the reference.
TupleLoss = Callable[..., Tensor]

# Anchors (A,), their references (A, m, R), and which of the m are tuples (A, m), by loss.
Block = tuple[Tensor, Tensor, Tensor]


def hardest_pairs(
    loss: TupleLoss, embeddings: Tensor, labels: Tensor, count: int, *, cosine: bool
) -> Iterator[Block]:
    """Blocks of anchors with their hardest pairs; arguments and yields as in the triplets.

    The value of a pair may rise or fall with the distance, and otherwise if it is of one class.
    """
    space = _space(embeddings, cosine)
    size = max(len(labels), 4 * count * embeddings.shape[1])
    for anchors in _blocks(torch.arange(len(labels), device=labels.device), size):
        squared = _squared_distances(space, anchors)
        same = labels[anchors, None] == labels
        candidates, real = [], []
        for kind in (_without_self(same, anchors), ~same):
            for sign in (1, -1):
                near, index = _smallest((sign * squared).masked_fill(~kind, torch.inf), count)
                candidates.append(index)
                real.append(near < torch.inf)
        index, exists = _each_once(torch.cat(candidates, dim=1), torch.cat(real, dim=1))
        losses = loss(embeddings[anchors, None], embeddings[index], same.gather(1, index))
        hardest, place = _largest(losses.masked_fill(~exists, -torch.inf), count)
        yield anchors, index.gather(1, place)[..., None], hardest > -torch.inf


def hardest_triplets(
    loss: TupleLoss, embeddings: Tensor, labels: Tensor, count: int, *, cosine: bool
) -> Iterator[Block]:
    """Blocks of anchors with their hardest (positive, negative).

    Args:
        loss: Loss of (anchor, positive, negative) embeddings, broadcasting.
        embeddings: Shape (B, D).
        labels: Shape (B,).
        count: Number of tuples M.
        cosine: The loss compares directions; otherwise Euclidean distances, squared or not.

    Yields:
        Each anchor once, in order: anchors (A,), reference indices (A, m, 2) with m <= M,
        hardest first, and (A, m) that is False where an anchor has fewer tuples.
    """
    space = _space(embeddings, cosine)
    size = max(len(labels), count * embeddings.shape[1], count * count)
    for anchors in _blocks(torch.arange(len(labels), device=labels.device), size):
        squared = _squared_distances(space, anchors)
        far, positives = _farthest_positives(squared, labels, anchors, count)
        same = labels[anchors, None] == labels
        near, negatives = _smallest(squared.masked_fill(same, torch.inf), count)
        losses = loss(
            embeddings[anchors][:, None, None],
            embeddings[positives][:, :, None],
            embeddings[negatives][:, None],
        )
        real = (far > -torch.inf)[:, :, None] & (near < torch.inf)[:, None]
        hardest, place = _largest(losses.masked_fill(~real, -torch.inf).flatten(1), count)
        columns = negatives.shape[1]
        chosen = [positives.gather(1, place // columns), negatives.gather(1, place % columns)]
        yield anchors, torch.stack(chosen, dim=2), hardest > -torch.inf


def hardest_quadruplets(
    loss: TupleLoss, embeddings: Tensor, labels: Tensor, count: int, *, cosine: bool
) -> Iterator[Block]:
    """Blocks of anchors of one class with their hardest (positive, negative, second negative).

    The two negatives differ in class from the anchor and from each other. Arguments and yields
    as in :func:`hardest_triplets`, with references (A, m, 3) and anchors class by class.
    """
    space = _space(embeddings, cosine)
    neighbors = _neighbors_of_other_classes(space, labels, count)
    for label in labels.unique():
        second, second_exists = _outside_class(neighbors, labels, label, count)
        usable = (labels != label) & second_exists[:, 0]
        size = max(embeddings.numel(), count * count * max(embeddings.shape[1], count))
        for anchors in _blocks((labels == label).nonzero()[:, 0], size):
            squared = _squared_distances(space, anchors)
            far, positives = _farthest_positives(squared, labels, anchors, count)
            best = loss(
                embeddings[anchors][:, None],
                embeddings[positives[:, :1]],
                embeddings[None],
                embeddings[second[:, 0]][None],
            )
            hardness, first = _largest(best.masked_fill(~usable, -torch.inf), count)
            losses = loss(
                embeddings[anchors][:, None, None, None],
                embeddings[positives][:, :, None, None],
                embeddings[first][:, None, :, None],
                embeddings[second[first]][:, None],
            )
            real = (far > -torch.inf)[:, :, None, None] & (hardness > -torch.inf)[:, None, :, None]
            real = real & second_exists[first][:, None]
            hardest, place = _largest(losses.masked_fill(~real, -torch.inf).flatten(1), count)
            by_pair, column = place // second.shape[1], place % second.shape[1]
            negative = first.gather(1, by_pair % first.shape[1])
            chosen = [
                positives.gather(1, by_pair // first.shape[1]),
                negative,
                second[negative, column],
            ]
            yield anchors, torch.stack(chosen, dim=2), hardest > -torch.inf


def _blocks(anchors: Tensor, numbers_each: int) -> Iterator[Tensor]:
    yield from anchors.split(max(1, _BLOCK_NUMBERS // numbers_each))


def _space(embeddings: Tensor, cosine: bool) -> Tensor:
    """Points whose Euclidean distances are in the order of the loss's distances."""
    wide = embeddings.to(torch.float64)
    return F.normalize(wide) if cosine else wide


def _squared_distances(space: Tensor, anchors: Tensor) -> Tensor:
    norms = space.square().sum(1)
    return torch.addmm(norms[anchors, None] + norms, space[anchors], space.T, alpha=-2)


def _farthest_positives(
    squared: Tensor, labels: Tensor, anchors: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    positive = _without_self(labels[anchors, None] == labels, anchors)
    most = min(count, max(1, int(positive.sum(1).max())))
    return squared.masked_fill(~positive, -torch.inf).topk(most)


def _without_self(mask: Tensor, anchors: Tensor) -> Tensor:
    return mask.scatter(1, anchors[:, None], False)


def _each_once(index: Tensor, exists: Tensor) -> tuple[Tensor, Tensor]:
    """Rows sorted by index, with all but the first of equal ones marked as absent."""
    index = index.masked_fill(~exists, -1).sort(dim=1).values
    first = torch.ones_like(exists)
    first[:, 1:] = index[:, 1:] != index[:, :-1]
    return index.clamp(min=0), first & (index >= 0)


def _smallest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    return values.topk(min(count, values.shape[1]), largest=False)


def _largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    ordered, place = values.sort(dim=1, descending=True, stable=True)
    return ordered[:, :count], place[:, :count]


def _neighbors_of_other_classes(space: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """For each image its nearest of other classes (B, L), and which of them exist.

    L leaves ``count`` of them after any one class is taken out.
    """
    length = min(len(labels), count + int(labels.unique(return_counts=True)[1].max()))
    found = []
    for images in _blocks(torch.arange(len(labels), device=labels.device), len(labels)):
        own = labels[images, None] == labels
        squared = _squared_distances(space, images).masked_fill(own, torch.inf)
        found.append(_smallest(squared, length))
    near = torch.cat([distances for distances, _ in found])
    return torch.cat([index for _, index in found]), near < torch.inf


def _outside_class(
    neighbors: tuple[Tensor, Tensor], labels: Tensor, label: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """The ``count`` nearest neighbours that are not of this class, and which of them exist."""
    index, exists = neighbors
    kept = exists & (labels[index] != label)
    order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
    return index.gather(1, order), kept.gather(1, order)
