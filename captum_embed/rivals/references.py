"""Embeddings of images, and of what the rivals compare them with: other images, or embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from captum._utils.common import _run_forward
from torch import Tensor, nn

from captum_embed.encoders import embedding_of
from captum_embed.errors import InputError
from captum_embed.layer_executions import run_layer

Similarity = Literal["cosine", "dot"]


def require_similarity(similarity: str) -> None:
    """Raises InputError unless the similarity is one that the rivals know."""
    if similarity not in ("cosine", "dot"):
        raise InputError(f"similarity is {similarity!r}; expected 'cosine' or 'dot'")


def encoder_of(forward_func: Callable[..., Any]) -> Callable[..., Any]:
    """``forward_func.encoder`` where there is one, as in a metric forward, or itself."""
    wrapped = getattr(forward_func, "module", forward_func)
    encoder = getattr(forward_func, "encoder", getattr(wrapped, "encoder", None))
    return forward_func if encoder is None else encoder


def embed(encoder: Callable[..., Any], images: Tensor, arguments: Any = None) -> Tensor:
    """Embeddings of images.

    Args:
        encoder: Maps images (N, ...) to embeddings (N, D), or to what they are recognised in.
        images: The images.
        arguments: Further arguments of the encoder.

    Returns:
        Shape (N, D).

    Raises:
        InputError: The encoder returned something else.
    """
    return _checked("the encoder", _run_forward(encoder, images, None, arguments or None))


def embed_unnormalized(
    encoder: Callable[..., Any],
    embedding_layer: nn.Module | None,
    images: Tensor,
    arguments: Any = None,
    device_ids: list[int] | None = None,
) -> Tensor:
    """Embeddings of images as they are before the L2 norm.

    Args:
        encoder: Maps images (N, ...) to embeddings (N, D).
        embedding_layer: Its module whose output is normalized. None: the encoder does not
            normalize.
        images: The images.
        arguments: Further arguments of the encoder.
        device_ids: Device order of a ``DataParallel`` encoder.

    Returns:
        Shape (N, D), part of the graph where gradients are enabled.

    Raises:
        InputError: No embeddings (N, D) came out.
        LayerError: The embedding layer never ran.
    """
    if embedding_layer is None:
        return embed(encoder, images, arguments)
    _, executions = run_layer(
        encoder,
        embedding_layer,
        (images,),
        None,
        arguments or None,
        device_ids=device_ids,
        cut=False,
    )
    return _checked("the embedding layer", executions[-1].tensors[0])


def _checked(what: str, output: Any) -> Tensor:
    embeddings = embedding_of(output)
    if embeddings.dim() != 2:
        raise InputError(
            f"{what} gives shape {tuple(embeddings.shape)}; expected embeddings (N, D)"
        )
    return embeddings


def image_batches(inputs: Any, reference: Tensor | None) -> tuple[Tensor, ...]:
    """The batches to explain: one, or the two of a pair.

    Raises:
        InputError: Not one or two batches of images, or a pair and a reference besides.
    """
    batches = inputs if isinstance(inputs, tuple) else (inputs,)
    kinds = [type(batch).__name__ for batch in batches]
    if len(batches) not in (1, 2) or not all(isinstance(batch, Tensor) for batch in batches):
        raise InputError(f"inputs hold {kinds}; expected a batch of images, or a tuple of two")
    if len(batches) == 2 and reference is not None:
        raise InputError(
            "inputs are a pair, which is compared with each other, and a reference is given too; "
            "pass one batch and the reference, or the pair alone"
        )
    for batch in batches:
        if batch.dim() < 2 or batch.shape[0] == 0:
            raise InputError(
                f"inputs have shape {tuple(batch.shape)}; expected at least one image along "
                "dimension 0"
            )
    if len({len(batch) for batch in batches}) != 1:
        raise InputError(
            f"inputs are a pair of {len(batches[0])} and {len(batches[1])} images, which are "
            "compared row by row; expected as many of each, or one batch and a reference"
        )
    return batches


def are_images(reference: Tensor, images: Tensor) -> bool:
    """Whether a reference holds images, with as many dimensions as ``images``.

    Raises:
        InputError: It holds neither images nor embeddings.
    """
    if not isinstance(reference, Tensor):
        raise InputError(f"the reference is a {type(reference).__name__}; expected a tensor")
    if reference.dim() == images.dim():
        require_rows(reference, images, "the reference")
        return True
    if reference.dim() not in (2, 3):
        raise InputError(
            f"the reference has shape {tuple(reference.shape)}; expected images with "
            f"{images.dim()} dimensions, like the inputs, or embeddings (N, D) or (N, M, D)"
        )
    return False


def require_rows(reference: Tensor, images: Tensor, what: str) -> None:
    """Raises InputError unless there is a row for each image, or one for all."""
    if reference.shape[0] not in (1, images.shape[0]):
        raise InputError(
            f"{what} holds {reference.shape[0]} rows for {images.shape[0]} images; expected as "
            "many, or one for all"
        )


def checked_embeddings(reference: Tensor, like: Tensor, what: str = "the reference") -> Tensor:
    """Embeddings (N or 1, D) or (N or 1, M, D) as (N or 1, M, D).

    Args:
        reference: The embeddings.
        like: Embeddings of the images, (N, D).
        what: Its name, for the error.

    Raises:
        InputError: Another width or number of rows.
    """
    require_rows(reference, like, what)
    if reference.shape[-1] != like.shape[-1] or 0 in reference.shape:
        raise InputError(
            f"{what} has shape {tuple(reference.shape)}, the images' embeddings "
            f"{tuple(like.shape)}; expected embeddings (N, D) or (N, M, D) of the same width D"
        )
    embeddings = reference.detach().to(like)
    return embeddings if embeddings.dim() == 3 else embeddings[:, None]
