"""LayerCAM: activations weighed position by position with their positive gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from captum._utils.common import _format_additional_forward_args
from captum.attr._utils.attribution import GradientAttribution
from captum.log import log_usage
from torch import Tensor, nn

from captum_embed.input_executions import checked_inputs, run_inputs
from captum_embed.layer_executions import (
    Maps,
    layer_gradients,
    packed,
    require_finite,
)
from captum_embed.layouts import require_gradient_of_places
from captum_embed.rivals.activations import LayerMap


class EmbeddingLayerCAM(LayerMap, GradientAttribution):
    r"""LayerCAM of a metric loss, or of any other value that a forward function returns.

    Where Grad-CAM weighs a channel by its mean gradient, LayerCAM weighs each position by its
    own, and only where the gradient is positive:

    .. math::
        \mathrm{map}[n, h, w] = \sum_c \mathrm{ReLU}\big(\partial y[n] / \partial A[n, c, h, w]
        \big)\, A[n, c, h, w]

    A network that ends in global average pooling has one gradient for all positions of its last
    layer; there, LayerCAM is Grad-CAM with the filter ``channel_filters.positive``.

    As in :class:`captum_embed.EmbeddingLayerGradCam`, every execution of a shared encoder is
    explained: where the layer runs k times, or once on k times the batch, the result is a tuple
    of k maps in the order of execution.

    Args:
        forward_func: Forward function of the model or any modification of it: returns one value
            per example, (N,), or one scalar for the batch.
        layer: Layer to explain: its output is (N, C, H, W), or (N, C), or as the layout says, or
            a tuple of these.
        device_ids: Device order, needed only if ``forward_func`` wraps a ``DataParallel`` model.
        layout: ``layout``, ``prefix_tokens`` and ``grid``, as in ``EmbeddingLayerGradCam``.

    Source: Jiang et al., LayerCAM: Exploring Hierarchical Class Activation Maps for
        Localization, IEEE TIP 2021. The paper applies a ReLU to the map
        (``relu_attributions=True``), which changes nothing after an activation like ReLU.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from captum_embed import TripletForward
        >>> from captum_embed.rivals import EmbeddingLayerCAM
        >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten())
        >>> layer_cam = EmbeddingLayerCAM(TripletForward(encoder, margin=9.0), encoder[0])
        >>> maps = layer_cam.attribute(tuple(torch.rand(3, 2, 3, 8, 8)))
        >>> [tuple(one.shape) for one in maps]
        [(2, 1, 6, 6), (2, 1, 6, 6), (2, 1, 6, 6)]
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        device_ids: list[int] | None = None,
        **layout: Any,
    ) -> None:
        LayerMap.__init__(self, forward_func, layer, device_ids, **layout)
        GradientAttribution.__init__(self, forward_func)

    @log_usage()
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Maps:
        """Maps of the inputs.

        Args:
            inputs: Input(s) of ``forward_func``, dimension 0 counting examples.
            target: Index into the output of ``forward_func``, as in
                :class:`captum.attr.LayerGradCam`.
            additional_forward_args: Further arguments of ``forward_func``, not explained.
            attribute_to_layer_input: Explain what goes into the layer instead of its output.
            relu_attributions: Set negative values of the map to zero.
            attr_dim_summation: Sum over channels. If False, the map keeps its C channels.
            grad_kwargs: Keyword arguments of ``torch.autograd.grad``.

        Returns:
            Map (N, 1, H, W), or (N, C, H, W) without summation; (N, 1) for layers of shape
            (N, C); detached. A tuple where the layer runs several times or on k times the batch
            (see the class), or returns a tuple.

        Raises:
            InputError: An argument does not fit.
            LayerError: The layer never ran, its layout is not the one stated, its patches have no
                gradient, or its gradients or activations are not finite.

        Example::

            >>> import torch
            >>> from torch import nn
            >>> from captum_embed import PairForward
            >>> from captum_embed.rivals import EmbeddingLayerCAM
            >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> layer_cam = EmbeddingLayerCAM(PairForward(encoder, "distance"), encoder[0])
            >>> images, references = torch.rand(2, 3, 8, 8), torch.rand(2, 4)
            >>> layer_cam.attribute(images, additional_forward_args=references).shape
            torch.Size([2, 1, 6, 6])
        """
        images = checked_inputs(inputs)
        arguments = _format_additional_forward_args(additional_forward_args)
        with torch.enable_grad():
            output, executions = run_inputs(
                self.forward_func,
                self.layer,
                images,
                target,
                arguments,
                device_ids=self.device_ids,
                attribute_to_layer_input=attribute_to_layer_input,
            )
            of_executions = layer_gradients(output, executions, grad_kwargs)
        activations = [
            [each.detach() for each in tensors] for tensors in self.places(executions, images)
        ]
        gradients = [
            [self.layout.channels_first(each.detach(), image) for each in tensors]
            for tensors, image in zip(of_executions, images, strict=True)
        ]
        require_finite("gradients", self.layer, gradients)
        for of_all, of_places in zip(of_executions, gradients, strict=True):
            require_gradient_of_places(of_all, of_places, self.layer, self.forward_func)

        def map_of(gradient: Tensor, activation: Tensor) -> Tensor:
            weighed = F.relu(gradient) * activation
            if attr_dim_summation:
                weighed = weighed.sum(dim=1, keepdim=True)
            return F.relu(weighed) if relu_attributions else weighed

        return packed(gradients, activations, map_of)
