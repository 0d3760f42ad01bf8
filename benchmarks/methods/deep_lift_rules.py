"""DeepLift's rules for modules of the canonical network that Captum has none, or a wrong one for.

A rule gives the multipliers of a module's input, in Captum's form. Inputs, outputs and multipliers
hold the images in their first half and the baselines in their second.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR, nonlinear
from torch import Tensor, nn

from benchmarks.methods.canonical import Elementwise, MaxPool, UnitLength

__all__ = ["SUPPORTED_NON_LINEAR", "max_pool_rule", "unit_length_rule"]

# Lengths below this part of another are zero.
NO_LENGTH = 1e-6


def unit_length_rule(
    module: nn.Module,
    inputs: Tensor,
    outputs: Tensor,
    grad_input: Tensor,
    grad_output: Tensor,
    eps: float = 1e-10,
) -> Tensor:
    """DeepLift through u / |u|, in Captum's form of a rule.

    The length is a sum of squares under a root: both are elementwise, and the rescale rule holds
    for them. Their quotient 1 / |u| times u is a product, whose change is shared as Shapley
    values share it: half the sum of the two values of one factor, times the change of the other.

    Args:
        module (nn.Module): not used.
        inputs (Tensor): vectors of the images and then of the baselines, (2N, D).
        outputs (Tensor): not used.
        grad_input (Tensor): not used.
        grad_output (Tensor): multipliers of the output, (2N, D).
        eps (float): not used.

    Returns:
        Tensor: multipliers of the input, (2N, D).
    """
    vectors, at_baseline = inputs.chunk(2)
    arriving, at_baseline_arriving = grad_output.chunk(2)
    length = vectors.norm(dim=1, keepdim=True)
    other = at_baseline.norm(dim=1, keepdim=True)
    longer = torch.maximum(length, other).clamp(min=torch.finfo(inputs.dtype).tiny)
    # Beside a vector of length zero, whose direction is nothing, the other's length is the scale.
    alone = torch.minimum(length, other) <= NO_LENGTH * longer
    length, other = length.where(~alone, longer), other.where(~alone, longer)
    scale = (1 / length + 1 / other) / 2
    # Change of 1 / |u| by change of |u|^2.
    slope = torch.where(alone, 0, -1 / (length * other * (length + other)))
    total = vectors + at_baseline

    def multipliers(arriving: Tensor) -> Tensor:
        return scale * arriving + slope * (total * arriving).sum(1, keepdim=True) / 2 * total

    return torch.cat([multipliers(arriving), multipliers(at_baseline_arriving)])


def max_pool_rule(
    module: MaxPool,
    inputs: Tensor,
    outputs: Tensor,
    grad_input: Tensor,
    grad_output: Tensor,
    eps: float = 1e-10,
) -> Tensor:
    """DeepLift through max pooling, whose windows may overlap.

    What the maximum rises by, up to the larger of the two, goes to where the image has its
    maximum; what it falls by, to where the baseline has its own. Captum's rule is the same for
    windows apart; where they overlap it keeps one window's share of a position and drops the
    others'.

    Args:
        module (MaxPool): the pooling.
        inputs (Tensor): (2N, C, H, W).
        outputs (Tensor): (2N, C, h, w).
        grad_input (Tensor): plain gradient, where the input does not change, (2N, C, H, W).
        grad_output (Tensor): multipliers of the output, (2N, C, h, w).
        eps (float): changes below it are none.

    Returns:
        Tensor: multipliers of the input, (2N, C, H, W).
    """
    _, places = F.max_pool2d(
        inputs,
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        module.ceil_mode,
        return_indices=True,
    )
    maximum, at_baseline = outputs.chunk(2)
    larger = torch.maximum(maximum, at_baseline)
    shares = grad_output * torch.cat([larger - at_baseline, maximum - larger])
    shared_out = torch.zeros_like(inputs).flatten(2)
    shared_out.scatter_add_(2, places.flatten(2), shares.flatten(2))
    contributions = sum(shared_out.view_as(inputs).chunk(2))
    change = inputs.chunk(2)[0] - inputs.chunk(2)[1]
    ratio = torch.cat([contributions / change] * 2)
    return torch.where(torch.cat([change.abs()] * 2) < eps, grad_input, ratio)


# Captum's table, extended for module types that are only ours.
SUPPORTED_NON_LINEAR[Elementwise] = nonlinear
SUPPORTED_NON_LINEAR[UnitLength] = unit_length_rule
SUPPORTED_NON_LINEAR[MaxPool] = max_pool_rule
