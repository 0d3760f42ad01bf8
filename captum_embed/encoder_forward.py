"""What all forward functions share: an encoder, a stated direction, distances, and tuples.

**Direction.** Of a class score more is better, of a loss more is worse. With
``explains="match"``, the default, a forward function returns its loss with the sign turned: what
raises it makes the anchor look like its class. ``explains="loss"`` returns the loss itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_embed.encoders import embedding_vectors
from captum_embed.errors import InputError

Explains = Literal["match", "loss"]
Distance = Literal["squared_euclidean", "euclidean", "cosine"] | Callable[[Tensor, Tensor], Tensor]


def _squared_euclidean(first: Tensor, second: Tensor) -> Tensor:
    return (first - second).square().sum(-1)


def _euclidean(first: Tensor, second: Tensor) -> Tensor:
    return torch.linalg.vector_norm(first - second, dim=-1)


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(first, second, dim=-1)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squared_euclidean": _squared_euclidean,
    "euclidean": _euclidean,
    "cosine": _cosine,
}


def distance_function(distance: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """The distance of embeddings (..., D) and (..., D), broadcast, as (...).

    Args:
        distance: A name of :data:`DISTANCES`; a callable, as it is; or a distance of
            pytorch-metric-learning, of which one that is inverted (a similarity) counts with its
            sign turned.

    Raises:
        InputError: It is none of these.

    Example::

        >>> import torch
        >>> distance_function("squared_euclidean")(torch.zeros(2, 3), torch.ones(3))
        tensor([3., 3.])
    """
    if isinstance(distance, str) and distance in DISTANCES:
        return DISTANCES[distance]
    if not callable(distance):
        raise InputError(
            f"distance is {distance!r}; expected one of {sorted(DISTANCES)}, a callable "
            "(embeddings (..., D), embeddings (..., D)) -> (...), or a distance of "
            "pytorch-metric-learning"
        )
    if not (hasattr(distance, "pairwise_distance") and hasattr(distance, "is_inverted")):
        return distance

    def measure(first: Tensor, second: Tensor) -> Tensor:
        first, second = torch.broadcast_tensors(first, second)
        rows = (distance.maybe_normalize(one.flatten(0, -2)) for one in (first, second))
        values = distance.pairwise_distance(*rows).reshape(first.shape[:-1]) ** distance.power
        # An inverted distance is a similarity: larger is nearer.
        return -values if distance.is_inverted else values

    return measure


def require_tensors(images: Sequence[Any]) -> None:
    """Lists, arrays and the like are refused.

    Raises:
        InputError: One is no tensor.
    """
    for place, image in enumerate(images):
        if not isinstance(image, Tensor):
            raise InputError(
                f"argument {place} is of type {type(image).__name__}; expected a tensor (N, ...): "
                "torch.stack(images) makes one of a list"
            )


class EncoderForward(nn.Module):
    """What the forward functions here have in common: an encoder, and a stated direction.

    Args:
        encoder: Maps inputs (N, ...) to embeddings (N, D).
        explains: ``"match"`` or ``"loss"``.
    """

    def __init__(self, encoder: nn.Module, explains: Explains) -> None:
        super().__init__()
        if explains not in ("match", "loss"):
            raise InputError(
                f"explains is {explains!r}; expected 'match' (the loss with its sign turned: more "
                "is better) or 'loss'"
            )
        self.encoder = encoder
        self.explains: Explains = explains

    def image_inputs(self, *inputs: Tensor) -> tuple[int, ...]:
        """Which arguments of a call are images, and so pass through the encoder.

        They do in this order: N rows each of one joined batch, where their sizes agree, and
        otherwise in one call of the encoder each.

        Args:
            inputs: The arguments of a call.

        Returns:
            Their places, such as (0, 2) where the second argument is an embedding.
        """
        return (0,)

    def encode(self, images: list[Tensor]) -> list[Tensor]:
        """Embeddings (N, D) of each batch of images (N, ...), from one batch of all of them.

        Raises:
            InputError: The encoder fails on inputs that may be images without a batch, or gives
                another number of embeddings than it was given images.
        """
        require_tensors(images)
        joined = len({(image.shape[1:], image.dtype, image.device) for image in images}) == 1
        try:
            outputs = [self.encoder(one) for one in ([torch.cat(images)] if joined else images)]
        except (AssertionError, IndexError, RuntimeError, ValueError) as error:
            if images[0].dim() > 3:
                raise
            raise InputError(
                f"the encoder fails on inputs of shape {tuple(images[0].shape)} ({error}); "
                "expected a batch of what it was trained on, such as images (N, C, H, W): of one "
                "image give image[None]"
            ) from error
        embeddings = [embedding_vectors(output) for output in outputs]
        counts = list(map(len, images))
        expected = [sum(counts)] if joined else counts
        given = list(map(len, embeddings))
        # Methods that vary what a layer puts out repeat its rows, for all images as often.
        if any(
            got % max(count, 1) or got < count for got, count in zip(given, expected, strict=True)
        ):
            raise InputError(
                f"the encoder gives {given} embeddings for {expected} images; expected one for each"
            )
        return list(embeddings[0].chunk(len(images))) if joined else embeddings

    def directed(self, loss: Tensor) -> Tensor:
        """A loss as this function returns it: itself, or for a match its negative."""
        return loss if self.explains == "loss" else -loss


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
        require_tensors((anchor, *references))
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
