"""Grad-CAM of the similarity to a reference, with the gradient taken before the L2 norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from captum.attr._utils.attribution import GradientAttribution
from captum.log import log_usage
from torch import Tensor, nn

from captum_embed.errors import InputError
from captum_embed.grad_cam import EmbeddingLayerGradCam
from captum_embed.rivals.activations import LayerMap
from captum_embed.rivals.references import (
    are_images,
    checked_embeddings,
    embed_unnormalized,
    encoder_of,
    image_batches,
)


class SimilarityGradCam(LayerMap, GradientAttribution):
    r"""Grad-CAM of the dot product of embeddings as they are before the L2 norm.

    The gradient of a cosine by a homogeneous network sums with the activations to zero (Euler),
    which leaves half of a Grad-CAM map negative. This variant bypasses the norm: it explains
    :math:`u(x) \cdot r`, where :math:`u` is the unnormalized embedding and :math:`r` the
    reference, held constant. Any network will do that computes :math:`u` in a module of its own.

    With global average pooling and a linear head it equals the activation decomposition with
    bias (:class:`ActivationDecomposition`).

    Args:
        forward_func: The encoder, images (N, ...) to embeddings (N, D), or a forward function
            that has one as ``encoder``.
        layer: Layer to explain: its output is (N, C, H, W), or (N, C).
        embedding_layer: Module whose output (N, D) is the unnormalized embedding, usually the
            linear head. Default: the encoder's output, which must not be normalized then.
        device_ids: Device order, needed only if the encoder wraps a ``DataParallel`` model.
        layout: ``layout``, ``prefix_tokens`` and ``grid``, as in ``EmbeddingLayerGradCam``.

    Source: Zhu, Yang, Chen, Visual Explanation for Deep Metric Learning, IEEE TIP 2021
        (arXiv 1909.12977), "Grad-CAM without normalization"; Selvaraju et al., ICCV 2017.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from captum_embed.rivals import SimilarityGradCam
        >>> class Encoder(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.features, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        ...     def forward(self, images):
        ...         embeddings = self.head(self.features(images).mean((2, 3)))
        ...         return nn.functional.normalize(embeddings, dim=1)
        >>> encoder = Encoder()
        >>> grad_cam = SimilarityGradCam(encoder, encoder.features, encoder.head)
        >>> maps = grad_cam.attribute((torch.rand(2, 3, 8, 8), torch.rand(2, 3, 10, 12)))
        >>> [tuple(one.shape) for one in maps]
        [(2, 1, 6, 6), (2, 1, 8, 10)]
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        embedding_layer: nn.Module | None = None,
        device_ids: list[int] | None = None,
        **layout: Any,
    ) -> None:
        LayerMap.__init__(self, forward_func, layer, device_ids, **layout)
        GradientAttribution.__init__(self, forward_func)
        self.encoder = encoder_of(forward_func)
        self.embedding_layer = embedding_layer

    @log_usage()
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, Tensor],
        reference: Tensor | None = None,
        additional_forward_args: Any = None,
        *,
        relu_attributions: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        """Maps of the inputs.

        Args:
            inputs: Images (N, ...), or a pair (images, images) compared row by row.
            reference: What the images are compared with: images (N or 1, ...), whose
                unnormalized embeddings are taken, or embeddings (N or 1, D), or (N or 1, M, D),
                whose M dot products are averaged, as they are. Default: each image with itself.
            additional_forward_args: Further arguments of the encoder.
            relu_attributions: Set negative values of the map to zero.

        Returns:
            Map (N, 1, H, W), or two maps for a pair, detached.

        Raises:
            InputError: An argument does not fit, or the encoder normalizes and
                ``embedding_layer`` is not given.
            LayerError: A layer never ran, or its activations are not finite.

        Example::

            >>> import torch
            >>> from torch import nn
            >>> from captum_embed.rivals import SimilarityGradCam
            >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> grad_cam = SimilarityGradCam(encoder, encoder[0])
            >>> grad_cam.attribute(torch.rand(2, 3, 8, 8), torch.rand(1, 50, 4)).shape
            torch.Size([2, 1, 6, 6])
        """
        batches = image_batches(inputs, reference)
        references: list[Tensor | None] = [reference]
        if len(batches) == 2:
            references = [self._embed(batch, additional_forward_args) for batch in batches[::-1]]
        elif reference is not None and are_images(reference, batches[0]):
            references = [self._embed(reference, additional_forward_args)]
        maps = tuple(
            self._map(images, embeddings, additional_forward_args, relu_attributions)
            for images, embeddings in zip(batches, references, strict=True)
        )
        return maps if isinstance(inputs, tuple) else maps[0]

    def _map(
        self, images: Tensor, reference: Tensor | None, arguments: Any, relu_attributions: bool
    ) -> Tensor:
        def dot_product(images: Tensor, *arguments: Any) -> Tensor:
            embeddings = self._unnormalized(images, arguments)
            others = embeddings if reference is None else reference
            return (embeddings * checked_embeddings(others, embeddings).mean(1)).sum(1)

        grad_cam = EmbeddingLayerGradCam(
            dot_product, self.layer, self.device_ids, **vars(self.layout)
        )
        return grad_cam.attribute(
            images, additional_forward_args=arguments, relu_attributions=relu_attributions
        )

    def _embed(self, images: Tensor, arguments: Any) -> Tensor:
        with torch.no_grad():
            return self._unnormalized(images, arguments)

    def _unnormalized(self, images: Tensor, arguments: Any) -> Tensor:
        embeddings = embed_unnormalized(
            self.encoder, self.embedding_layer, images, arguments, self.device_ids
        )
        if self.embedding_layer is None and _have_unit_length(embeddings.detach()):
            raise InputError(
                "the encoder's embeddings have unit length, so the gradient would go through the "
                "L2 norm that this method bypasses; pass embedding_layer=..., the module whose "
                "output is normalized"
            )
        return embeddings


def _have_unit_length(embeddings: Tensor) -> bool:
    lengths = embeddings.norm(dim=1)
    tolerance = max(1e-4, 4 * torch.finfo(lengths.dtype).eps)
    return bool(((lengths - 1).abs() <= tolerance).all())
