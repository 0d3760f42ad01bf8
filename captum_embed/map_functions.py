"""Map functions: how filtered grad-weights and activations become a map.

Grad-CAM's own is the weighted sum of the channels. It assumes that a channel at zero says
nothing, which holds after a ReLU. At a layer without one (the bottleneck in front of a last
1x1 convolution, say) every channel has an offset of its own, and a weighted sum shows those
offsets; :func:`background_distance` and
:func:`background_contrast` measure from the image's background instead. Both take the border of
the image for background, as it is in most photographs of one object.

A map function takes grad-weights (N, C) and activations (N, C, H, W) and returns maps
(N, 1, H, W); any other callable of that kind serves as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_embed.errors import InputError, LayerError

MapFunction = Callable[[Tensor, Tensor], Tensor]

__all__ = [
    "MapFunction",
    "agreed_evidence",
    "background_contrast",
    "background_distance",
    "border_mean",
    "weighted_norm",
    "weighted_sum",
]


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
        LayerError: Called with activations below 3 x 3, which have no inside.

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
        _require_inside(activations)
        distance = (activations - border_mean(activations)).square()
        return (over_space(weights, activations).abs() * distance).sum(1, keepdim=True) ** power

    return contrast


def background_distance(
    power: float = 1.0, nearest: float = 0.3, *, signed: bool = False
) -> MapFunction:
    r"""How far each place is from the border's places that are most like it.

    Channels are scaled by :math:`\sqrt{|w_c|}`; :math:`d` is the mean Euclidean distance to the
    nearest share of the border's places, and the map is :math:`d^p`. Against
    :func:`background_contrast`, which measures from the border's mean, a background of several
    parts (sky and water, say) is not taken for an object, and an object that reaches the border
    in a few places does not hide itself.

    Args:
        power: :math:`p`. It orders no two places anew; it sets at which share of the maximum
            the object ends.
        nearest: Share of the border's places that count, in (0, 1]; at least one does.
        signed: Whether the map has the sign of :math:`\sum_c w_c (A_c - b_c)`, where :math:`b_c`
            is the mean along the border (:func:`border_mean`): above zero where a place differs
            from the background in the way that raises the explained value.

    Returns:
        A map function from (N, C) and (N, C, H, W) to (N, 1, H, W), non-negative unless signed.

    Raises:
        InputError: The power is not above zero, or the share not in (0, 1].
        LayerError: Called with activations below 3 x 3, which have no inside.

    Example::

        >>> import torch
        >>> activations = torch.zeros(1, 1, 5, 5)
        >>> activations[..., :2] = 10.0  # a background of two parts, and an object of one place
        >>> activations[0, 0, 2, 2] = 4.0
        >>> background_distance()(torch.tensor([[1.0]]), activations)[0, 0, 2]
        tensor([0., 0., 4., 0., 0.])
        >>> activations = torch.zeros(1, 1, 3, 5)
        >>> activations[0, 0, 1, 1:4] = torch.tensor([2.0, 0.0, -1.0])
        >>> background_distance(signed=True)(torch.tensor([[1.0]]), activations)[0, 0, 1]
        tensor([ 0.,  2.,  0., -1.,  0.])
    """
    if not power > 0:
        raise InputError(f"the power of background_distance is {power}; expected above zero")
    if not 0 < nearest <= 1:
        raise InputError(f"nearest is {nearest}; expected a share of the border, in (0, 1]")

    def distance(weights: Tensor, activations: Tensor) -> Tensor:
        _require_inside(activations)
        border = _border(activations)
        places = (over_space(weights, activations).abs().sqrt() * activations).flatten(2).mT
        # Differences rather than products: far from zero, products lose small distances.
        distances = torch.cdist(
            places, places[:, border.flatten()], compute_mode="donot_use_mm_for_euclid_dist"
        )
        count = max(1, int(nearest * distances.shape[2]))
        closest = distances.topk(count, dim=2, largest=False).values.mean(2)
        powered = closest.unflatten(1, border.shape)[:, None] ** power
        if not signed:
            return powered
        return powered * weighted_sum(weights, activations - border_mean(activations)).sign()

    return distance


def agreed_evidence(power: float = 2.0, sigma: float = 1.5) -> MapFunction:
    r"""Evidence for the match less evidence against it, where neighbouring places agree.

    :math:`(P - N)\, |(P - N) / (P + N)|^p`, where :math:`P` and :math:`N` are the sums of the
    positive and of the negative :math:`w_c A_c`, smoothed over places by a Gaussian. A place whose
    channels contradict each other says little, however large they are. Signed.
    ``agreed_evidence(0, 0)`` is :func:`weighted_sum`.

    Args:
        power: :math:`p`, zero or more: how much agreement counts.
        sigma: Deviation of the Gaussian in places of the layer, zero or more; at the border it
            averages the places that are there.

    Returns:
        A map function from (N, C) and (N, C, H, W) to (N, 1, H, W).

    Raises:
        InputError: The power or sigma is below zero.

    Example::

        >>> import torch
        >>> activations = torch.tensor([3.0, 4.0, 1.0, 0.0]).view(1, 2, 1, 2)
        >>> agreed_evidence(1.0, 0.0)(torch.tensor([[1.0, -1.0]]), activations)
        tensor([[[[1., 4.]]]])
    """
    if not (power >= 0 and 0 <= sigma < float("inf")):
        raise InputError(
            f"agreed_evidence has power {power} and sigma {sigma}; expected zero or more"
        )

    def evidence(weights: Tensor, activations: Tensor) -> Tensor:
        terms = over_space(weights, activations) * activations
        pro, contra = (
            _smoothed(each.clamp(min=0).sum(1, keepdim=True), sigma) for each in (terms, -terms)
        )
        net, total = pro - contra, pro + contra
        return net * (net / total.clamp(min=torch.finfo(total.dtype).tiny)).abs() ** power

    return evidence


def _smoothed(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian mean over places of (N, 1, H, W)."""
    if sigma == 0:
        return maps
    if maps.dim() != 4:
        raise LayerError(
            f"maps of shape {tuple(maps.shape)} cannot be smoothed; expected a layer of shape "
            "(N, C, H, W), or sigma=0"
        )
    reach = math.ceil(3 * sigma)
    steps = torch.arange(-reach, reach + 1, dtype=maps.dtype, device=maps.device)
    kernel = (-steps.square() / (2 * sigma**2)).exp()

    def blurred(values: Tensor) -> Tensor:
        rows = F.conv2d(values, kernel.view(1, 1, -1, 1), padding=(reach, 0))
        return F.conv2d(rows, kernel.view(1, 1, 1, -1), padding=(0, reach))

    return blurred(maps) / blurred(torch.ones_like(maps))


