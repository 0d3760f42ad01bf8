"""From what each execution of a layer gave to the result that a caller sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

# One tensor, one per execution of the layer, or (layers that return tuples) a tuple for each.
Maps = Any

# For each execution of the layer, for each tensor of it.
PerExecution = list[list[Tensor]]


def split_batches(tensors: PerExecution, batch: int) -> PerExecution:
    """One execution on k times the batch counts as k executions, first to last.

    Args:
        tensors: For each execution its tensors, (B, ...).
        batch: Number of examples N in the inputs.

    Returns:
        With one execution and B = kN for a k above one, k executions of N examples; otherwise
        what was given.
    """
    if len(tensors) != 1:
        return tensors
    times, rest = divmod(tensors[0][0].shape[0], batch)
    if times < 2 or rest or any(t.shape[0] != tensors[0][0].shape[0] for t in tensors[0]):
        return tensors
    return [list(parts) for parts in zip(*(t.split(batch) for t in tensors[0]), strict=True)]


def packed(
    weights: PerExecution,
    activations: PerExecution,
    result_of: Callable[[Tensor, Tensor], Tensor],
) -> Maps:
    """The result of each execution and tensor, unpacked where there is only one.

    Args:
        weights: For each execution, for each tensor, what is computed per channel.
        activations: The tensors themselves, in the same order.
        result_of: Makes a result of one of each.

    Returns:
        One result; a tuple of one per execution, or per tensor; or a tuple of tuples.
    """
    results = [
        tuple(result_of(w, a) for w, a in zip(*each, strict=True))
        for each in zip(weights, activations, strict=True)
    ]
    unpacked = [result if len(result) > 1 else result[0] for result in results]
    return tuple(unpacked) if len(unpacked) > 1 else unpacked[0]
