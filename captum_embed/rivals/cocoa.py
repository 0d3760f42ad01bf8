"""COCOA: any attribution of the similarity to a corpus, minus that to a foil."""

from __future__ import annotations

from collections.abc import Callable

from captum.attr import Attribution
from torch import Tensor, nn

from captum_embed.metric_forwards import SimilarityForward
from captum_embed.rivals.of_any_method import OfAnyMethod


class COCOA(OfAnyMethod):
    r"""Contrastive corpus attribution: what makes an image more like these than like those.

    The method of your choice explains the mean cosine similarity :math:`s` to the embeddings
    :math:`c` of a corpus, minus that to the embeddings :math:`v` of a foil:

    .. math::
        \frac{1}{|C|} \sum_{c \in C} s\big(f(x), c\big) -
        \frac{1}{|V|} \sum_{v \in V} s\big(f(x), v\big)

    Args:
        encoder: Maps images (N, ...) to embeddings (N, D).
        method: Makes an attribution of a forward function: a class of Captum, or of this
            package, or a function that builds one (as needed for layers).
        corpus: What is compared with: embeddings (R, D), or images (R, ...), which are embedded
            here, once.
        foils: What is contrasted with, in the same way. None: nothing.

    Raises:
        InputError: Corpus or foils are neither embeddings nor images.

    Source: Lin, Chen, Kim, Lee, Contrastive Corpus Attribution for Explaining Representations,
        ICLR 2023 (arXiv 2210.00107), section 3.

    Example::

        >>> import torch
        >>> from captum.attr import IntegratedGradients
        >>> from torch import nn
        >>> from captum_embed.rivals import COCOA
        >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> corpus, foils = torch.rand(5, 3, 8, 8), torch.rand(50, 4)
        >>> cocoa = COCOA(encoder, IntegratedGradients, corpus, foils)
        >>> cocoa.attribute(torch.rand(2, 3, 8, 8), n_steps=5).shape
        torch.Size([2, 3, 8, 8])
        >>> from captum_embed import EmbeddingLayerGradCam
        >>> def grad_cam(score):
        ...     return EmbeddingLayerGradCam(score, encoder[0])
        >>> COCOA(encoder, grad_cam, corpus, foils).attribute(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 1, 6, 6])
    """

    def __init__(
        self,
        encoder: nn.Module,
        method: Callable[[nn.Module], Attribution],
        corpus: Tensor,
        foils: Tensor | None = None,
    ) -> None:
        super().__init__(SimilarityForward(encoder, corpus, foils), method)
