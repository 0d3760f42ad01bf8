r"""The mean over all tuples of an anchor, in closed form from the sums of each class.

Without its hinge, a loss is a sum of distances. The mean over every tuple of an anchor :math:`a`
is then :math:`\sum_i w_i\, d(a, x_i)` over the other images, where :math:`w_i` depends only on
the class of image :math:`i`. But for what does not depend on :math:`a`, that is of squared
Euclidean distances :math:`(\sum_i w_i) |a|^2 - 2 a \cdot \sum_i w_i x_i`, and of cosine
distances :math:`-\hat a \cdot \sum_i w_i \hat x_i`. Sums of classes give
:math:`\sum_i w_i x_i` for all anchors, at a cost linear in the images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_embed.errors import InputError
from captum_embed.metric_forwards import (
    MetricForward,
    PairForward,
    QuadrupletForward,
    TripletForward,
)

_ROWS_AT_ONCE = 2**16

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
