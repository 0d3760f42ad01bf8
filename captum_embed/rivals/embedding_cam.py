"""EmbeddingCAM: class activation maps of embedding networks, with proxies in place of classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from captum.log import log_usage
from torch import Tensor, nn

from captum_embed.errors import InputError
from captum_embed.rivals.activations import LayerMap
from captum_embed.rivals.linear_embedding import PooledNetwork, Pooling, average_shares
from captum_embed.rivals.references import checked_embeddings, encoder_of, image_batches


def class_proxies(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Normalized mean proxies: for each class the mean of its embeddings, at unit length.

    Args:
        embeddings: Of training images, (M, D).
        labels: Their classes, (M,), integers.

    Returns:
        The K classes in ascending order, (K,), and their proxies, (K, D).

    Raises:
        InputError: The shapes do not fit.

    Example::

        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
        >>> class_proxies(embeddings, torch.tensor([7, 7, 4]))
        (tensor([4, 7]), tensor([[0., 1.],
                                 [1., 0.]]))
    """
    if embeddings.dim() != 2 or labels.shape != embeddings.shape[:1] or len(labels) == 0:
        raise InputError(
            f"embeddings have shape {tuple(embeddings.shape)} and labels {tuple(labels.shape)}; "
            "expected (M, D) and (M,)"
        )
    classes, members = labels.to(embeddings.device).unique(return_inverse=True)
    sums = embeddings.new_zeros(len(classes), embeddings.shape[1])
    # The mean and the sum of a class point the same way.
    return classes, F.normalize(sums.index_add(0, members, embeddings.detach()), dim=1)


class EmbeddingCAM(LayerMap):
    r"""Class activation maps with a proxy embedding in place of a class.

    The explained value is the dot product :math:`y \cdot p` of the embedding before any L2 norm
    with a proxy :math:`p` of unit length. For networks that end in global pooling and a linear
    head :math:`y = W\,\mathrm{pool}(A) + b`, its Grad-CAM needs no gradient: the proxy is
    projected back through the head,

    .. math::
        w = W^\top p, \qquad \mathrm{map} = \frac{1}{HW} \sum_c w_c A_c

    With a one-hot proxy this is the class activation map of a classifier. The scale is that of
    Grad-CAM; for average pooling the map then sums to :math:`(y - b) \cdot p`.

    For other networks, explain the same value by gradients with :class:`SimilarityGradCam`.

    Args:
        forward_func: The encoder, images (N, ...) to embeddings (N, D), or a forward function
            that has one as ``encoder``.
        layer: The last layer before global pooling: its output is (N, C, H, W).
        head: All that follows the pooling but a final L2 norm: ``nn.Linear``,
            ``nn.BatchNorm1d``, ``nn.Sequential`` of these. None: there is nothing.
        pooling: ``"average"`` or ``"max"``.
        device_ids: Device order, needed only if the encoder wraps a ``DataParallel`` model.
        layout: ``layout``, ``prefix_tokens`` and ``grid``, as in ``EmbeddingLayerGradCam``.

    Raises:
        InputError: Unknown pooling.

    Source: Bachhawat, Generalizing GradCAM for Embedding Networks, 2024 (arXiv 2402.00909):
        the dot product (equation 9), normalized mean proxy (11, 12) and single-point proxy;
        Grad-CAM's ReLU on the map is ``relu_attributions=True``. Zhou et al., Learning Deep
        Features for Discriminative Localization, CVPR 2016.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from captum_embed.rivals import EmbeddingCAM
        >>> features, head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        >>> encoder = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
        >>> cam = EmbeddingCAM(encoder, features, head)
        >>> images, of_the_class = torch.rand(2, 3, 8, 8), torch.rand(5, 3, 8, 8)
        >>> cam.attribute(images, encoder(of_the_class)[None]).shape  # mean proxy of 5 images
        torch.Size([2, 1, 6, 6])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        head: nn.Module | None = None,
        pooling: Pooling = "average",
        device_ids: list[int] | None = None,
        **layout: Any,
    ) -> None:
        super().__init__(forward_func, layer, device_ids, **layout)
        self.network = PooledNetwork(
            encoder_of(forward_func), layer, head, pooling, device_ids, self.layout
        )

    @log_usage()
    def attribute(
        self,
        inputs: Tensor,
        proxy: Tensor | None = None,
        additional_forward_args: Any = None,
        *,
        relu_attributions: bool = False,
    ) -> Tensor:
        """Maps of the inputs.

        Args:
            inputs: Images (N, ...).
            proxy: Embeddings of images of the class: (N or 1, D), a single-point proxy or a
                ready one (from :func:`class_proxies`, or learned by a proxy loss), or
                (N or 1, M, D), whose normalized mean is the proxy. They are scaled to unit
                length. Default: the image's own embedding as a single-point proxy.
            additional_forward_args: Further arguments of the encoder.
            relu_attributions: Set negative values of the map to zero.

        Returns:
            Map (N, 1, H, W), detached.

        Raises:
            InputError: An argument does not fit.
            LayerError: The embedding is not a linear head of the pooled layer.

        Example::

            >>> import torch
            >>> from torch import nn
            >>> from captum_embed.rivals import EmbeddingCAM
            >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> EmbeddingCAM(encoder, encoder[0]).attribute(torch.rand(2, 3, 8, 8)).shape
            torch.Size([2, 1, 6, 6])
        """
        (images,) = image_batches((inputs,), None)
        if proxy is not None and (not isinstance(proxy, Tensor) or proxy.dim() not in (2, 3)):
            given = tuple(proxy.shape) if isinstance(proxy, Tensor) else type(proxy).__name__
            raise InputError(
                f"the proxy is {given}; expected embeddings (N, D), or (N, M, D) for mean proxies"
            )
        embedded = self.network.embed(images, additional_forward_args)
        with torch.no_grad():
            own = embedded.embeddings
            points = own[:, None] if proxy is None else checked_embeddings(proxy, own, "the proxy")
            weights = F.normalize(points.mean(1), dim=1) @ embedded.weight
            map_ = (weights[..., None, None] * average_shares(embedded.activations)).sum(1, True)
        return F.relu(map_) if relu_attributions else map_
