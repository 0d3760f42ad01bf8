"""Eigen-CAM: the activations along their first principal direction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from captum_embed.rivals.activations import ActivationMap


class EigenCAM(ActivationMap):
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
        layer: Layer to explain: its output is (N, C, H, W), or as the layout says.
        device_ids: Device order, needed only if ``forward_func`` wraps a ``DataParallel`` model.
        center: Subtract each channel's mean over the positions of its image.
        layout: ``layout``, ``prefix_tokens`` and ``grid``, as in ``EmbeddingLayerGradCam``.

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
        **layout: Any,
    ) -> None:
        super().__init__(forward_func, layer, device_ids, **layout)
        self.center = center

    def map_of(self, activations: Tensor) -> Tensor:
        """Projection of (N, C, ...) on its first right singular vector, (N, 1, ...)."""
        # Half precision has no singular value decomposition.
        wide = activations.double() if activations.dtype == torch.float64 else activations.float()
        features = wide.flatten(2).transpose(1, 2)
        centred = features - features.mean(1, keepdim=True) if self.center else features
        _, _, rows = torch.linalg.svd(centred, full_matrices=False)
        direction = rows[:, 0, :, None]
        sums = (features.sum(1, keepdim=True) @ direction).sign()
        projected = (centred @ direction) * torch.where(sums < 0, -1, 1)
        return projected.transpose(1, 2).reshape(len(wide), 1, *wide.shape[2:]).to(activations)
