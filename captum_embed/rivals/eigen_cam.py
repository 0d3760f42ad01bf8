"""Eigen-CAM: the activations along their first principal direction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from captum._utils.common import _format_additional_forward_args
from captum.attr import LayerAttribution
from captum.log import log_usage
from torch import Tensor, nn

from captum_embed.errors import LayerError
from captum_embed.input_executions import executions_of_inputs
from captum_embed.layer_executions import Maps, checked_inputs, packed, run_layer
from captum_embed.rivals.activations import require_finite


class EigenCAM(LayerAttribution):
    r"""The activations of each image, projected on their first right singular vector.

    With the activations of one image as a matrix :math:`F = U \Sigma V^\top` of HW positions
    times C channels, the map is :math:`F v_1 = \sigma_1 u_1`. It explains no similarity and no
    loss: it needs neither gradients nor references, only the activations.

    *Sign.* Singular vectors have none. It is chosen such that the projections of the
    activations sum to zero or more; without centring that is the sum of the map. After an
    activation like ReLU the map is then non-negative (Perron and Frobenius).

    *Centring.* The paper takes the activations as they are, the default. With ``center=True``
    each channel's mean over the positions is subtracted first (principal components proper, and
    what the package pytorch-grad-cam does): the map then sums to zero, and is positive where
    the activations exceed their mean along the direction in which they vary most.

    Where the layer runs k times, or once on k times the batch, the result is a tuple of k maps
    in the order of execution.

    Args:
        forward_func: Any callable that runs the layer, as the encoder itself.
        layer: Layer to explain: its output is (N, C, H, W).
        device_ids: Device order, needed only if ``forward_func`` wraps a ``DataParallel`` model.
        center: Subtract each channel's mean over the positions of its image.

    Source: Muhammad, Yeasin, Eigen-CAM: Class Activation Map using Principal Components,
        IJCNN 2020 (arXiv 2008.00299).

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from captum_embed.rivals import EigenCAM
        >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        >>> EigenCAM(encoder, encoder[1]).attribute(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 1, 6, 6])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        device_ids: list[int] | None = None,
        *,
        center: bool = False,
    ) -> None:
        LayerAttribution.__init__(self, forward_func, layer, device_ids)
        self.center = center

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
            LayerError: The layer never ran, has no positions, or its activations are not finite.

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
        with torch.no_grad():
            arguments = _format_additional_forward_args(additional_forward_args)
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
            each = [list(execution.tensors) for execution in executions]
            require_finite("activations", self.layer, each)

            def map_of(activation: Tensor, _: Tensor) -> Tensor:
                map_ = _first_projection(activation, self.center)
                return F.relu(map_) if relu_attributions else map_

            return packed(each, each, map_of)


def _first_projection(activations: Tensor, center: bool) -> Tensor:
    """Projection of activations (N, C, ...) on their first right singular vector, (N, 1, ...)."""
    if activations.dim() < 3:
        raise LayerError(
            f"the layer gives shape {tuple(activations.shape)}, which has no positions; choose "
            "one whose output is (N, C, H, W)"
        )
    # Half precision has no singular value decomposition.
    wide = activations.double() if activations.dtype == torch.float64 else activations.float()
    features = wide.flatten(2).transpose(1, 2)
    centred = features - features.mean(1, keepdim=True) if center else features
    _, _, rows = torch.linalg.svd(centred, full_matrices=False)
    direction = rows[:, 0, :, None]
    sums = (features.sum(1, keepdim=True) @ direction).sign()
    projected = (centred @ direction) * torch.where(sums < 0, -1, 1)
    return projected.transpose(1, 2).reshape(len(wide), 1, *wide.shape[2:]).to(activations)
