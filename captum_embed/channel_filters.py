"""Channel filters: what is done to grad-weights before they weigh the activations.

L2-normalised embeddings make the sum of ``A * dy/dA`` zero (Euler's theorem for functions that
are homogeneous of degree 0), so a raw signed map is half negative. A filter chooses which
channels speak. Each takes grad-weights of shape (N, C) and returns the same shape; any other
callable of that kind serves as well.

Example::

    >>> import torch
    >>> from captum_embed import channel_filters
    >>> weights = torch.tensor([[2.0, -3.0, 1.0, -0.5]])
    >>> channel_filters.positive(weights)
    tensor([[2., 0., 1., 0.]])
    >>> channel_filters.negative(weights)
    tensor([[ 0.0000, -3.0000,  0.0000, -0.5000]])
    >>> channel_filters.absolute(weights)
    tensor([[2.0000, 3.0000, 1.0000, 0.5000]])
    >>> channel_filters.top_channels(2)(weights)
    tensor([[2., 0., 1., 0.]])
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from captum_embed.errors import InputError

ChannelFilter = Callable[[Tensor], Tensor]

__all__ = ["ChannelFilter", "absolute", "negative", "positive", "top_channels"]


def positive(weights: Tensor) -> Tensor:
    """Keeps the weights above zero: the channels whose growth raises the explained value.

    Args:
        weights: Grad-weights, shape (N, C).

    Returns:
        Shape (N, C); weights below zero are zero.
    """
    return weights.clamp(min=0)


def negative(weights: Tensor) -> Tensor:
    """Keeps the weights below zero: the channels whose growth lowers the explained value.

    The weights keep their sign, so with non-negative activations the map is negative: leave
    ``relu_attributions`` off, or negate the explained value and use :func:`positive`.

    Args:
        weights: Grad-weights, shape (N, C).

    Returns:
        Shape (N, C); weights above zero are zero.
    """
    return weights.clamp(max=0)


def absolute(weights: Tensor) -> Tensor:
    """Takes the size of each weight: the channels that move the explained value either way.

    Args:
        weights: Grad-weights, shape (N, C).

    Returns:
        Shape (N, C), non-negative.
    """
    return weights.abs()


def top_channels(k: int) -> ChannelFilter:
    """Keeps the ``k`` largest weights of each example and sets the others to zero.

    Two independent readings of Chen et al. (WACV 2020) say that the paper keeps the 50
    channels of largest mean gradient: ``top_channels(50)``.

    Args:
        k: Number of channels to keep, at least 1. With ``k`` at or above C all are kept.

    Returns:
        A filter from (N, C) to (N, C).

    Raises:
        InputError: ``k`` is not a positive integer.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InputError(f"top_channels needs a positive number of channels, got {k!r}")

    def keep_top(weights: Tensor) -> Tensor:
        kept = weights.topk(min(k, weights.shape[1]), dim=1).indices
        return torch.zeros_like(weights).scatter(1, kept, weights.gather(1, kept))

    return keep_top


def filtered(weights: Tensor, channel_filter: ChannelFilter | None) -> Tensor:
    """What a filter makes of grad-weights (N, C); None leaves them as they are.

    Raises:
        InputError: The filter returned another shape.
    """
    if channel_filter is None:
        return weights
    kept = channel_filter(weights)
    if not isinstance(kept, Tensor) or kept.shape != weights.shape:
        given = tuple(kept.shape) if isinstance(kept, Tensor) else type(kept)
        raise InputError(
            f"channel_filter returned {given} for grad-weights of shape {tuple(weights.shape)}; "
            "expected the same shape"
        )
    return kept
