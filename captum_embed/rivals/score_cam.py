"""Score-CAM: channels weighed by the score of the image seen through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_embed.rivals.changed_images import masked_scores, scores
from captum_embed.rivals.channel_scores import ChannelScores, picked


class ScoreCAM(ChannelScores):
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
        layer: Layer to explain: its output is (N, C, H, W), or as the layout says, once per
            forward pass.
        device_ids: Device order, needed only if ``forward_func`` wraps a ``DataParallel`` model.
        softmax: Weights by a softmax over the channels, as in the paper.
        layout: ``layout``, ``prefix_tokens`` and ``grid``, as in ``EmbeddingLayerGradCam``.

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
        **layout: Any,
    ) -> None:
        super().__init__(forward_func, layer, device_ids, **layout)
        self.softmax = softmax

    def weights_of(
        self,
        images: Tensor,
        activations: Tensor,
        chosen: Tensor,
        arguments: tuple[Any, ...],
        at_once: int,
    ) -> Tensor:
        """The score of the image seen through each of the channels, (N, K)."""
        seen_through = torch.cat(
            [
                masked_scores(self.forward_func, images, masks, arguments)
                for masks in _masks(picked(activations, chosen), images, at_once)
            ],
            1,
        )
        if self.softmax:
            return seen_through.softmax(1)
        black = scores(self.forward_func, torch.zeros_like(images), arguments)
        return seen_through - black[:, None]


def _masks(channels: Tensor, images: Tensor, at_once: int) -> Iterator[Tensor]:
    """Channels as masks in [0, 1], (N, at most ``at_once``, height, width) of the images."""
    for part in channels.split(at_once, 1):
        enlarged = F.interpolate(part, images.shape[2:], mode="bilinear", align_corners=False)
        lowest, highest = enlarged.amin((2, 3), True), enlarged.amax((2, 3), True)
        # A channel that is the same everywhere masks everything.
        yield (enlarged - lowest) / (highest - lowest).clamp(min=torch.finfo(enlarged.dtype).tiny)
