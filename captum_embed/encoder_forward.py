"""What all forward functions share: an encoder, a stated direction, and distances."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_embed.embeddings import embedding_of
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


@contextmanager
def evaluation_mode(module: object) -> Iterator[None]:
    """Puts a module and all below it in evaluation mode, and back in the modes they were in."""
    modules = module.modules() if isinstance(module, nn.Module) else ()
    modes = [(each, each.training) for each in modules]
    try:
        for each, _ in modes:
            # Not eval(): some modules do more in it than they would undo.
            each.training = False
        yield
    finally:
        for each, training in modes:
            each.training = training


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
        """Embeddings (N, D) of each batch of images (N, ...), from one batch of all of them."""
        if len({(image.shape[1:], image.dtype, image.device) for image in images}) == 1:
            return list(embedding_vectors(self.encoder(torch.cat(images))).chunk(len(images)))
        return [embedding_vectors(self.encoder(image)) for image in images]

    def directed(self, loss: Tensor) -> Tensor:
        """A loss as this function returns it: itself, or for a match its negative."""
        return loss if self.explains == "loss" else -loss


def embedding_vectors(output: Any) -> Tensor:
    """What :func:`embedding_of` finds in an encoder's output, refused unless it is (N, D)."""
    embeddings = embedding_of(output)
    if embeddings.dim() != 2:
        raise InputError(
            f"the encoder returned shape {tuple(embeddings.shape)}; expected embeddings (N, D): "
            "pool and flatten in the encoder"
        )
    return embeddings
