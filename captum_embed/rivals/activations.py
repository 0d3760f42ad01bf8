"""From the inputs of an attribution, and what its layer put out, to one map per execution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from captum._utils.common import _format_tensor_into_tuples
from torch import Tensor, nn

from captum_embed.errors import InputError, LayerError
from captum_embed.layer_results import PerExecution, split_batches


def input_tensors(inputs: Any) -> tuple[Tensor, ...]:
    """The inputs of a forward function as a tuple of tensors.

    Raises:
        InputError: They are not tensors, or hold no example.
    """
    formatted = _format_tensor_into_tuples(inputs)
    if not formatted or not all(isinstance(tensor, Tensor) for tensor in formatted):
        kinds = [type(item).__name__ for item in formatted or ()]
        raise InputError(f"inputs hold {kinds}; expected a tensor or a tuple of tensors")
    for place, tensor in enumerate(formatted):
        if tensor.dim() == 0 or tensor.shape[0] == 0:
            raise InputError(
                f"input {place} has shape {tuple(tensor.shape)}; expected at least one example "
                "along dimension 0"
            )
    return tuple(formatted)


def require_finite(what: str, layer: nn.Module, tensors: Sequence[Sequence[Tensor]]) -> None:
    """Raises LayerError where a tensor of an execution holds NaN or infinite values."""
    if all(bool(torch.isfinite(tensor).all()) for each in tensors for tensor in each):
        return
    raise LayerError(
        f"the {what} of the layer ({type(layer).__name__}) hold NaN or infinite values; look for "
        "them in the inputs, the network's parameters, and the forward function"
    )


def map_each(map_of: Callable[..., Tensor], batch: int, *tensors: PerExecution) -> Any:
    """One map for each execution of the layer, as the attributions of this package return them.

    Args:
        map_of: Makes a map of one tensor from each of ``tensors``.
        batch: Number of examples in the inputs; an execution on k times as many counts as k.
        tensors: What ``map_of`` gets, for each execution, for each tensor of it.

    Returns:
        A map; a tuple of maps where there are several executions, or several tensors in one.
    """
    split = [split_batches(each, batch) for each in tensors]
    maps = []
    for execution in zip(*split, strict=True):
        parts = tuple(map_of(*one) for one in zip(*execution, strict=True))
        maps.append(parts if len(parts) > 1 else parts[0])
    return tuple(maps) if len(maps) > 1 else maps[0]
