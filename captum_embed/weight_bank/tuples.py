r"""All tuples of an anchor, and its hardest ones, without enumerating them.

**All.** Without its hinge, a loss is a sum of distances. The mean over every tuple of an anchor
:math:`a` is then :math:`\sum_i w_i\, d(a, x_i)` over the other images, where :math:`w_i` depends
only on the class of image :math:`i`. But for what does not depend on :math:`a`, that is of squared
Euclidean distances :math:`(\sum_i w_i) |a|^2 - 2 a \cdot \sum_i w_i x_i`, and of cosine
distances :math:`-\hat a \cdot \sum_i w_i \hat x_i`. Sums of classes give
:math:`\sum_i w_i x_i` for all anchors, at a cost linear in the images.

**Hardest.** A triplet or quadruplet loss grows with the distance from anchor to positive and
shrinks as negatives come nearer. So the M hardest triplets of an anchor lie among its M farthest
positives and its M nearest negatives. Those quadruplets lie among the M farthest positives, the M
first negatives whose best quadruplet is hardest, and of each of these the M nearest second
negatives. The hardest pairs are among the nearest and farthest of each kind. References come from
a pool of images, so the cost is the anchors times the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_embed.encoder_forward import MetricForward
from captum_embed.errors import InputError
from captum_embed.metric_forwards import PairForward, QuadrupletForward, TripletForward

_ROWS_AT_ONCE = 2**16
# Numbers of one temporary tensor: 8 MiB in float64, near the size of a cache.
BLOCK_NUMBERS = 2**20

# Anchors (A,), their references (A, m, R), and which of the m are tuples (A, m), by loss.
Block = tuple[Tensor, Tensor, Tensor]

# Of the class sizes n (K,) and their total N, for anchors of each class: the weight of another
# image of that class, and of an image of a class of size m, which is second + third * m; each (K,).
_ClassWeights = tuple[Tensor, Tensor, Tensor]


def _triplet(sizes: Tensor, total: int) -> _ClassWeights:
    return 1 / (sizes - 1), -1 / (total - sizes), torch.zeros_like(sizes)


def _contrastive(sizes: Tensor, total: int) -> _ClassWeights:
    one = torch.full_like(sizes, 1 / (total - 1))
    return one, -one, torch.zeros_like(sizes)


def _pair(sizes: Tensor, total: int) -> _ClassWeights:
    one = torch.full_like(sizes, 1 / (total - 1))
    return one, one, torch.zeros_like(sizes)


def _quadruplet(sizes: Tensor, total: int) -> _ClassWeights:
    # A first negative has as many tuples as there are images outside its and the anchor's class.
    others = total - sizes
    tuples = others.square() - (sizes.square().sum() - sizes.square())
    return 2 / (sizes - 1), -others / tuples, 1 / tuples


def _class_weights(forward: MetricForward) -> Callable[[Tensor, int], _ClassWeights] | None:
    """By the loss of a tuple as it is written here; a subclass may have its own."""
    losses: dict[Any, Callable[[Tensor, int], _ClassWeights]] = {
        TripletForward.tuple_loss: _triplet,
        PairForward.tuple_loss: _contrastive,
        QuadrupletForward.tuple_loss: _quadruplet,
    }
    if type(forward).measure is not MetricForward.measure:
        return None
    if isinstance(forward, PairForward) and forward.loss != "contrastive":
        losses[PairForward.tuple_loss] = _pair
    return losses.get(type(forward).tuple_loss)


def require_closed_form(forward: MetricForward) -> None:
    """Refuses a loss whose mean over all tuples has no closed form.

    Raises:
        InputError: The loss of a tuple, or the distance, is another.
    """
    if _class_weights(forward) is None:
        raise InputError(
            f"mining='all' knows the losses of TripletForward, PairForward and QuadrupletForward, "
            f"and {type(forward).__name__} has one of its own; pass mining='hardest' or 'random'"
        )
    if forward.distance not in ("squared_euclidean", "cosine"):
        raise InputError(
            f"mining='all' has a closed form for the distances 'squared_euclidean' and 'cosine', "
            f"and forward has {forward.distance!r}; choose one of these, or pass "
            "mining='hardest' or 'random'"
        )


class AllTuples:
    """The un-hinged loss of each image, averaged over every tuple that has it as its anchor.

    References are constants, and an anchor is none of its own.

    Args:
        forward: See :func:`require_closed_form`.
        embeddings: Of all images, (B, D).
        labels: Of all images, (B,).

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from captum_embed import TripletForward
        >>> embeddings = torch.tensor([[0.0], [1.0], [5.0], [7.0]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> all_tuples = AllTuples(TripletForward(nn.Identity()), embeddings, labels)
        >>> anchor = embeddings[:1].requires_grad_()
        >>> all_tuples.losses(anchor, torch.tensor([0])).backward()
        >>> anchor.grad  # 2 (mean of the negatives - the positive)
        tensor([[10.]])
    """

    def __init__(self, forward: MetricForward, embeddings: Tensor, labels: Tensor) -> None:
        require_closed_form(forward)
        self._cosine = forward.distance == "cosine"
        self._embeddings = embeddings
        # Apple's GPUs have no float64.
        self._home = torch.device("cpu") if embeddings.device.type == "mps" else embeddings.device
        _, class_of, counts = labels.to(self._home).unique(return_inverse=True, return_counts=True)
        sums = torch.zeros(
            (len(counts), embeddings.shape[1]), dtype=torch.float64, device=self._home
        )
        for rows in torch.arange(len(labels)).split(_ROWS_AT_ONCE):
            span = slice(int(rows[0]), int(rows[-1]) + 1)
            sums.index_add_(0, class_of[span], self._points(embeddings[span]))
        sizes, total = counts.to(torch.float64), len(labels)
        weights = _class_weights(forward)
        assert weights is not None
        own, other, by_size = weights(sizes, total)
        away = sums.sum(0) - sums
        away_by_size = (sizes[:, None] * sums).sum(0) - sizes[:, None] * sums
        self._class_of = class_of
        self._own = own
        self._sums = own[:, None] * sums + other[:, None] * away + by_size[:, None] * away_by_size
        self._total = own * (sizes - 1) + other * (total - sizes)
        self._total += by_size * (sizes.square().sum() - sizes.square())

    def losses(self, anchors: Tensor, indices: Tensor) -> Tensor:
        """Mean losses (A,), but for a constant.

        Args:
            anchors: Embeddings (A, D) of the images, in which this is differentiable.
            indices: Which images they are, (A,).
        """
        indices = indices.to(self._embeddings.device)
        class_of = self._class_of[indices.to(self._home)]
        own = self._own[class_of, None] * self._points(self._embeddings[indices])
        pull = (self._sums[class_of] - own).to(anchors)
        if self._cosine:
            return -(F.normalize(anchors) * pull).sum(1)
        total = self._total[class_of].to(anchors)
        return total * anchors.square().sum(1) - 2 * (anchors * pull).sum(1)

    def _points(self, embeddings: Tensor) -> Tensor:
        wide = embeddings.to(self._home, torch.float64)
        return F.normalize(wide) if self._cosine else wide


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
        anchors: Indices of the images whose tuples are wanted; None: all.
    """

    def __init__(
        self,
        forward: MetricForward,
        embeddings: Tensor,
        labels: Tensor,
        pool: Tensor,
        count: int,
        anchors: Tensor | None = None,
    ) -> None:
        self._loss = forward.tuple_loss
        self._measure = forward.measure
        self._embeddings, self._labels, self._count = embeddings, labels, count
        self._pool, self._references, self._classes = pool, embeddings[pool], labels[pool]
        self._named = isinstance(forward.distance, str)
        self._cosine = self._named and forward.distance == "cosine"
        self._pool_points = self._points(self._references)
        everyone = torch.arange(len(labels), device=labels.device)
        self._anchors = everyone if anchors is None else anchors.to(labels.device)

    def pairs(self) -> Iterator[Block]:
        """Each anchor once, in order: anchors (A,), references (A, m, 1) with m <= M, hardest
        first, and (A, m) that is False where an anchor has fewer tuples.
        """
        width = self._embeddings.shape[1]
        for anchors in self._blocks(self._anchors, 4 * self._count * width):
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
        for anchors in self._blocks(self._anchors, count * max(count, width)):
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
        for label in self._labels[self._anchors].unique():
            second, second_exists = self._outside_class(neighbors, label)
            usable = (self._classes != label) & second_exists[:, 0]
            size = max(self._references.numel(), count * count * max(width, count))
            for anchors in self._blocks(self._anchors[self._labels[self._anchors] == label], size):
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

    def _blocks(self, anchors: Tensor, numbers_each: int) -> Iterator[Tensor]:
        row = len(self._pool) if self._named else self._references.numel()
        yield from anchors.split(max(1, BLOCK_NUMBERS // max(row, numbers_each)))

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
        nearest = []
        for images in self._blocks(self._pool, 0):
            same, _ = self._kinds(images)
            near = self._distances(images).masked_fill(same, torch.inf)
            nearest.append(near.topk(length, largest=False))
        near = torch.cat([distances for distances, _ in nearest])
        return torch.cat([index for _, index in nearest]), near < torch.inf

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
