"""Label-free explanation: any attribution of the similarity of an image to itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr import Attribution
from torch import Tensor, nn

from captum_embed.rivals.of_any_method import OfAnyMethod
from captum_embed.rivals.references import Similarity, embed, encoder_of, require_similarity


class LabelFree(OfAnyMethod):
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
        super().__init__(_SelfSimilarity(encoder_of(forward_func), similarity), method)

    def own_arguments(self, images: Tensor, arguments: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """The embeddings of the images themselves, held constant."""
        with torch.no_grad():
            return (embed(self.forward_func.encoder, images, arguments),)


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
