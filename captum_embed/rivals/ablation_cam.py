"""Ablation-CAM: channels weighed by what the score loses without them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from captum_embed.rivals.changed_images import of_example, scores
from captum_embed.rivals.channel_scores import ChannelScores
from captum_embed.rivals.layer_replacement import run_with_replacement


class AblationCAM(ChannelScores):
    r"""Ablation-CAM of a similarity, or of any other score.

    The weight of a channel is what the score :math:`s` loses when that channel is set to zero:

    .. math::
        w_c = s(A) - s(A \text{ without } A_c), \qquad \mathrm{map} = \sum_c w_c A_c

    The paper divides the weights by the score, a number per image. A similarity may be zero or
    negative, which would blow the map up or turn it round, so they are not divided here.

    *Tokens.* A channel is set to zero in the patches, and kept in the prefix tokens.

    *Cost.* The part of the network above the layer runs once per channel and image, the part
    below it once per ``perturbations_per_eval`` channels: with a layer near the end it is cheap.
    ``max_channels`` bounds it. Channels that are zero everywhere cost nothing.

    Args:
        forward_func: Returns one score per image, (N,), such as its similarity to references
            given as embeddings. It keeps the examples of a batch apart.
        layer: Layer to explain: its output is (N, C, H, W), or as the layout says, once per
            forward pass.
        device_ids: Not used: a ``DataParallel`` is explained by its ``.module``.
        layout: ``layout``, ``prefix_tokens`` and ``grid``, as in ``EmbeddingLayerGradCam``.

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

    def weights_of(
        self,
        images: Tensor,
        activations: Tensor,
        chosen: Tensor,
        arguments: tuple[Any, ...],
        at_once: int,
    ) -> Tensor:
        """What the score loses without each of the channels, (N, K)."""
        whole = scores(self.forward_func, images, arguments)
        weights = activations.new_zeros(activations.shape[:2])
        for n, image in enumerate(images.split(1)):
            active = chosen[n][activations[n, chosen[n]].flatten(1).any(1)]
            for part in active.split(at_once):
                without = activations[n].repeat(len(part), 1, 1, 1)
                without[range(len(part)), part] = 0
                left = run_with_replacement(
                    self.forward_func,
                    self.layer,
                    image,
                    without,
                    of_example(arguments, n, len(images)),
                    layout=self.layout,
                )
                weights[n, part] = whole[n] - left.flatten()
        return weights.take_along_dim(chosen, 1)
