"""Score-CAM: channels weighed by the score of the image seen through them."""

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
    masked_scores,
    per_example,
    require_positive,
    scores,
)


class ScoreCAM(LayerAttribution):
    r"""Score-CAM of a similarity, or of any other score.

    Each channel, enlarged to the image and scaled to [0, 1], masks the image. The score of what
    is left, over that of a black image, is the channel's weight, without any gradient:

    .. math::
        w_c = s(x \odot M_c) - s(0), \qquad \mathrm{map} = \sum_c \mathrm{softmax}(w)_c A_c

    A similarity lies in [-1, 1], so that the softmax over hundreds of channels leaves weights
    that hardly differ, and the map is nearly :class:`LaFAM`. ``softmax=False`` takes
    :math:`w_c` as it is.

    *Cost.* One forward pass per channel and image. ``max_channels`` bounds it: only the channels
    of largest norm are weighed, and the others left out of the map.

    Args:
        forward_func: Returns one score per image, (N,), such as its similarity to references.
        layer: Layer to explain: its output is (N, C, H, W), once per forward pass.
        device_ids: Device order, needed only if ``forward_func`` wraps a ``DataParallel`` model.
        softmax: Weights by a softmax over the channels, as in the paper.

    Source: Wang et al., Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural
        Networks, CVPR Workshops 2020 (arXiv 1910.01279), algorithm 1; its ReLU on the map is
        ``relu_attributions=True``.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from captum_embed import PairForward
        >>> from captum_embed.rivals import ScoreCAM
        >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> score = PairForward(encoder, "similarity", distance="cosine")
        >>> score_cam = ScoreCAM(score, encoder[0], softmax=False)
        >>> score_cam.attribute(torch.rand(2, 3, 8, 8), torch.rand(2, 4)).shape
        torch.Size([2, 1, 6, 6])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        device_ids: list[int] | None = None,
        *,
        softmax: bool = True,
    ) -> None:
        super().__init__(forward_func, layer, device_ids)
        self.softmax = softmax

    @log_usage()
    def attribute(
        self,
        inputs: Tensor,
        additional_forward_args: Any = None,
        *,
        relu_attributions: bool = False,
        max_channels: int | None = None,
        perturbations_per_eval: int = 16,
    ) -> Tensor:
        """Maps of the inputs.

        Args:
            inputs: Images (N, C, H, W).
            additional_forward_args: Further arguments of the forward function.
            relu_attributions: Set negative values of the map to zero.
            max_channels: Weigh only so many channels, those of largest norm in their image.
                None: all.
            perturbations_per_eval: Channels in one forward pass, of N times as many images.

        Returns:
            Map (N, 1, H, W), detached.

        Raises:
            InputError: An argument does not fit, or the score is not one value per image.
            LayerError: The layer ran not once, has no positions, or is not finite.

        Example::

            >>> import torch
            >>> from torch import nn
            >>> from captum_embed.rivals import LabelFree, ScoreCAM
            >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> label_free = LabelFree(encoder, lambda score: ScoreCAM(score, encoder[0]))
            >>> label_free.attribute(torch.rand(2, 3, 8, 8), max_channels=2).shape
            torch.Size([2, 1, 6, 6])
        """
        images = checked_images(inputs)
        require_positive(perturbations_per_eval=perturbations_per_eval)
        arguments = per_example(additional_forward_args, len(images))
        with torch.no_grad():
            _, executions = run_layer(
                self.forward_func,
                self.layer,
                (images,),
                None,
                arguments or None,
                device_ids=self.device_ids,
            )
            activations = only_activation([each.tensors for each in executions], images)
            require_finite("activations", self.layer, [[activations]])
            chosen = largest_channels(activations, max_channels)
            seen_through = torch.cat(
                [
                    masked_scores(self.forward_func, images, masks, arguments)
                    for masks in _masks(activations, chosen, images, perturbations_per_eval)
                ],
                1,
            )
            if self.softmax:
                weights = seen_through.softmax(1)
            else:
                black = scores(self.forward_func, torch.zeros_like(images), arguments)
                weights = seen_through - black[:, None]
            map_ = weighted_sum(weights.to(activations), _picked(activations, chosen))
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


def _picked(activations: Tensor, chosen: Tensor) -> Tensor:
    return activations.take_along_dim(chosen[..., None, None], 1)


def _masks(activations: Tensor, chosen: Tensor, images: Tensor, at_once: int) -> Any:
    """Channels as masks in [0, 1], (N, at most ``at_once``, height, width) of the images."""
    for part in chosen.split(at_once, 1):
        enlarged = F.interpolate(
            _picked(activations, part), images.shape[2:], mode="bilinear", align_corners=False
        )
        lowest, highest = enlarged.amin((2, 3), True), enlarged.amax((2, 3), True)
        # A channel that is the same everywhere masks everything.
        yield (enlarged - lowest) / (highest - lowest).clamp(min=torch.finfo(enlarged.dtype).tiny)
