"""Named settings that belong together, from the layer's weights to the map.

``EmbeddingLayerGradCam`` by itself is a drop-in for Captum's ``LayerGradCam`` and decides nothing.
A recipe decides: :data:`PAPER` as we read Chen et al., and :data:`RECOMMENDED`, chosen on training
species alone by ``python -m benchmarks ablate`` (the docs' page on the ablation has its numbers).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from captum.log import log_usage
from torch import Tensor, nn

from captum_embed import channel_filters
from captum_embed.channel_filters import ChannelFilter
from captum_embed.grad_cam import EmbeddingLayerGradCam
from captum_embed.layer_executions import Maps
from captum_embed.map_functions import MapFunction, background_distance
from captum_embed.weight_bank import WeightBank

__all__ = ["PAPER", "RECOMMENDED", "Recipe", "RecipeLayerGradCam"]


@dataclass(frozen=True)
class Recipe:
    """Settings of bank and map that were measured together.

    Args:
        name: What tables call it.
        layer: Which layer it is meant for, in words.
        num_tuples: For :func:`build_weight_bank`.
        mining: For :func:`build_weight_bank`.
        entry_filter: Applied to the bank's weights, before neighbours are averaged.
        num_neighbors: Bank entries averaged; all of them, where the bank has fewer.
        channel_filter: Applied to the averaged weights.
        map_func: From weights and activations to the map; None: the weighted sum.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from captum_embed import TripletForward, build_weight_bank
        >>> from captum_embed.recipes import RECOMMENDED
        >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> forward = TripletForward(encoder)
        >>> images = [(torch.rand(3, 9, 9), i % 2) for i in range(6)]
        >>> bank = build_weight_bank(
        ...     forward, encoder[0], images, progress=False, **RECOMMENDED.bank_settings
        ... )
        >>> grad_cam = RECOMMENDED.grad_cam(forward, encoder[0], weight_bank=bank)
        >>> grad_cam.attribute(torch.rand(2, 3, 9, 9)).shape
        torch.Size([2, 1, 7, 7])
    """

    name: str
    layer: str
    num_tuples: int = 50
    mining: Literal["hardest", "random"] = "hardest"
    entry_filter: ChannelFilter | None = None
    num_neighbors: int = 1
    channel_filter: ChannelFilter | None = None
    map_func: MapFunction | None = None

    @property
    def bank_settings(self) -> dict[str, Any]:
        """Keyword arguments of :func:`build_weight_bank`."""
        return {"num_tuples": self.num_tuples, "mining": self.mining}

    def grad_cam(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        *,
        weight_bank: WeightBank,
        device_ids: list[int] | None = None,
        embedding_func: Callable[..., Tensor] | None = None,
    ) -> RecipeLayerGradCam:
        """The attribution with these settings.

        Args:
            forward_func: As in :class:`EmbeddingLayerGradCam`.
            layer: As in :class:`EmbeddingLayerGradCam`; :attr:`layer` says which to choose.
            weight_bank: Built for this layer with :attr:`bank_settings`.
            device_ids: As in :class:`EmbeddingLayerGradCam`.
            embedding_func: As in :class:`EmbeddingLayerGradCam`.

        Returns:
            An attribution whose ``attribute`` takes queries alone.

        Raises:
            BankMismatchError: The bank was built for another layer.
        """
        return RecipeLayerGradCam(
            self,
            forward_func,
            layer,
            device_ids,
            weight_bank=weight_bank,
            embedding_func=embedding_func,
        )


class RecipeLayerGradCam(EmbeddingLayerGradCam):
    """:class:`EmbeddingLayerGradCam` with a bank and the settings of a :class:`Recipe`.

    Args:
        recipe: The settings.
        forward_func: As in :class:`EmbeddingLayerGradCam`.
        layer: As in :class:`EmbeddingLayerGradCam`.
        device_ids: As in :class:`EmbeddingLayerGradCam`.
        weight_bank: Built for this layer.
        embedding_func: As in :class:`EmbeddingLayerGradCam`.
    """

    def __init__(
        self,
        recipe: Recipe,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        device_ids: list[int] | None = None,
        *,
        weight_bank: WeightBank,
        embedding_func: Callable[..., Tensor] | None = None,
    ) -> None:
        if recipe.entry_filter is not None:
            weight_bank = WeightBank(
                weight_bank.embeddings,
                recipe.entry_filter(weight_bank.weights),
                weight_bank.labels,
                weight_bank.keys,
                weight_bank.metadata,
            )
        super().__init__(
            forward_func,
            layer,
            device_ids,
            weight_bank=weight_bank,
            embedding_func=embedding_func,
            channel_filter=recipe.channel_filter,
            map_func=recipe.map_func,
        )
        self.recipe = recipe
        self.num_neighbors = min(recipe.num_neighbors, len(weight_bank))

    @log_usage()
    def attribute(self, inputs: Any, *args: Any, **kwargs: Any) -> Maps:
        """Maps of queries, as :meth:`EmbeddingLayerGradCam.attribute` with a bank.

        Args:
            inputs: Query images (N, ...), or a tuple of such batches.
            *args: As there.
            **kwargs: As there; ``num_neighbors`` is the recipe's unless given.

        Returns:
            Maps (N, 1, H, W), or a tuple of them.

        Raises:
            InputError: As there.
        """
        kwargs.setdefault("num_neighbors", self.num_neighbors)
        return super().attribute.__wrapped__(self, inputs, *args, **kwargs)

    def grad_weights(self, inputs: Any, *args: Any, **kwargs: Any) -> Maps:
        """Transferred weights of queries, as :meth:`EmbeddingLayerGradCam.grad_weights`.

        Args:
            inputs: Query images (N, ...), or a tuple of such batches.
            *args: As there.
            **kwargs: As there; ``num_neighbors`` is the recipe's unless given.

        Returns:
            Weights (N, C), or a tuple of them.
        """
        kwargs.setdefault("num_neighbors", self.num_neighbors)
        return super().grad_weights(inputs, *args, **kwargs)


PAPER = Recipe(
    name="paper",
    layer="the last activation before pooling",
    channel_filter=channel_filters.top_channels(50),
)
"""Chen et al. (WACV 2020): one neighbour, the 50 channels of largest mean gradient."""

RECOMMENDED = Recipe(
    name="recommended",
    layer="the last block before pooling, without the activation (or 1x1 convolution) behind it",
    entry_filter=channel_filters.absolute,
    num_neighbors=10,
    map_func=background_distance(power=2.6, nearest=0.3),
)
"""Sizes of ten neighbours' grad-weights, and activations measured from the image's border."""
