"""Checks of what a layer put out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from captum_embed.errors import LayerError


def require_finite(what: str, layer: nn.Module, tensors: Sequence[Sequence[Tensor]]) -> None:
    """Raises LayerError where a tensor of an execution holds NaN or infinite values."""
    if all(bool(torch.isfinite(tensor).all()) for each in tensors for tensor in each):
        return
    raise LayerError(
        f"the {what} of the layer ({type(layer).__name__}) hold NaN or infinite values; look for "
        "them in the inputs, the network's parameters, and the forward function"
    )
