"""Map functions: how filtered grad-weights and activations become a map.

Grad-CAM's own is the weighted sum of the channels. It assumes that a channel at zero says
nothing, which holds after a ReLU. At a layer without one (the bottleneck in front of a last
1x1 convolution, say) every channel has an offset of its own, and a weighted sum shows those
offsets; :func:`background_contrast` measures from them instead.

A map function takes grad-weights (N, C) and activations (N, C, H, W) and returns maps
(N, 1, H, W); any other callable of that kind serves as well.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from captum_embed.errors import InputError, LayerError

MapFunction = Callable[[Tensor, Tensor], Tensor]

__all__ = ["MapFunction", "background_contrast", "border_mean", "weighted_norm", "weighted_sum"]


def weighted_sum(weights: Tensor, activations: Tensor) -> Tensor:
    r"""Grad-CAM's own: :math:`\sum_c w_c A_c`.

    Args:
        weights: Grad-weights, shape (N, C).
        activations: Shape (N, C, H, W).

    Returns:
        Shape (N, 1, H, W).
    """
    return (over_space(weights, activations) * activations).sum(1, keepdim=True)


def weighted_norm(weights: Tensor, activations: Tensor) -> Tensor:
    r"""Weighted norm of the activations: :math:`\sqrt{\sum_c |w_c| A_c^2}`.

    Args:
        weights: Grad-weights, shape (N, C).
        activations: Shape (N, C, H, W).

    Returns:
        Shape (N, 1, H, W), non-negative.
    """
    squares = over_space(weights, activations).abs() * activations.square()
    return squares.sum(1, keepdim=True).sqrt()


def background_contrast(power: float = 1.0) -> MapFunction:
    r"""How far each place is from the image's own background, in the channels that matter.

    :math:`\left(\sum_c |w_c| (A_c - b_c)^2\right)^p`, where :math:`b_c` is the mean of channel c
    along the border of the activation (:func:`border_mean`), which in most photographs shows
    background. An object that fills the border is measured from itself, and its map is poor.

    Args:
        power: :math:`p`. It orders no two places anew; it sets at which share of the maximum
            the object ends.

    Returns:
        A map function from (N, C) and (N, C, H, W) to (N, 1, H, W), non-negative.

    Raises:
        InputError: The power is not above zero.

    Example::

        >>> import torch
        >>> activations = torch.ones(1, 2, 5, 5)
        >>> activations[0, :, 2, 2] = torch.tensor([4.0, 0.0])
        >>> background_contrast()(torch.tensor([[1.0, -2.0]]), activations)[0, 0, 2]
        tensor([ 0.,  0., 11.,  0.,  0.])
    """
    if not power > 0:
        raise InputError(f"the power of background_contrast is {power}; expected above zero")

    def contrast(weights: Tensor, activations: Tensor) -> Tensor:
        distance = (activations - border_mean(activations)).square()
        return (over_space(weights, activations).abs() * distance).sum(1, keepdim=True) ** power

    return contrast


def border_mean(activations: Tensor) -> Tensor:
    """Mean of each channel over the outermost rows and columns.

    Args:
        activations: Shape (N, C, H, W).

    Returns:
        Shape (N, C, 1, 1).

    Raises:
        LayerError: The layer has no height and width.

    Example::

        >>> import torch
        >>> border_mean(torch.arange(9.0).view(1, 1, 3, 3)).item()
        4.0
    """
    if activations.dim() != 4:
        raise LayerError(
            f"the layer's output has shape {tuple(activations.shape)}, which has no border; "
            "expected (N, C, H, W)"
        )
    rows, columns = activations.shape[2:]
    border = torch.ones(rows, columns, dtype=torch.bool, device=activations.device)
    border[1:-1, 1:-1] = False
    return activations[:, :, border].mean(2)[:, :, None, None]


def over_space(weights: Tensor, activations: Tensor) -> Tensor:
    """Weights (N, C) with as many dimensions as the activations, ready to multiply them."""
    return weights.reshape(weights.shape + (1,) * (activations.dim() - weights.dim()))
