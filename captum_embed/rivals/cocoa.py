"""COCOA: any attribution of the similarity to a corpus, minus that to a foil."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from captum.attr import Attribution
from captum.log import log_usage
from torch import Tensor, nn

from captum_embed.rivals.references import image_batches
from captum_embed.similarity_forward import SimilarityForward


class COCOA(Attribution):
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
    """

    def __init__(
        self,
        encoder: nn.Module,
        method: Callable[[nn.Module], Attribution],
        corpus: Tensor,
        foils: Tensor | None = None,
    ) -> None:
        super().__init__(SimilarityForward(encoder, corpus, foils))
        self.method = method(self.forward_func)

    @log_usage()
    def attribute(self, inputs: Tensor, **method_arguments: Any) -> Any:
        """Attributions of the contrastive corpus similarity of each image.

        Args:
            inputs: Images (N, ...).
            method_arguments: Keyword arguments of the method's own ``attribute``.

        Returns:
            What the method returns.

        Raises:
            InputError: The inputs are no images, or the encoder gives no embeddings.

        Example::

            >>> import torch
            >>> from torch import nn
            >>> from captum_embed import EmbeddingLayerGradCam
            >>> from captum_embed.rivals import COCOA
            >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> def grad_cam(score):
            ...     return EmbeddingLayerGradCam(score, encoder[0])
            >>> cocoa = COCOA(encoder, grad_cam, corpus=torch.rand(5, 4), foils=torch.rand(9, 4))
            >>> cocoa.attribute(torch.rand(2, 3, 8, 8)).shape
            torch.Size([2, 1, 6, 6])
        """
        (images,) = image_batches((inputs,), None)
        return self.method.attribute(images, **method_arguments)
