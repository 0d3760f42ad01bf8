"""SBSM: which windows lower the similarity when they are hidden."""

from __future__ import annotations

from typing import Any

import torch
from captum._utils.common import _run_forward
from captum.attr import Attribution, Occlusion
from captum.log import log_usage
from torch import Tensor

from captum_embed.errors import InputError
from captum_embed.rivals.changed_images import checked_call, scores


class SBSM(Attribution):
    r"""Similarity-based saliency map: occlusion that counts losses of similarity only.

    A window slides over the image and hides what is under it. With the score :math:`s` of the
    image and :math:`s_w` of the image without window :math:`w`, a pixel gets the mean of
    :math:`\max(0, s - s_w)` over the windows that cover it. Without the maximum it is
    :class:`captum.attr.Occlusion`.

    *Score.* The paper's is the Euclidean distance to a reference embedding, taken negative here:
    ``PairForward(encoder, "similarity", distance="euclidean")``. Any other score is explained in
    the same way, so as to compare methods on one similarity.

    *Cost.* One forward pass per window and image, (H / stride) (W / stride) of them, and one more
    per image; no gradients.

    Args:
        forward_func: Returns one score per image, (N,), the higher the more alike.

    Source: Dong, Hunter, Collins, Nelson, Explainability for Content-Based Image Retrieval, CVPR
        Workshops 2019; window, stride and average as in ``SlidingWindow`` and
        ``SimilarityScoring`` of xaitk-saliency, which places the first window beyond the border,
        so that windows are centred, and divides each map by its maximum.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from captum_embed import PairForward
        >>> from captum_embed.rivals import SBSM
        >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> sbsm = SBSM(PairForward(encoder, "similarity", distance="euclidean"))
        >>> images, references = torch.rand(2, 3, 12, 16), torch.rand(2, 4)
        >>> sbsm.attribute(images, references, window=(4, 4), stride=(2, 2)).shape
        torch.Size([2, 1, 12, 16])
    """

    @log_usage()
    def attribute(
        self,
        inputs: Tensor,
        additional_forward_args: Any = None,
        *,
        window: tuple[int, int] = (50, 50),
        stride: tuple[int, int] = (20, 20),
        baselines: Any = 0,
        perturbations_per_eval: int = 16,
    ) -> Tensor:
        """Mean loss of the score over the windows that cover each pixel.

        Args:
            inputs: Images (N, C, H, W).
            additional_forward_args: Further arguments of the forward function.
            window: Height and width of the window, in pixels.
            stride: Step of the window, down and to the right, in pixels.
            baselines: What hides the image under the window, as in :class:`captum.attr.Occlusion`.
                Zero is the mean colour, where images are normalized.
            perturbations_per_eval: Windows in one forward pass, of N times as many images.

        Returns:
            Map (N, 1, H, W), not negative, detached.

        Raises:
            InputError: An argument does not fit, or the score is not one value per image.

        Example::

            >>> import torch
            >>> from captum_embed.rivals import SBSM
            >>> first_row = lambda images: images[:, :, 0].mean((1, 2))
            >>> sbsm = SBSM(first_row)
            >>> sbsm.attribute(torch.ones(1, 1, 2, 2), window=(1, 1), stride=(1, 1))
            tensor([[[[0.5000, 0.5000],
                      [0.0000, 0.0000]]]])
        """
        images, arguments = checked_call(
            inputs,
            additional_forward_args,
            perturbations_per_eval=perturbations_per_eval,
            window=min(window),
            stride=min(stride),
        )
        if any(side > most for side, most in zip(window, images.shape[2:], strict=True)) or any(
            step > side for step, side in zip(stride, window, strict=True)
        ):
            raise InputError(
                f"window is {tuple(window)} and stride {tuple(stride)} for images of "
                f"{tuple(images.shape[2:])}; expected a window within the image, and a stride "
                "within the window, so that every pixel is covered"
            )
        whole = scores(self.forward_func, images, arguments)

        def at_most_whole(images: Tensor, whole: Tensor, *arguments: Any) -> Tensor:
            measured = _run_forward(self.forward_func, images, None, arguments or None)
            return torch.minimum(measured.reshape(whole.shape), whole)

        channels = images.shape[1]
        losses = Occlusion(at_most_whole).attribute(
            images,
            sliding_window_shapes=(channels, *window),
            strides=(channels, *stride),
            baselines=baselines,
            additional_forward_args=(whole, *arguments),
            perturbations_per_eval=perturbations_per_eval,
        )
        # The window spans all channels, which therefore have the same map.
        return losses[:, :1].detach().to(images)
