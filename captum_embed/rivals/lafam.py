"""LaFAM: the mean of a layer's channels."""

from __future__ import annotations

from torch import Tensor

from captum_embed.rivals.activations import ActivationMap


class LaFAM(ActivationMap):
    r"""Label-free activation map: the mean of the activations over the channels.

    .. math::
        \mathrm{map}[n, h, w] = \frac{1}{C} \sum_c A[n, c, h, w]

    It is Grad-CAM with the same weight for every channel. It knows no reference, so it cannot
    say what makes two images alike: beside a method with weights it is the control that shows
    what those weights are worth.

    Where the layer runs k times, or once on k times the batch, the result is a tuple of k maps
    in the order of execution.

    Args:
        forward_func: Any callable that runs the layer, as the encoder itself.
        layer: Layer to explain: its output is (N, C, H, W), or as the layout says; the paper's is
            the last one before global pooling.
        device_ids: Device order, needed only if ``forward_func`` wraps a ``DataParallel`` model.
        layout: ``layout``, ``prefix_tokens`` and ``grid``, as in ``EmbeddingLayerGradCam``.

    Source: Karjauv, Albayrak, LaFAM: Unsupervised Feature Attribution with Label-free Activation
        Maps, 2024 (arXiv 2407.06059), which also scales each map to [0, 1] for display.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from captum_embed.rivals import LaFAM
        >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        >>> LaFAM(encoder, encoder[1]).attribute(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 1, 6, 6])
    """

    def map_of(self, activations: Tensor) -> Tensor:
        """Mean over the channels of (N, C, ...), as (N, 1, ...)."""
        return activations.mean(1, keepdim=True)
