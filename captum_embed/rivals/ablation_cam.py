"""Ablation-CAM: channels weighed by what the score loses without them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr import LayerAttribution
from captum.log import log_usage
from torch import Tensor, nn

from captum_embed.layer_executions import run_layer
from captum_embed.map_functions import weighted_sum
from captum_embed.rivals.activations import only_activation, require_finite
from captum_embed.rivals.changed_images import (
    checked_images,
    of_example,
    per_example,
    require_positive,
    scores,
)
from captum_embed.rivals.layer_replacement import run_with_replacement
from captum_embed.rivals.score_cam import largest_channels


class AblationCAM(LayerAttribution):
    r"""Ablation-CAM of a similarity, or of any other score.

    The weight of a channel is what the score :math:`s` loses when that channel is set to zero:

    .. math::
        w_c = s(A) - s(A \text{ without } A_c), \qquad \mathrm{map} = \sum_c w_c A_c

    The paper divides the weights by the score, a number per image. A similarity may be zero or
    negative, which would blow the map up or turn it round, so they are not divided here.

    *Cost.* The part of the network above the layer runs once per channel and image, the part
    below it once per ``perturbations_per_eval`` channels: with a layer near the end it is cheap.
    ``max_channels`` bounds it: the channels of largest norm are weighed, the others left out of
    the map. Channels that are zero everywhere cost nothing.

    Args:
        forward_func: Returns one score per image, (N,), such as its similarity to references
            given as embeddings. It keeps the examples of a batch apart.
        layer: Layer to explain: its output is (N, C, H, W), once per forward pass.

    Source: Desai, Ramaswamy, Ablation-CAM: Visual Explanations for Deep Convolutional Network via
        Gradient-free Localization, WACV 2020, section 3; its ReLU on the map is
        ``relu_attributions=True``.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from captum_embed import PairForward
        >>> from captum_embed.rivals import AblationCAM
        >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> score = PairForward(encoder, "similarity", distance="cosine")
        >>> ablation_cam = AblationCAM(score, encoder[0])
        >>> ablation_cam.attribute(torch.rand(2, 3, 8, 8), torch.rand(2, 4)).shape
        torch.Size([2, 1, 6, 6])
    """

    def __init__(self, forward_func: Callable[..., Any], layer: nn.Module) -> None:
        super().__init__(forward_func, layer)

    @log_usage()
    def attribute(
        self,
        inputs: Tensor,
        additional_forward_args: Any = None,
        *,
        relu_attributions: bool = False,
        max_channels: int | None = None,
        perturbations_per_eval: int = 64,
    ) -> Tensor:
        """Maps of the inputs.

        Args:
            inputs: Images (N, C, H, W).
            additional_forward_args: Further arguments of the forward function.
            relu_attributions: Set negative values of the map to zero.
            max_channels: Weigh only so many channels, those of largest norm in their image.
                None: all.
            perturbations_per_eval: Channels in one pass through the part above the layer.

        Returns:
            Map (N, 1, H, W), detached.

        Raises:
            InputError: An argument does not fit, or the score is not one value per image.
            LayerError: The layer ran not once, has no positions, is not finite, or the forward
                function does not keep examples apart.

        Example::

            >>> import torch
            >>> from torch import nn
            >>> from captum_embed.rivals import COCOA, AblationCAM
            >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> def ablation_cam(score):
            ...     return AblationCAM(score, encoder[0])
            >>> cocoa = COCOA(encoder, ablation_cam, torch.rand(5, 4), foils=torch.rand(9, 4))
            >>> cocoa.attribute(torch.rand(2, 3, 8, 8)).shape
            torch.Size([2, 1, 6, 6])
        """
        images = checked_images(inputs)
        require_positive(perturbations_per_eval=perturbations_per_eval)
        arguments = per_example(additional_forward_args, len(images))
        with torch.no_grad():
            _, executions = run_layer(
                self.forward_func, self.layer, (images,), None, arguments or None
            )
            activations = only_activation([each.tensors for each in executions], images)
            require_finite("activations", self.layer, [[activations]])
            whole = scores(self.forward_func, images, arguments)
            chosen = largest_channels(activations, max_channels)
            weights = activations.new_zeros(activations.shape[:2])
            for n, image in enumerate(images.split(1)):
                of_one = of_example(arguments, n, len(images))
                active = chosen[n][activations[n, chosen[n]].flatten(1).any(1)]
                for part in active.split(perturbations_per_eval):
                    without = activations[n].repeat(len(part), 1, 1, 1)
                    without[range(len(part)), part] = 0
                    left = run_with_replacement(
                        self.forward_func, self.layer, image, without, of_one
                    )
                    weights[n, part] = whole[n] - left.flatten()
            map_ = weighted_sum(weights, activations)
        return F.relu(map_) if relu_attributions else map_
