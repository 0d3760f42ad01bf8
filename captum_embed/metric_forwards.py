"""Forward functions of metric losses: one value per image, all images encoded in one batch.

They are ordinary modules, made for attribution: an image may be replaced by its precomputed
embedding, and one anchor may have many tuples at the cost of one. Any other callable serves
:class:`~captum_embed.EmbeddingLayerGradCam` as well.

**Direction.** Of a class score more is better, of a loss more is worse. With
``explains="match"``, the default, a forward function returns its loss with the sign turned: what
raises it makes the anchor look like its class. ``explains="loss"`` returns the loss itself.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_embed.encoder_forward import (
    Distance,
    EncoderForward,
    Explains,
    distance_function,
)
from captum_embed.errors import InputError


class MetricForward(EncoderForward):
    """A metric loss as a forward function: embeds images, and gives one value per anchor.

    Subclasses say in :meth:`tuple_loss` what one tuple costs; that is all that a new loss needs.

    Args:
        encoder: Maps inputs (N, ...) to embeddings (N, D).
        distance: ``"squared_euclidean"`` (Chen et al., WACV 2020), ``"euclidean"``,
            ``"cosine"`` (1 - cosine similarity), a callable ``(embeddings (..., D), embeddings
            (..., D)) -> (...)``, or a distance of pytorch-metric-learning.
        explains: ``"match"``, the loss with its sign turned, or ``"loss"``.

    Attributes:
        reference_roles: For each reference of an anchor, whether it comes from the anchor's
            class (``"same"``), another (``"different"``) or either (``"any"``).
    """

    reference_roles: tuple[str, ...] = ()

    def __init__(
        self,
        encoder: nn.Module,
        distance: Distance = "squared_euclidean",
        explains: Explains = "match",
    ) -> None:
        super().__init__(encoder, explains)
        distance_function(distance)
        self.distance = distance

    def measure(self, first: Tensor, second: Tensor) -> Tensor:
        """Distance of embeddings (..., D) and (..., D), broadcast, as (...)."""
        return distance_function(self.distance)(first, second)

    def image_inputs(self, *inputs: Tensor) -> tuple[int, ...]:
        """Which arguments of a call are images, and so pass through the encoder in this order."""
        references = inputs[1 : 1 + len(self.reference_roles)]
        return (0, *(i for i, one in enumerate(references, 1) if one.dim() == inputs[0].dim()))

    def tuple_loss(self, anchor: Tensor, *references: Tensor) -> Tensor:
        """Loss of each tuple: embeddings (..., D), broadcast over leading dimensions, to (...)."""
        raise NotImplementedError

    def embed(self, anchor: Tensor, references: tuple[Tensor, ...]) -> list[Tensor]:
        """Embeddings of the anchor and its references; those given as images share its batch.

        Args:
            anchor: Images (N, ...), the input of the encoder.
            references: Each either images, with as many dimensions as ``anchor`` and its
                batch size, or embeddings (N, D), (1, D), or (N, M, D), (1, M, D) for M tuples
                of each anchor.

        Returns:
            Anchor embeddings (N, D), then each reference as (N, D), or (N or 1, M, D).

        Raises:
            InputError: A reference fits neither description; it says which one.
        """
        images = [anchor]
        for place, reference in enumerate(references, start=1):
            if reference.dim() == anchor.dim():
                if reference.shape[0] != anchor.shape[0]:
                    raise InputError(
                        f"reference {place} holds {reference.shape[0]} images for "
                        f"{anchor.shape[0]} anchors; expected as many of each"
                    )
                images.append(reference)
            elif reference.dim() not in (2, 3):
                raise InputError(
                    f"reference {place} has shape {tuple(reference.shape)}; expected images with "
                    f"{anchor.dim()} dimensions, like the anchors, or embeddings (N, D) or "
                    "(N, M, D)"
                )
        encoded = iter(self.encode(images))
        embeddings = [next(encoded)]
        for place, reference in enumerate(references, start=1):
            given = reference.dim() != anchor.dim()
            embeddings.append(reference if given else next(encoded))
            self._check_reference(place, embeddings[0], embeddings[-1])
        return embeddings

    @staticmethod
    def _check_reference(place: int, anchor: Tensor, reference: Tensor) -> None:
        rows, width = reference.shape[0], reference.shape[-1]
        if width != anchor.shape[-1] or rows not in (1, anchor.shape[0]):
            raise InputError(
                f"reference {place} has embeddings of shape {tuple(reference.shape)}, the anchors "
                f"of shape {tuple(anchor.shape)}; expected equal widths and as many rows (or one)"
            )

    def _value(self, anchor: Tensor, references: list[Tensor], *labels: Tensor) -> Tensor:
        if not any(reference.dim() == 3 for reference in references):
            return self.directed(self.tuple_loss(anchor, *references, *labels))
        per_tuple = self.tuple_loss(
            anchor[:, None], *(r if r.dim() == 3 else r[:, None] for r in references), *labels
        )
        return self.directed(mean_of_nonzero(per_tuple))


def mean_of_nonzero(losses: Tensor) -> Tensor:
    """Mean over the tuples whose loss is not zero: the only ones that carry a gradient.

    Args:
        losses: Shape (N, M), M tuples of each anchor.

    Returns:
        Shape (N,); zero where all M losses are zero.

    Example::

        >>> import torch
        >>> mean_of_nonzero(torch.tensor([[0.0, 2.0, 4.0], [0.0, 0.0, 0.0]]))
        tensor([3., 0.])
    """
    return losses.sum(1) / (losses != 0).sum(1).clamp(min=1)


class TripletForward(MetricForward):
    r"""Triplet loss :math:`\max(0, d(a, p) - d(a, n) + \text{margin})`, or minus it, per anchor.

    Args:
        encoder: Maps inputs (N, ...) to embeddings (N, D).
        margin: How much farther the negative must be, in units of the distance.
        distance: See :class:`MetricForward`.
        explains: ``"match"``: minus the loss, a score; ``"loss"``: the loss itself.

    Raises:
        InputError: Unknown direction or distance.

    Source: Schroff et al., FaceNet, CVPR 2015, section 3.1; Chen et al., WACV 2020.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from captum_embed import TripletForward
        >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> forward = TripletForward(encoder)
        >>> anchor, positive, negative = torch.rand(3, 2, 3, 8, 8)
        >>> forward(anchor, positive, negative).shape
        torch.Size([2])
        >>> negatives = torch.rand(2, 50, 4)  # embeddings of 50 negatives for each anchor
        >>> forward(anchor, encoder(positive), negatives).shape
        torch.Size([2])
    """

    reference_roles = ("same", "different")

    def __init__(
        self,
        encoder: nn.Module,
        margin: float = 0.2,
        distance: Distance = "squared_euclidean",
        explains: Explains = "match",
    ) -> None:
        super().__init__(encoder, distance, explains)
        self.margin = margin

    def tuple_loss(self, anchor: Tensor, *references: Tensor) -> Tensor:
        """Losses of (anchor, positive, negative) embeddings (..., D), as (...)."""
        positive, negative = references
        return F.relu(self.measure(anchor, positive) - self.measure(anchor, negative) + self.margin)

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """One value per anchor.

        Args:
            anchor: Images (N, ...).
            positive: Images of the anchors' classes (N, ...), or embeddings (N, D), (N, M, D).
            negative: Images of other classes (N, ...), or embeddings (N, D), (N, M, D).

        Returns:
            Shape (N,). With M tuples per anchor, the mean over those of non-zero loss.
        """
        first, *references = self.embed(anchor, (positive, negative))
        return self._value(first, references)


class PairForward(MetricForward):
    r"""One value per pair, from its contrastive loss, plain similarity, or plain distance.

    The loss is, of ``"contrastive"``, :math:`d(x, y)` where the pair is of one class and
    :math:`\max(0, \text{margin} - d(x, y))` where it is not; of ``"distance"``
    :math:`d(x, y)`; of ``"similarity"`` minus the cosine for ``distance="cosine"``, otherwise
    :math:`d(x, y)`. So the match of the latter two is the similarity, of any two images, with no
    labels at all.

    Args:
        encoder: Maps inputs (N, ...) to embeddings (N, D).
        loss: ``"contrastive"``, ``"similarity"`` or ``"distance"``.
        margin: Distance from which different classes cost nothing (contrastive only).
        distance: See :class:`MetricForward`.
        explains: ``"match"``: minus the loss, a score; ``"loss"``: the loss itself.

    Raises:
        InputError: Unknown direction, loss or distance.

    Source: Hadsell et al., CVPR 2006 (there with the hinge on the Euclidean distance, squared).

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from captum_embed import PairForward
        >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> first, second = torch.rand(2, 2, 3, 8, 8)
        >>> PairForward(encoder)(first, second, torch.tensor([True, False])).shape
        torch.Size([2])
        >>> PairForward(encoder, loss="similarity", distance="cosine")(first, second).shape
        torch.Size([2])
    """

    reference_roles = ("any",)

    def __init__(
        self,
        encoder: nn.Module,
        loss: Literal["contrastive", "similarity", "distance"] = "contrastive",
        margin: float = 1.0,
        distance: Distance = "squared_euclidean",
        explains: Explains = "match",
    ) -> None:
        super().__init__(encoder, distance, explains)
        if loss not in ("contrastive", "similarity", "distance"):
            raise InputError(
                f"loss is {loss!r}; expected 'contrastive', 'similarity' or 'distance'"
            )
        self.loss = loss
        self.margin = margin

    def tuple_loss(self, anchor: Tensor, *references: Tensor) -> Tensor:
        """Losses of (first, second[, same]) with embeddings (..., D) and same (...), as (...)."""
        second, *labels = references
        distance = self.measure(anchor, second)
        if self.loss == "similarity" and self.distance == "cosine":
            return distance - 1
        if self.loss != "contrastive":
            return distance
        if not labels:
            raise InputError(
                "the contrastive loss needs to know which pairs are of one class; pass `same`, "
                "shape (N,), or explain loss='similarity', which needs no labels"
            )
        return torch.where(labels[0], distance, F.relu(self.margin - distance))

    def forward(self, first: Tensor, second: Tensor, same: Tensor | None = None) -> Tensor:
        """One value per pair.

        Args:
            first: Images (N, ...).
            second: Images (N, ...), or embeddings (N, D), or (N, M, D) for M pairs each.
            same: Whether the two are of one class, (N,), or (N, M), as bool or 0 and 1:
                contrastive loss only.

        Returns:
            Shape (N,). With M pairs per image, the mean over those of non-zero value.
        """
        if same is not None:
            same = _checked_same(torch.as_tensor(same, device=first.device))
            if same.dim() not in (1, 2) or same.shape[0] not in (1, first.shape[0]):
                raise InputError(
                    f"same has shape {tuple(same.shape)} for {first.shape[0]} pairs; expected "
                    f"({first.shape[0]},), or ({first.shape[0]}, M) with M pairs each"
                )
        anchor, *references = self.embed(first, (second,))
        if same is not None and references[0].dim() == 3 and same.dim() == 1:
            same = same[:, None]
        return self._value(anchor, references, *(() if same is None else (same,)))


def _checked_same(same: Tensor) -> Tensor:
    if same.dtype is not torch.bool and not ((same == 0) | (same == 1)).all():
        found = same.unique()[:5].tolist()
        raise InputError(
            f"same holds {found}; expected True and False, or 1 and 0: for the classes "
            "themselves pass first_labels == second_labels"
        )
    return same.bool()


class QuadrupletForward(MetricForward):
    r"""Quadruplet loss: a triplet, and the positive pair against two negatives of each other.

    :math:`\max(0, d(a, p) - d(a, n_1) + m_1) + \max(0, d(a, p) - d(n_1, n_2) + m_2)`

    Args:
        encoder: Maps inputs (N, ...) to embeddings (N, D).
        margin: :math:`m_1`, in units of the distance.
        second_margin: :math:`m_2`, in units of the distance, usually the smaller.
        distance: See :class:`MetricForward`.
        explains: ``"match"``: minus the loss, a score; ``"loss"``: the loss itself.

    Raises:
        InputError: Unknown direction or distance.

    Source: Chen et al., Beyond triplet loss, CVPR 2017, section 3.2.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from captum_embed import QuadrupletForward
        >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> QuadrupletForward(encoder)(*torch.rand(4, 2, 3, 8, 8)).shape
        torch.Size([2])
    """

    reference_roles = ("same", "different", "different")

    def __init__(
        self,
        encoder: nn.Module,
        margin: float = 0.2,
        second_margin: float = 0.1,
        distance: Distance = "squared_euclidean",
        explains: Explains = "match",
    ) -> None:
        super().__init__(encoder, distance, explains)
        self.margin = margin
        self.second_margin = second_margin

    def tuple_loss(self, anchor: Tensor, *references: Tensor) -> Tensor:
        """Losses of (anchor, positive, negative, second negative) embeddings (..., D)."""
        positive, negative, second_negative = references
        near = self.measure(anchor, positive)
        return F.relu(near - self.measure(anchor, negative) + self.margin) + F.relu(
            near - self.measure(negative, second_negative) + self.second_margin
        )

    def forward(
        self, anchor: Tensor, positive: Tensor, negative: Tensor, second_negative: Tensor
    ) -> Tensor:
        """One value per anchor; arguments as in :class:`TripletForward`, with two negatives of
        different classes.

        Returns:
            Shape (N,). With M tuples per anchor, the mean over those of non-zero loss.
        """
        first, *references = self.embed(anchor, (positive, negative, second_negative))
        return self._value(first, references)
