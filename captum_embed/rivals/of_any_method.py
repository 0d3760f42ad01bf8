"""Scores of embeddings, explained by an attribution method of your choice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from captum._utils.common import _format_additional_forward_args
from captum.attr import Attribution
from captum.log import log_usage
from torch import Tensor, nn

from captum_embed.rivals.references import image_batches


class OfAnyMethod(Attribution):
    """A score, explained by an attribution method of your choice.

    Args:
        score: Returns one value per image.
        method: Makes an attribution of it: a class of Captum, or of this package, or a function
            that builds one (as needed for layers).
    """

    def __init__(self, score: nn.Module, method: Callable[[nn.Module], Attribution]) -> None:
        super().__init__(score)
        self.method = method(score)

    @log_usage()
    def attribute(
        self, inputs: Tensor, additional_forward_args: Any = None, **method_arguments: Any
    ) -> Any:
        """Attributions of the score of each image.

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
        arguments = (*self.own_arguments(images, arguments), *arguments)
        return self.method.attribute(
            images, additional_forward_args=arguments or None, **method_arguments
        )

    def own_arguments(self, images: Tensor, arguments: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """What the score takes besides the images and the encoder's arguments, a row for each."""
        return ()
