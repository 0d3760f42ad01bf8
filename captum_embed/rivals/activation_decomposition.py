"""Activation decomposition: which positions of two images make up their similarity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from captum.log import log_usage
from torch import Tensor, nn

from captum_embed.errors import InputError
from captum_embed.rivals.activations import LayerMap
from captum_embed.rivals.linear_embedding import PooledNetwork, Pooling, PositionedEmbedding
from captum_embed.rivals.references import (
    Similarity,
    are_images,
    checked_embeddings,
    encoder_of,
    image_batches,
    require_similarity,
)


@dataclass(frozen=True)
class SimilarityTerms:
    """The similarity of two images, term by term: all of them sum to it.

    Args:
        pairs: What each pair of positions contributes, (N, H, W, H', W').
        inputs_bias: Each position of the inputs with the head's bias, (N, H, W).
        reference_bias: Each position of the reference with the head's bias, (N, H', W').
        bias: The bias with itself, which belongs to no position, (N,).
        similarity: The similarity itself, computed from the embeddings, (N,).
    """

    pairs: Tensor
    inputs_bias: Tensor
    reference_bias: Tensor
    bias: Tensor
    similarity: Tensor


class ActivationDecomposition(LayerMap):
    r"""The similarity of two embeddings, decomposed exactly over the positions of both images.

    For networks that end in global pooling and a linear head, the embedding is a sum over
    positions, :math:`e = \sum_p u_p + b`. With average pooling :math:`u_p = W A_p / HW`; with
    max pooling each channel counts only at its maximum (ties share it). So is the similarity:

    .. math::
        e \cdot e' = \sum_{p, q} u_p \cdot u'_q + \sum_p u_p \cdot b + \sum_q b \cdot u'_q
        + b \cdot b

    The *overall map* of an image sums over the positions of the other one; the *point-to-point
    map* keeps one position. The cosine divides all terms by :math:`|e| |e'|`, a number per pair,
    so a final L2 norm is no obstacle. No gradients are taken.

    Where pooling is the average, the overall map with bias equals Grad-CAM of the dot product
    (:class:`SimilarityGradCam`); with max pooling it does not.

    Args:
        forward_func: The encoder, images (N, ...) to embeddings (N, D), or a forward function
            that has one as ``encoder``.
        layer: The last layer before global pooling: its output is (N, C, H, W).
        head: All that follows the pooling but a final L2 norm: ``nn.Linear``,
            ``nn.BatchNorm1d``, ``nn.Sequential`` of these. None: there is nothing.
        pooling: ``"average"`` or ``"max"``, over all positions, at any image size.
        device_ids: Device order, needed only if the encoder wraps a ``DataParallel`` model.
        similarity: ``"cosine"``, or ``"dot"`` product of the embeddings before the L2 norm.
        layout: ``layout``, ``prefix_tokens`` and ``grid``, as in ``EmbeddingLayerGradCam``.

    Raises:
        InputError: Unknown pooling or similarity.

    Source: Zhu, Yang, Chen, Visual Explanation for Deep Metric Learning, IEEE TIP 2021
        (arXiv 1909.12977): "Decomposition" is the default, "Decomposition+Bias" is
        ``include_bias=True``. Their published code (github.com/Jeff-Zilence/
        Explain_Metric_Learning, ``Overall_map``) also sets negative pairs to zero before summing
        them, ``relu_pairs=True``, and counts maxima that tie in full, each.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from captum_embed.rivals import ActivationDecomposition
        >>> features, head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2, bias=False)
        >>> encoder = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
        >>> decomposition = ActivationDecomposition(encoder, features, head)
        >>> first, second = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 10, 12)
        >>> maps = decomposition.attribute((first, second))
        >>> [tuple(one.shape) for one in maps]
        [(2, 1, 6, 6), (2, 1, 8, 10)]
        >>> cosine = nn.functional.cosine_similarity(encoder(first), encoder(second))
        >>> torch.allclose(maps[0].sum((1, 2, 3)), cosine, atol=1e-5)
        True
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        head: nn.Module | None = None,
        pooling: Pooling = "average",
        device_ids: list[int] | None = None,
        *,
        similarity: Similarity = "cosine",
        **layout: Any,
    ) -> None:
        super().__init__(forward_func, layer, device_ids, **layout)
        require_similarity(similarity)
        self.similarity = similarity
        self.network = PooledNetwork(
            encoder_of(forward_func), layer, head, pooling, device_ids, self.layout
        )

    @log_usage()
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, Tensor],
        reference: Tensor | None = None,
        additional_forward_args: Any = None,
        *,
        include_bias: bool = False,
        relu_pairs: bool = False,
        relu_attributions: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""Overall maps: what each position contributes to the similarity.

        Args:
            inputs: Images (N, ...), or a pair (images, images) compared row by row.
            reference: What the images are compared with: images (N or 1, ...) of any size, or
                embeddings (N or 1, D), or (N or 1, M, D), whose M similarities are averaged.
                Default: each image with itself.
            additional_forward_args: Further arguments of the encoder.
            include_bias: Add the terms :math:`u_p \cdot b`, which the bias of the reference
                contributes. A reference embedding cannot be split, and always counts whole.
            relu_pairs: Set negative contributions of pairs to zero before summing over the
                positions of the reference; it must be images then.
            relu_attributions: Set negative values of the map to zero.

        Returns:
            Map (N, 1, H, W), or two maps for a pair, detached. Without the ReLUs the sum of a
            map is the similarity, less the head's bias terms that are not in it.

        Raises:
            InputError: An argument does not fit.
            LayerError: The decomposition does not hold for this network.

        Example::

            >>> import torch
            >>> from torch import nn
            >>> from captum_embed.rivals import ActivationDecomposition
            >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten())
            >>> decomposition = ActivationDecomposition(encoder, encoder[0], pooling="max")
            >>> decomposition.attribute(torch.rand(2, 3, 8, 8), torch.rand(1, 5, 4)).shape
            torch.Size([2, 1, 6, 6])
        """
        batches = image_batches(inputs, reference)
        if relu_pairs and include_bias:
            raise InputError(
                "relu_pairs sums pairs of positions, and the bias is in none of them; pass either "
                "relu_pairs or include_bias"
            )
        first, other = self._both(batches, reference, additional_forward_args)
        with torch.no_grad():
            maps = [self._overall(first, other, include_bias, relu_pairs)]
            if len(batches) == 2 and isinstance(other, PositionedEmbedding):
                maps.append(self._overall(other, first, include_bias, relu_pairs))
        results = tuple(F.relu(one) if relu_attributions else one for one in maps)
        return results if isinstance(inputs, tuple) else results[0]

    def point_map(
        self,
        inputs: Tensor,
        reference: Tensor | None,
        position: tuple[float, float],
        additional_forward_args: Any = None,
        *,
        relu_attributions: bool = False,
    ) -> Tensor:
        """Point-to-point map: where in the reference one position of the inputs finds its match.

        Args:
            inputs: Images (N, C, height, width).
            reference: Images (N or 1, C, height', width'). None: the inputs themselves.
            position: (row, column) in the inputs, in pixels, fractions allowed. Between the
                centres of the layer's positions it is interpolated bilinearly.
            additional_forward_args: Further arguments of the encoder.
            relu_attributions: Set negative contributions of pairs to zero before interpolating
                between positions, as the published code (``Point_Specific``) does.

        Returns:
            Map over the reference (N, 1, H', W'), detached. At the centre of a position of the
            layer it is that position's row of :attr:`SimilarityTerms.pairs`.

        Raises:
            InputError: The position is outside the image, or the reference is not images.
            LayerError: The decomposition does not hold for this network.

        Example::

            >>> import torch
            >>> from torch import nn
            >>> from captum_embed.rivals import ActivationDecomposition
            >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> decomposition = ActivationDecomposition(encoder, encoder[0])
            >>> image, other = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 6, 9)
            >>> decomposition.point_map(image, other, position=(2, 5)).shape
            torch.Size([1, 1, 4, 7])
        """
        batches = image_batches(inputs, None)
        if len(batches) != 1 or inputs.dim() != 4:
            raise InputError("point_map needs one batch of images (N, C, height, width) as inputs")
        size = inputs.shape[2:]
        if len(position) != 2 or not all(
            0 <= at <= side - 1 for at, side in zip(position, size, strict=True)
        ):
            raise InputError(
                f"position is {tuple(position)}; expected (row, column) inside images of "
                f"{size[0]} rows and {size[1]} columns, counted from 0"
            )
        first, other = self._both(batches, reference, additional_forward_args)
        second = _with_positions(other, "a point-to-point map")
        with torch.no_grad():
            row, column = ((2 * at + 1) / side - 1 for at, side in zip(position, size, strict=True))
            pairs = self._pairs(first, second)
            # Before the interpolation, as the published code does.
            rows = (F.relu(pairs) if relu_attributions else pairs).flatten(3).movedim(3, 1)
            # grid_sample counts columns first, from -1 to 1 between the outer edges.
            at = rows.new_tensor([[[[column, row]]]]).expand(len(rows), 1, 1, 2)
            there = F.grid_sample(
                rows, at, mode="bilinear", padding_mode="border", align_corners=False
            )
            return there.reshape(len(rows), 1, *pairs.shape[3:])

    def decompose(
        self,
        inputs: Tensor,
        reference: Tensor | None = None,
        additional_forward_args: Any = None,
    ) -> SimilarityTerms:
        """All terms of the similarity of two images, which sum to it.

        Args:
            inputs: Images (N, ...).
            reference: Images (N or 1, ...), of any size. Default: the inputs themselves.
            additional_forward_args: Further arguments of the encoder.

        Returns:
            The terms, the largest of which holds a value for each pair of positions.

        Raises:
            InputError: The reference is not images.
            LayerError: The decomposition does not hold for this network.

        Example::

            >>> import torch
            >>> from torch import nn
            >>> from captum_embed.rivals import ActivationDecomposition
            >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> decomposition = ActivationDecomposition(encoder, encoder[0])
            >>> terms = decomposition.decompose(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 6, 9))
            >>> terms.pairs.shape
            torch.Size([1, 6, 6, 4, 7])
        """
        batches = image_batches(inputs, None)
        if len(batches) != 1:
            raise InputError("decompose takes one batch of images as inputs, and a reference")
        first, other = self._both(batches, reference, additional_forward_args)
        second = _with_positions(other, "the terms of the similarity")
        with torch.no_grad():
            scale = self._scale(first, second)
            bias = (first.bias @ first.bias) * scale[:, 0]
            return SimilarityTerms(
                pairs=self._pairs(first, second),
                inputs_bias=first.along(first.bias * scale)[:, 0],
                reference_bias=second.along(second.bias * scale)[:, 0],
                bias=bias,
                similarity=(first.embeddings * second.embeddings).sum(1) * scale[:, 0],
            )

    def _both(
        self, batches: tuple[Tensor, ...], reference: Tensor | None, arguments: Any
    ) -> tuple[PositionedEmbedding, PositionedEmbedding | Tensor]:
        """What is compared, as positions; a reference that is no image as (N or 1, M, D)."""
        images = batches[1] if len(batches) == 2 else reference
        is_image = images is not None and are_images(images, batches[0])
        first = self.network.embed(batches[0], arguments)
        if images is None:
            return first, first
        if is_image:
            return first, self.network.embed(images, arguments)
        return first, checked_embeddings(images, first.embeddings)

    def _overall(
        self,
        first: PositionedEmbedding,
        other: PositionedEmbedding | Tensor,
        include_bias: bool,
        relu_pairs: bool,
    ) -> Tensor:
        if relu_pairs:
            pairs = self._pairs(first, _with_positions(other, "relu_pairs"))
            return F.relu(pairs).sum((3, 4))[:, None]
        if isinstance(other, PositionedEmbedding):
            total = other.embeddings if include_bias else other.without_bias
            return first.along(total * self._scale(first, other))
        if self.similarity == "dot":
            return first.along(other.mean(1))
        lengths = _length(first.embeddings)
        return first.along(F.normalize(other, dim=2).mean(1) / lengths)

    def _pairs(self, first: PositionedEmbedding, second: PositionedEmbedding) -> Tensor:
        pairs = torch.einsum("ndhw,ndxy->nhwxy", first.vectors, second.vectors)
        return pairs * self._scale(first, second)[..., None, None, None]

    def _scale(self, first: PositionedEmbedding, second: PositionedEmbedding) -> Tensor:
        """What the dot product is multiplied by, (N, 1)."""
        lengths = _length(first.embeddings) * _length(second.embeddings)
        return torch.ones_like(lengths) if self.similarity == "dot" else 1 / lengths


def _length(embeddings: Tensor) -> Tensor:
    return embeddings.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _with_positions(other: PositionedEmbedding | Tensor, what: str) -> PositionedEmbedding:
    if isinstance(other, PositionedEmbedding):
        return other
    raise InputError(
        f"{what} needs the positions of the reference, which its embedding does not have; pass "
        "images"
    )
