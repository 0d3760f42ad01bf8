"""The loss of another library as a forward function."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from captum_embed.encoder_forward import EncoderForward, Explains
from captum_embed.errors import InputError


class LossForward(EncoderForward):
    """Any loss of embeddings and labels, such as those of pytorch-metric-learning, as it is.

    Args:
        encoder: Maps inputs (N, ...) to embeddings (N, D).
        loss: Maps embeddings (N, D) and labels (N,) to a scalar for the batch, or to one value
            per image, (N,). Its own parameters (proxies, class weights) are left as they are, and
            so is what it remembers of earlier batches: a copy of it is called.
        explains: ``"match"``: minus the loss, a score; ``"loss"``: the loss itself.
        miner: Of pytorch-metric-learning: maps embeddings and labels to what ``loss`` takes as
            its third argument.

    Raises:
        InputError: Unknown direction, or a loss or miner that cannot be called.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from captum_embed import EmbeddingLayerGradCam, LossForward
        >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> forward = LossForward(encoder, nn.CrossEntropyLoss(reduction="none"))
        >>> images, labels = torch.rand(2, 3, 8, 8), torch.tensor([0, 3])
        >>> forward(images, labels).shape
        torch.Size([2])
        >>> grad_cam = EmbeddingLayerGradCam(forward, encoder[0])
        >>> grad_cam.attribute(images, additional_forward_args=labels).shape
        torch.Size([2, 1, 6, 6])
    """

    def __init__(
        self,
        encoder: nn.Module,
        loss: Callable[..., Any],
        explains: Explains = "match",
        *,
        miner: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(encoder, explains)
        for name, function in (("loss", loss), ("miner", miner)):
            if not (callable(function) or (name == "miner" and miner is None)):
                raise InputError(
                    f"{name} is {function!r}; expected a callable of embeddings (N, D) and "
                    "labels (N,)"
                )
        self.loss = loss
        self.miner = miner

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss, or minus it.

        Args:
            images: Shape (N, ...).
            labels: Classes as the loss takes them, (N,).

        Returns:
            A scalar, or shape (N,), as the loss gives it.

        Raises:
            InputError: The loss returned something else.
        """
        embeddings = self.encode([images])[0]
        # Losses with proxies convert these for good, if the embeddings have another dtype.
        own = next(self.loss.parameters(), None) if isinstance(self.loss, nn.Module) else None
        wide = torch.promote_types(embeddings.dtype, torch.float32)
        embeddings = embeddings.to(wide if own is None else own.dtype)
        labels = torch.as_tensor(labels, device=embeddings.device)
        loss, miner = _left_alone(self.loss), _left_alone(self.miner)
        mined = () if miner is None else (miner(embeddings, labels),)
        value = loss(embeddings, labels, *mined)
        if not isinstance(value, Tensor) or value.shape not in ((), (1,), (len(embeddings),)):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"the loss returned {shape} for {len(embeddings)} images; expected a scalar, or "
                f"one value per image: with a DoNothingReducer, choose one that reduces, such as "
                "MeanReducer"
            )
        return self.directed(value)


def _left_alone(function: Callable[..., Any] | None) -> Any:
    """A copy of a loss or miner: several keep statistics, or a memory of what they were given."""
    if not isinstance(function, nn.Module):
        return function
    try:
        return copy.deepcopy(function)
    # Of tensors that are part of a graph, and of locks, there is no copy.
    except (RuntimeError, TypeError):
        return function
