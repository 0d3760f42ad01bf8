"""Maps of channels that are weighed by the scores of changed images or activations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from captum.log import log_usage
from torch import Tensor

from captum_embed.layer_executions import run_layer
from captum_embed.map_functions import weighted_sum
from captum_embed.rivals.activations import LayerMap, only_activation
from captum_embed.rivals.changed_images import checked_call, require_positive


class ChannelScores(LayerMap):
    """The sum of a layer's channels, each weighed by a score, without gradients.

    Subclasses say in :meth:`weights_of` what a channel weighs.
    """

    def weights_of(
        self,
        images: Tensor,
        activations: Tensor,
        chosen: Tensor,
        arguments: tuple[Any, ...],
        at_once: int,
    ) -> Tensor:
        """Weights (N, K) of the channels ``chosen`` (N, K) of activations (N, C, H, W)."""
        raise NotImplementedError

    @log_usage()
    def attribute(
        self,
        inputs: Tensor,
        additional_forward_args: Any = None,
        *,
        relu_attributions: bool = False,
        max_channels: int | None = None,
        perturbations_per_eval: int = 32,
    ) -> Tensor:
        """Maps of the inputs.

        Args:
            inputs: Images (N, C, H, W).
            additional_forward_args: Further arguments of the forward function.
            relu_attributions: Set negative values of the map to zero.
            max_channels: Weigh only so many channels, those of largest norm in their image, and
                leave the others out of the map. None: all.
            perturbations_per_eval: Channels in one pass.

        Returns:
            Map (N, 1, H, W), detached.

        Raises:
            InputError: An argument does not fit, or the score is not one value per image.
            LayerError: The layer ran not once, has no positions or another layout than stated, or
                is not finite; or the forward function does not keep examples apart.

        Example::

            >>> import torch
            >>> from torch import nn
            >>> from captum_embed.rivals import LabelFree, ScoreCAM
            >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> label_free = LabelFree(encoder, lambda score: ScoreCAM(score, encoder[0]))
            >>> label_free.attribute(torch.rand(2, 3, 8, 8), max_channels=2).shape
            torch.Size([2, 1, 6, 6])
        """
        images, arguments = checked_call(
            inputs, additional_forward_args, perturbations_per_eval=perturbations_per_eval
        )
        with torch.no_grad():
            _, executions = run_layer(
                self.forward_func,
                self.layer,
                (images,),
                None,
                arguments or None,
                device_ids=self.device_ids,
            )
            activations = only_activation(executions, images, self.layer, self.layout)
            chosen = largest_channels(activations, max_channels)
            weights = self.weights_of(
                images, activations, chosen, arguments, perturbations_per_eval
            )
            map_ = weighted_sum(weights.to(activations), picked(activations, chosen))
        return F.relu(map_) if relu_attributions else map_


def largest_channels(activations: Tensor, number: int | None) -> Tensor:
    """Indices (N, K) of the channels of largest norm in each image, largest first.

    Raises:
        InputError: The number is below one.

    Example::

        >>> import torch
        >>> largest_channels(torch.tensor([1.0, -3.0, 2.0]).reshape(1, 3, 1, 1), 2)
        tensor([[1, 2]])
    """
    require_positive(max_channels=1 if number is None else number)
    channels = activations.shape[1]
    norms = activations.flatten(2).norm(dim=2)
    return norms.topk(channels if number is None else min(number, channels)).indices


def picked(activations: Tensor, chosen: Tensor) -> Tensor:
    """The channels ``chosen`` (N, K) of activations (N, C, H, W)."""
    return activations.take_along_dim(chosen[..., None, None], 1)