def checked_map(map_func: MapFunction | None) -> MapFunction | None:
    """The map function, refused where it is one of those here that only make one.

    Raises:
        InputError: It is.
    """
    if map_func in (agreed_evidence, background_contrast, background_distance):
        name = getattr(map_func, "__name__", "")
        raise InputError(f"{name} makes a map function and is none; pass map_func={name}()")
    return map_func


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
    return activations[:, :, _border(activations)].mean(2)[:, :, None, None]


def _border(activations: Tensor) -> Tensor:
    """The outermost places, (H, W), True on the border."""
    if activations.dim() != 4:
        raise LayerError(
            f"the layer's output has shape {tuple(activations.shape)}, which has no border; "
            "expected (N, C, H, W)"
        )
    border = torch.ones(activations.shape[2:], dtype=torch.bool, device=activations.device)
    border[1:-1, 1:-1] = False
    return border


def _require_inside(activations: Tensor) -> None:
    if activations.dim() == 4 and min(activations.shape[2:]) < 3:
        raise LayerError(
            f"the layer's output has {activations.shape[2]} x {activations.shape[3]} places, which "
            "are all border; expected at least 3 x 3: choose an earlier layer, give larger images, "
            "or take another map_func"
        )


def over_space(weights: Tensor, activations: Tensor) -> Tensor:
    """Weights (N, C) with as many dimensions as the activations, ready to multiply them."""
    return weights.reshape(weights.shape + (1,) * (activations.dim() - weights.dim()))


def mean_over_space(gradients: Tensor) -> Tensor:
    """Grad-weights (N, C) from gradients (N, C, ...): their mean, in single precision or better."""
    wide = torch.promote_types(gradients.dtype, torch.float32)
    return gradients.flatten(2).mean(2, dtype=wide) if gradients.dim() > 2 else gradients.to(wide)
