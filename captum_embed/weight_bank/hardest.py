"""The tuples of largest loss of each anchor, found exactly without enumerating all of them.

A triplet or quadruplet loss grows with the distance from anchor to positive and shrinks as
negatives come nearer. So the M hardest triplets of an anchor lie among its M farthest positives
and its M nearest negatives. Those quadruplets lie among the M farthest positives, the M first
negatives whose best quadruplet is hardest, and of each of these the M nearest second negatives.
The hardest pairs are among the nearest and farthest of each kind.

References come from a pool of images, so the cost is the anchors times the pool.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_embed.metric_forwards import MetricForward

# Numbers of one temporary: 8 MiB in float64, near the size of a cache.
_BLOCK_NUMBERS = 2**20

# Anchors (A,), their references (A, m, R), and which of the m are tuples (A, m), by loss.
Block = tuple[Tensor, Tensor, Tensor]


class HardestTuples:
    """The hardest tuples of every image, with references from a pool.

    Args:
        forward: Gives the loss of a tuple. Of a triplet or quadruplet it grows with the distance
            to the positive, and shrinks with those to and between negatives; of a pair it rises
            or falls with the distance, and otherwise if the pair is of one class.
        embeddings: Of all images, (B, D).
        labels: Of all images, (B,).
        pool: Indices (P,) of the images that may be references.
        count: Number of tuples M.
    """

    def __init__(
        self,
        forward: MetricForward,
        embeddings: Tensor,
        labels: Tensor,
        pool: Tensor,
        count: int,
    ) -> None:
        self._loss = forward.tuple_loss
        self._measure = forward.measure
        self._embeddings, self._labels, self._count = embeddings, labels, count
        self._pool, self._references, self._classes = pool, embeddings[pool], labels[pool]
        self._named = isinstance(forward.distance, str)
        self._cosine = self._named and forward.distance == "cosine"
        self._pool_points = self._points(self._references)

    def pairs(self) -> Iterator[Block]:
        """Each anchor once, in order: anchors (A,), references (A, m, 1) with m <= M, hardest
        first, and (A, m) that is False where an anchor has fewer tuples.
        """
        width = self._embeddings.shape[1]
        for anchors in self._blocks(self._everyone(), 4 * self._count * width):
            near = self._distances(anchors)
            same, other = self._kinds(anchors)
            candidates, real = [], []
            for kind in (same & other, ~same):
                for sign in (1, -1):
                    values, index = self._smallest((sign * near).masked_fill(~kind, torch.inf))
                    candidates.append(index)
                    real.append(values < torch.inf)
            index, exists = _each_once(torch.cat(candidates, dim=1), torch.cat(real, dim=1))
            losses = self._loss(
                self._embeddings[anchors, None], self._references[index], same.gather(1, index)
            )
            hardest, place = self._largest(losses.masked_fill(~exists, -torch.inf))
            yield anchors, self._pool[index.gather(1, place)][..., None], hardest > -torch.inf

    def triplets(self) -> Iterator[Block]:
        """As :meth:`pairs`, with references (A, m, 2): positive, negative."""
        count, width = self._count, self._embeddings.shape[1]
        for anchors in self._blocks(self._everyone(), count * max(count, width)):
            near = self._distances(anchors)
            same, other = self._kinds(anchors)
            far, positives = self._farthest(near, same & other)
            close, negatives = self._smallest(near.masked_fill(same, torch.inf))
            losses = self._loss(
                self._embeddings[anchors][:, None, None],
                self._references[positives][:, :, None],
                self._references[negatives][:, None],
            )
            real = (far > -torch.inf)[:, :, None] & (close < torch.inf)[:, None]
            hardest, place = self._largest(losses.masked_fill(~real, -torch.inf).flatten(1))
            columns = negatives.shape[1]
            chosen = [positives.gather(1, place // columns), negatives.gather(1, place % columns)]
            yield anchors, self._pool[torch.stack(chosen, dim=2)], hardest > -torch.inf

    def quadruplets(self) -> Iterator[Block]:
        """As :meth:`pairs`, class by class, with references (A, m, 3): positive, negative, second
        negative. The negatives differ in class from the anchor and from each other.
        """
        count, width = self._count, self._embeddings.shape[1]
        neighbors = self._neighbors_of_other_classes()
        for label in self._labels.unique():
            second, second_exists = self._outside_class(neighbors, label)
            usable = (self._classes != label) & second_exists[:, 0]
            size = max(self._references.numel(), count * count * max(width, count))
            for anchors in self._blocks((self._labels == label).nonzero()[:, 0], size):
                own = self._embeddings[anchors]
                same, other = self._kinds(anchors)
                far, positives = self._farthest(self._distances(anchors), same & other)
                best = self._loss(
                    own[:, None],
                    self._references[positives[:, :1]],
                    self._references[None],
                    self._references[second[:, 0]][None],
                )
                hardness, first = self._largest(best.masked_fill(~usable, -torch.inf))
                losses = self._loss(
                    own[:, None, None, None],
                    self._references[positives][:, :, None, None],
                    self._references[first][:, None, :, None],
                    self._references[second[first]][:, None],
                )
                real = (far > -torch.inf)[:, :, None] & (hardness > -torch.inf)[:, None]
                real = real[..., None] & second_exists[first][:, None]
                hardest, place = self._largest(losses.masked_fill(~real, -torch.inf).flatten(1))
                by_pair, column = place // second.shape[1], place % second.shape[1]
                negative = first.gather(1, by_pair % first.shape[1])
                chosen = [
                    positives.gather(1, by_pair // first.shape[1]),
                    negative,
                    second[negative, column],
                ]
                yield anchors, self._pool[torch.stack(chosen, dim=2)], hardest > -torch.inf

    def _everyone(self) -> Tensor:
        return torch.arange(len(self._labels), device=self._labels.device)

    def _blocks(self, anchors: Tensor, numbers_each: int) -> Iterator[Tensor]:
        row = len(self._pool) if self._named else self._references.numel()
        yield from anchors.split(max(1, _BLOCK_NUMBERS // max(row, numbers_each)))

    def _distances(self, images: Tensor) -> Tensor:
        """Of images (A,) to the pool, (A, P), in the order of the loss's distances."""
        if not self._named:
            return self._measure(self._embeddings[images][:, None], self._references[None])
        own, pool = self._points(self._embeddings[images]), self._pool_points
        norms = own.square().sum(1)[:, None] + pool.square().sum(1)
        return torch.addmm(norms, own, pool.T, alpha=-2)

    def _points(self, embeddings: Tensor) -> Tensor:
        """Points whose Euclidean distances are in the order of the loss's distances."""
        wide = embeddings.to(torch.float64)
        return F.normalize(wide) if self._cosine else wide

    def _kinds(self, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the pool are of the anchors' classes, and which are not the anchor, (A, P)."""
        return self._labels[anchors, None] == self._classes, anchors[:, None] != self._pool

    def _farthest(self, near: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
        most = min(self._count, max(1, int(positive.sum(1).max())))
        return near.masked_fill(~positive, -torch.inf).topk(most)

    def _smallest(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return values.topk(min(self._count, values.shape[1]), largest=False)

    def _largest(self, values: Tensor) -> tuple[Tensor, Tensor]:
        ordered, place = values.sort(dim=1, descending=True, stable=True)
        return ordered[:, : self._count], place[:, : self._count]

    def _neighbors_of_other_classes(self) -> tuple[Tensor, Tensor]:
        """For each of the pool its nearest of other classes (P, L), and which of them exist.

        L leaves ``count`` of them after any one class is taken out.
        """
        largest = int(self._classes.unique(return_counts=True)[1].max())
        length = min(len(self._pool), self._count + largest)
        found = []
        for images in self._blocks(self._pool, 0):
            same, _ = self._kinds(images)
            near = self._distances(images).masked_fill(same, torch.inf)
            found.append(near.topk(length, largest=False))
        near = torch.cat([distances for distances, _ in found])
        return torch.cat([index for _, index in found]), near < torch.inf

    def _outside_class(
        self, neighbors: tuple[Tensor, Tensor], label: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The nearest neighbours that are not of this class, and which of them exist."""
        index, exists = neighbors
        kept = exists & (self._classes[index] != label)
        order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, : self._count]
        return index.gather(1, order), kept.gather(1, order)


def _each_once(index: Tensor, exists: Tensor) -> tuple[Tensor, Tensor]:
    """Rows sorted by index, with all but the first of equal ones marked as absent."""
    index = index.masked_fill(~exists, -1).sort(dim=1).values
    first = torch.ones_like(exists)
    first[:, 1:] = index[:, 1:] != index[:, :-1]
    return index.clamp(min=0), first & (index >= 0)
