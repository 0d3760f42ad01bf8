"""Label-free explanation: any attribution of the similarity of an image to itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from captum._utils.common import _format_additional_forward_args
from captum.attr import Attribution
from captum.log import log_usage
from torch import Tensor, nn

from captum_embed.rivals.references import (
    Similarity,
    embed,
    encoder_of,
    image_batches,
    require_similarity,
)


class LabelFree(Attribution):
    r"""What makes the embedding of an image what it is, by an attribution method of your choice.

    An embedding has no label to explain. In its stead comes the image's own embedding
    :math:`f(x_0)`, held constant: the method explains :math:`g(x) = f(x_0) \cdot f(x)` at
    :math:`x = x_0`.

    Args:
        forward_func: The encoder, images (N, ...) to embeddings (N, D), or a forward function
            that has one as ``encoder``.
        method: Makes an attribution of a forward function: a class of Captum, or of this
            package, or a function that builds one (as needed for layers).
        similarity: ``"dot"``, the paper's, or ``"cosine"``.

    Raises:
        InputError: Unknown similarity.

    Source: Crabbé, van der Schaar, Label-Free Explainability for Unsupervised Models, ICML 2022
        (arXiv 2203.01928), section 2.1.

    Example::

        >>> import torch
        >>> from captum.attr import IntegratedGradients
        >>> from torch import nn
        >>> from captum_embed import EmbeddingLayerGradCam
        >>> from captum_embed.rivals import LabelFree
        >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> images = torch.rand(2, 3, 8, 8)
        >>> LabelFree(encoder, IntegratedGradients).attribute(images, n_steps=5).shape
        torch.Size([2, 3, 8, 8])
        >>> grad_cam = LabelFree(encoder, lambda score: EmbeddingLayerGradCam(score, encoder[0]))
        >>> grad_cam.attribute(images).shape
        torch.Size([2, 1, 6, 6])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        method: Callable[[nn.Module], Attribution],
        *,
        similarity: Similarity = "dot",
    ) -> None:
        super().__init__(forward_func)
        self.method = method
        self.score = _SelfSimilarity(encoder_of(forward_func), similarity)

    @log_usage()
    def attribute(
        self, inputs: Tensor, additional_forward_args: Any = None, **method_arguments: Any
    ) -> Any:
        """Attributions of the similarity of each image to itself.

        Args:
            inputs: Images (N, ...).
            additional_forward_args: Further arguments of the encoder.
            method_arguments: Keyword arguments of the method's own ``attribute``.

        Returns:
            What the method returns.

        Raises:
            InputError: The inputs are no images, or the encoder gives no embeddings.

        Example::

            >>> import torch
            >>> from torch import nn
            >>> from captum_embed.rivals import RELAX, LabelFree
            >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> relax = LabelFree(encoder, RELAX, similarity="cosine")  # RELAX as published
            >>> relax.attribute(torch.rand(2, 3, 8, 8), num_masks=20).shape
            torch.Size([2, 1, 8, 8])
        """
        (images,) = image_batches((inputs,), None)
        arguments = _format_additional_forward_args(additional_forward_args) or ()
        with torch.no_grad():
            own = embed(self.score.encoder, images, arguments)
        return self.method(self.score).attribute(
            images, additional_forward_args=(own, *arguments), **method_arguments
        )


class _SelfSimilarity(nn.Module):
    """Similarity to embeddings that are passed along, so that Captum repeats them as needed."""

    def __init__(self, encoder: Callable[..., Any], similarity: Similarity) -> None:
        super().__init__()
        require_similarity(similarity)
        self.encoder = encoder
        self.similarity = similarity

    def forward(self, images: Tensor, own: Tensor, *arguments: Any) -> Tensor:
        embeddings = embed(self.encoder, images, arguments)
        if self.similarity == "cosine":
            return F.cosine_similarity(embeddings, own)
        return (embeddings * own).sum(1)
