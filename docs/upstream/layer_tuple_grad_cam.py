"""For ``captum/attr/_core/layer/layer_tuple_grad_cam.py``: it needs Captum and torch alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from captum._utils.common import (
    _format_additional_forward_args,
    _format_tensor_into_tuples,
    _run_forward,
)
from captum.attr import LayerAttribution
from captum.attr._utils.attribution import GradientAttribution
from captum.log import log_usage
from torch import Tensor, nn


class LayerTupleGradCam(LayerAttribution, GradientAttribution):
    r"""GradCAM for every input of a tuple that shares an encoder.

    A metric loss, or a similarity, reads several images through one encoder. LayerGradCam keeps
    what a layer put out last, and so explains one of them. This class gives one attribution for
    each input. The encoder may run once for each input, or once on all of them concatenated. The
    inputs must be encoded in their order: another order cannot be told, and swaps attributions.

    Args:
        forward_func (Callable): The forward function of the model or any modification of it. It
            returns one value for each example, or one scalar.
        layer (torch.nn.Module): Layer for which attributions are computed. Its output is one
            tensor (N, C, ...).

    Source: Chen et al., Adapting Grad-CAM for Embedding Networks, WACV 2020, section 3.2.
    """

    def __init__(self, forward_func: Callable[..., Any], layer: nn.Module) -> None:
        LayerAttribution.__init__(self, forward_func, layer)
        GradientAttribution.__init__(self, forward_func)

    @log_usage()
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        relu_attributions: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""Attributions of the inputs.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): Inputs of forward_func, dimension 0 counting
                examples.
            target (int, tuple, Tensor, or list, optional): As in LayerGradCam.
            additional_forward_args (Any, optional): As in LayerGradCam.
            relu_attributions (bool, optional): Sets negative values to zero.

        Returns:
            *Tensor* or *tuple[Tensor, ...]* of **attributions**: (N, 1, ...) for each input.

        Raises:
            ValueError: The layer ran neither once for each input nor once on all of them.

        Examples::

            >>> conv = nn.Conv2d(3, 4, 3)
            >>> encoder = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> def match(first, second):
            ...     return -(encoder(first) - encoder(second)).square().sum(1)
            >>> grad_cam = LayerTupleGradCam(match, conv)
            >>> of_first, of_second = grad_cam.attribute(tuple(torch.rand(2, 5, 3, 8, 8)))
            >>> of_first.shape
            torch.Size([5, 1, 6, 6])
        """
        given = _format_tensor_into_tuples(inputs)
        arguments = _format_additional_forward_args(additional_forward_args)
        outputs: list[Tensor] = []

        def record(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            # Frozen layers have gradients of their output too; a copy, as what follows may work
            # in place.
            outputs.append(output if output.requires_grad else output.requires_grad_())
            return output.clone()

        handle = self.layer.register_forward_hook(record)
        try:
            with torch.enable_grad():
                score = _run_forward(self.forward_func, given, target, arguments)
        finally:
            handle.remove()
        gradients = torch.autograd.grad(score.sum(), outputs)
        maps = [
            (gradient.flatten(2).mean(2)[(...,) + (None,) * (output.dim() - 2)] * output)
            .sum(1, keepdim=True)
            .detach()
            for gradient, output in zip(gradients, outputs, strict=True)
        ]
        rows = [len(each) for each in given]
        if len(maps) == 1 and len(maps[0]) == sum(rows):
            maps = list(maps[0].split(rows))
        if [len(each) for each in maps] != rows:
            raise ValueError(
                f"the layer ran {len(outputs)} times, on {[len(each) for each in outputs]} "
                f"examples, for inputs of {rows}; expected once for each input, or once on all"
            )
        if relu_attributions:
            maps = [F.relu(each) for each in maps]
        return tuple(maps) if isinstance(inputs, tuple) else maps[0]
