"""A layer's activations: checks of them, and maps that are made of them alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from captum._utils.common import _format_additional_forward_args
from captum.attr import LayerAttribution
from captum.log import log_usage
from torch import Tensor, nn

from captum_embed.errors import LayerError
from captum_embed.input_executions import checked_inputs, executions_of_inputs
from captum_embed.layer_executions import (
    LayerExecution,
    Maps,
    packed,
    require_finite,
    run_layer,
)
from captum_embed.layouts import LayerLayout, require_layout


class LayerMap(LayerAttribution):
    """An attribution to a layer whose layout is stated, as in ``EmbeddingLayerGradCam``.

    Args:
        forward_func: Any callable that runs the layer.
        layer: Layer to explain.
        device_ids: Device order, needed only if ``forward_func`` wraps a ``DataParallel`` model.
        layout: ``layout``, ``prefix_tokens`` and ``grid`` of the layer's output.

    Raises:
        InputError: The settings of the layout are not valid together.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        device_ids: list[int] | None = None,
        **layout: Any,
    ) -> None:
        LayerAttribution.__init__(self, forward_func, layer, device_ids)
        self.layout = LayerLayout(**layout)

    def places(
        self, executions: Sequence[LayerExecution], images: Sequence[Tensor]
    ) -> list[list[Tensor]]:
        """Activations (N, C, ...) of each input, checked."""
        return [
            [checked_places(tensor, self.layer, image, self.layout) for tensor in each.tensors]
            for each, image in zip(executions, images, strict=True)
        ]


class ActivationMap(LayerMap):
    """A map of what a layer puts out: it needs neither gradients nor references.

    Subclasses say in :meth:`map_of` how activations become a map.

    Where the layer runs k times, or once on k times the batch, the result is a tuple of k maps
    in the order of execution.
    """

    def map_of(self, activations: Tensor) -> Tensor:
        """Map (N, 1, ...) of activations (N, C, ...) with at least one position."""
        raise NotImplementedError

    @log_usage()
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
    ) -> Maps:
        """Maps of the inputs.

        Args:
            inputs: Input(s) of ``forward_func``, dimension 0 counting examples.
            additional_forward_args: Further arguments of ``forward_func``.
            attribute_to_layer_input: Explain what goes into the layer instead of its output.
            relu_attributions: Set negative values of the map to zero.

        Returns:
            Map (N, 1, H, W), detached. A tuple where the layer runs several times or on k times
            the batch (see the class), or returns a tuple.

        Raises:
            InputError: The inputs are not tensors, or empty.
            LayerError: The layer never ran, has no positions or another layout than stated, or
                its activations are not finite.

        Example::

            >>> import torch
            >>> from torch import nn
            >>> from captum_embed import TripletForward
            >>> from captum_embed.rivals import EigenCAM
            >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> eigen_cam = EigenCAM(TripletForward(encoder), encoder[0])
            >>> maps = eigen_cam.attribute(tuple(torch.rand(3, 2, 3, 8, 8)))
            >>> [tuple(one.shape) for one in maps]
            [(2, 1, 6, 6), (2, 1, 6, 6), (2, 1, 6, 6)]
        """
        images = checked_inputs(inputs)
        arguments = _format_additional_forward_args(additional_forward_args)
        with torch.no_grad():
            _, executions = run_layer(
                self.forward_func,
                self.layer,
                images,
                None,
                arguments,
                device_ids=self.device_ids,
                attribute_to_layer_input=attribute_to_layer_input,
            )
            executions = executions_of_inputs(
                executions, self.forward_func, self.layer, images, arguments
            )
            each = self.places(executions, images)

            def map_of(activation: Tensor, _: Tensor) -> Tensor:
                require_positions(activation)
                map_ = self.map_of(activation)
                return F.relu(map_) if relu_attributions else map_

            return packed(each, each, map_of)


def require_gradient(scores: Tensor) -> None:
    """Raises LayerError where scores have no graph."""
    if not scores.requires_grad:
        raise LayerError(
            "the score does not depend on the network through a graph; does the encoder run under "
            "torch.no_grad(), or detach?"
        )


def require_positions(activations: Tensor) -> None:
    """Raises LayerError where activations have no dimension besides examples and channels."""
    if activations.dim() < 3:
        raise LayerError(
            f"the layer gives shape {tuple(activations.shape)}, which has no positions; choose "
            "one whose output is (N, C, H, W)"
        )


def checked_places(tensor: Tensor, layer: nn.Module, image: Tensor, layout: LayerLayout) -> Tensor:
    """Activations (N, C, ...) of images (N, ...), from what a layer put out.

    Raises:
        LayerError: Its layout is another, or they are not finite.
    """
    require_layout(tensor, layout.layout, layer, image, f" ({type(layer).__name__})")
    require_finite("activations", layer, [[tensor]])
    return layout.channels_first(tensor, image)


def only_activation(
    executions: Sequence[LayerExecution], images: Tensor, layer: nn.Module, layout: LayerLayout
) -> Tensor:
    """The layer's only tensor, as (N, C, H, W), of one pass over N images.

    Raises:
        LayerError: The layer ran several times, its output has another shape or layout, or is
            not finite.
    """
    tensors = [each.tensors for each in executions]
    if len(tensors) != 1 or len(tensors[0]) != 1:
        raise LayerError(
            f"the layer ran {len(tensors)} times on one batch of images, with "
            f"{[len(each) for each in tensors]} tensors; expected one tensor, once: "
            "choose a layer that runs once, and pass references as embeddings"
        )
    activations = checked_places(tensors[0][0], layer, images, layout)
    if activations.dim() != 4 or activations.shape[0] != images.shape[0]:
        raise LayerError(
            f"the layer put out shape {tuple(activations.shape)} for {images.shape[0]} images; "
            "expected (N, C, H, W): choose a layer with positions, and pass references as "
            "embeddings"
        )
    return activations
