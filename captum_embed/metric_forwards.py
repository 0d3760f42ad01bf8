"""Forward functions of metric losses: one value per image, all images encoded in one batch.

They are ordinary modules, made for attribution: an image may be replaced by its precomputed
embedding, and one anchor may have many tuples at the cost of one. Any other callable serves
:class:`~captum_embed.EmbeddingLayerGradCam` as well.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_embed.encoder_forward import (
    Distance,
    EncoderForward,
    Explains,
    MetricForward,
    distance_function,
    mean_of_nonzero,
)
from captum_embed.encoders import embedding_vectors, evaluation_mode
from captum_embed.errors import InputError

__all__ = [
    "MetricForward",
    "PairForward",
    "QuadrupletForward",
    "SimilarityForward",
    "TripletForward",
    "mean_of_nonzero",
]

_REFERENCES_AT_ONCE = 32


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
            same = _checked_same(same, first.device)
            if same.dim() not in (1, 2) or same.shape[0] not in (1, first.shape[0]):
                raise InputError(
                    f"same has shape {tuple(same.shape)} for {first.shape[0]} pairs; expected "
                    f"({first.shape[0]},), or ({first.shape[0]}, M) with M pairs each"
                )
        anchor, *references = self.embed(first, (second,))
        if same is not None and references[0].dim() == 3 and same.dim() == 1:
            same = same[:, None]
        return self._value(anchor, references, *(() if same is None else (same,)))


def _checked_same(given: Any, device: torch.device) -> Tensor:
    try:
        same = torch.as_tensor(given, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"same cannot be made a tensor ({error}); expected True and False, or 1 and 0"
        ) from error
    if same.dtype is not torch.bool and not ((same == 0) | (same == 1)).all():
        values = same.unique()[:5].tolist()
        raise InputError(
            f"same holds {values}; expected True and False, or 1 and 0: for the classes "
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


class SimilarityForward(EncoderForward):
    r"""How near each image is to given references, less how near it is to given foils.

    A score, so ``explains`` is ``"match"``. With :math:`\hat e` an embedding of length one,

    .. math::
        s(x) = \hat e(x) \cdot \mathrm{mean}_r\, \hat e_r
             - \hat e(x) \cdot \mathrm{mean}_f\, \hat e_f

    which is the mean cosine similarity to the references less that to the foils. Of another
    distance, :math:`s(x) = d(e(x), \mathrm{mean}_f\, e_f) - d(e(x), \mathrm{mean}_r\, e_r)`.

    References given as images are encoded once, here, without a graph and in evaluation mode. A
    network that is trained further afterwards is noticed, and refused.

    Args:
        encoder: Maps inputs (N, ...) to embeddings (N, D).
        references: Images (R, ...) of four dimensions or more, or embeddings (R, D); or
            embeddings (N, R, D), a set of its own for each image of a call. Of inputs (N, C, L),
            such as signals, give the embeddings.
        foils: As the references, which they are weighed against; or None.
        distance: ``"cosine"``, or another as in :class:`MetricForward`.

    Raises:
        InputError: References or foils are not of these shapes; unknown distance.

    Source: the similarity as the score of Grad-CAM: Chen et al., WACV 2020, section 2; foils:
        Williford et al., Explainable Face Recognition, ECCV 2020, section 3.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from captum_embed import SimilarityForward
        >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> reference, foils = torch.rand(1, 3, 8, 8), torch.rand(5, 4)  # foils: embeddings
        >>> SimilarityForward(encoder, reference, foils)(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2])
    """

    reference: Tensor
    foil: Tensor | None

    def __init__(
        self,
        encoder: nn.Module,
        references: Tensor,
        foils: Tensor | None = None,
        distance: Distance = "cosine",
    ) -> None:
        super().__init__(encoder, "match")
        distance_function(distance)
        self.distance = distance
        foil = None if foils is None else self._mean("foils", foils)
        self.register_buffer("reference", self._mean("references", references), persistent=False)
        self.register_buffer("foil", foil, persistent=False)
        given = [one for one in (references, foils) if one is not None]
        self._encoded_with = self._versions() if any(one.dim() > 3 for one in given) else {}
        self._sets = [one.shape[1:] for one in given if one.dim() == 3]

    def forward(self, images: Tensor) -> Tensor:
        """One score per image.

        Args:
            images: Shape (N, ...).

        Returns:
            Shape (N,).

        Raises:
            InputError: The encoder was trained further since the references were encoded; or
                there is a set of references for each of another number of images; or references
                of three dimensions are inputs, not embeddings.
        """
        if images.shape[1:] in self._sets:
            raise InputError(
                f"references or foils have the shape of the inputs, (N, {images.shape[1]}, "
                f"{images.shape[2]}), and three dimensions are taken as embeddings (N, R, D); "
                "give their embeddings (R, D), such as encoder(references)"
            )
        versions = self._versions()
        if any(
            versions.get(key, version) != version for key, version in self._encoded_with.items()
        ):
            raise InputError(
                "the encoder's parameters have changed since the references were encoded; make a "
                "new SimilarityForward"
            )
        embeddings = self.encode([images])[0]
        score = self._similarity(embeddings, self.reference)
        return score if self.foil is None else score - self._similarity(embeddings, self.foil)

    def _similarity(self, embeddings: Tensor, target: Tensor) -> Tensor:
        if target.shape[0] not in (1, len(embeddings)) or target.shape[1] != embeddings.shape[1]:
            raise InputError(
                f"references or foils have a mean of shape {tuple(target.shape)}, the images "
                f"embeddings of shape {tuple(embeddings.shape)}; expected equal widths, and one "
                "set for all images or one for each"
            )
        target = target.to(embeddings.device)
        if self.distance == "cosine":
            return (F.normalize(embeddings) * target).sum(1)
        return -distance_function(self.distance)(embeddings, target)

    def _mean(self, name: str, given: Tensor) -> Tensor:
        if not isinstance(given, Tensor) or given.dim() < 2 or 0 in given.shape:
            shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise InputError(
                f"{name} are {shape}; expected images (R, ...), or embeddings (R, D) or (N, R, D)"
            )
        embeddings = given.detach() if given.dim() <= 3 else self._encoded(given)
        if self.distance == "cosine":
            embeddings = F.normalize(embeddings, dim=-1)
        mean = embeddings.mean(-2)
        return mean if mean.dim() == 2 else mean[None]

    def _encoded(self, images: Tensor) -> Tensor:
        device = next(self.encoder.parameters(), images).device
        with evaluation_mode(self.encoder), torch.no_grad():
            parts = images.to(device).split(_REFERENCES_AT_ONCE)
            return torch.cat([embedding_vectors(self.encoder(part)) for part in parts])

    def _versions(self) -> dict[int, int]:
        # A parameter's version counts its changes in place, as optimizers make them.
        return {id(one): one._version for one in self.encoder.parameters()}
