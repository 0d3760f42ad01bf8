"""A forward pass in which a layer puts out something else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from captum._utils.common import _run_forward
from torch import Tensor, nn

from captum_embed.errors import LayerError
from captum_embed.layouts import CHANNELS_FIRST, LayerLayout


def run_with_replacement(
    forward_func: Callable[..., Any],
    layer: nn.Module,
    image: Tensor,
    replacement: Tensor,
    arguments: tuple[Any, ...] = (),
    *,
    layout: LayerLayout = CHANNELS_FIRST,
) -> Tensor:
    """What the forward function returns where the layer put out each of several activations.

    The part of the network below the layer sees one image, whatever the number of activations;
    the part above it sees them as one batch. The hook that does so acts
    in this thread alone, and is gone afterwards, also after an exception.

    Args:
        forward_func: Runs the layer once, and returns one row per row of the layer's output.
        layer: The layer whose output is replaced.
        image: One image, (1, ...).
        replacement: Activations to go on with, (B, C, ...), each of the shape of the layer's
            output in channels first; prefix tokens stay as they are.
        arguments: Further arguments of ``forward_func``, for that one image.
        layout: Of the layer's output.

    Returns:
        One row per activation, (B, ...); part of the graph of ``replacement`` where gradients
        are enabled.

    Raises:
        LayerError: The layer ran not once, or its output is not one tensor with one row, or the
            result has not one row per activation.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> encoder = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> ones = torch.ones(3, 2, 6, 6)
        >>> run_with_replacement(encoder, encoder[0], torch.rand(1, 3, 8, 8), ones)
        tensor([[1., 1.],
                [1., 1.],
                [1., 1.]])
    """
    this_thread, runs = threading.get_ident(), 0

    def replace(_: nn.Module, __: Any, output: Any) -> Tensor | None:
        nonlocal runs
        if threading.get_ident() != this_thread:
            return None
        runs += 1
        expected = (1, *replacement.shape[1:])
        is_tensor = isinstance(output, Tensor)
        given = tuple(layout.channels_first(output, image).shape) if is_tensor else type(output)
        if runs > 1 or given != expected:
            raise LayerError(
                f"run {runs} of the layer ({type(layer).__name__}) on one image gives {given}; "
                f"expected it to run once, with shape {expected}: choose a layer that runs once "
                "per image, and pass references as embeddings"
            )
        # A copy, so that an in-place successor alters no leaf.
        return layout.put_back(replacement, output).clone()

    handle = layer.register_forward_hook(replace)
    try:
        output = _run_forward(forward_func, image, None, arguments or None)
    finally:
        handle.remove()
    if not runs:
        raise LayerError(
            f"the layer ({type(layer).__name__}) did not run in the forward pass; choose a module "
            "that the forward function calls in this thread (of nn.DataParallel, its .module)"
        )
    if not isinstance(output, Tensor) or output.dim() == 0 or len(output) != len(replacement):
        given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise LayerError(
            f"the forward function returned {given} for {len(replacement)} activations of the "
            "layer; expected one row for each: does it keep examples apart?"
        )
    return output
