"""Named settings that belong together, from the layer to the map, one for each question.

:data:`LOCALIZE`: where is the object? :data:`EXPLAIN`: what does the match rest on?
:data:`PAPER`: Chen et al. as we read them. What a recipe answers, and how well, is measured by
``python -m benchmarks``; the settings were chosen on training species alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from captum_embed import channel_filters
from captum_embed.channel_filters import ChannelFilter
from captum_embed.errors import LayerError
from captum_embed.grad_cam import EmbeddingLayerGradCam
from captum_embed.map_functions import MapFunction, agreed_evidence, background_distance
from captum_embed.weight_bank import WeightBank

__all__ = ["EXPLAIN", "LOCALIZE", "PAPER", "Recipe"]

# What known families call the part that ends at the last activation before pooling.
_TRUNKS = ("features", "layer4", "trunk_output")


@dataclass(frozen=True)
class Recipe:
    """Settings of layer, bank and map that were measured together.

    One set of settings serves two modes: with a weight bank (transfer), and without one against
    whatever the forward function compares with (its gradient).

    Args:
        name: What tables call it.
        question: What its maps answer.
        layer: ``"last_activation"`` before pooling, or ``"last_block"``: what goes into the
            activation, or into the 1x1 convolution in front of it.
        mining: For :func:`build_weight_bank`.
        num_tuples: For :func:`build_weight_bank`, with mining other than ``"all"``.
        entry_filter: Applied to the weights of each bank entry, before neighbours are averaged;
            without a bank, to the image's own.
        num_neighbors: Bank entries averaged; all of them, where the bank has fewer.
        channel_filter: Applied to the averaged weights.
        map_func: From weights and activations to the map; None: the weighted sum.

    Example::

        >>> import torch
        >>> from torchvision.models import mobilenet_v2
        >>> from captum_embed import SimilarityForward, TripletForward, build_weight_bank, recipes
        >>> encoder = mobilenet_v2(num_classes=8).eval()
        >>> layer = recipes.EXPLAIN.layer_of(encoder)
        >>> forward = SimilarityForward(encoder, references=torch.rand(1, 8))
        >>> maps = recipes.EXPLAIN.grad_cam(forward, layer).attribute(torch.rand(2, 3, 96, 96))
        >>> maps.shape
        torch.Size([2, 1, 3, 3])
        >>> images = [(torch.rand(3, 96, 96), i % 2) for i in range(4)]
        >>> settings = recipes.EXPLAIN.bank_settings
        >>> triplets = TripletForward(encoder)
        >>> bank = build_weight_bank(triplets, layer, images, progress=False, **settings)
        >>> transfer = recipes.EXPLAIN.grad_cam(triplets, layer, weight_bank=bank)
        >>> transfer.attribute(torch.rand(2, 3, 96, 96)).shape
        torch.Size([2, 1, 3, 3])
    """

    name: str
    question: str
    layer: Literal["last_activation", "last_block"] = "last_activation"
    mining: Literal["all", "hardest", "random"] = "all"
    num_tuples: int | None = None
    entry_filter: ChannelFilter | None = None
    num_neighbors: int = 1
    channel_filter: ChannelFilter | None = None
    map_func: MapFunction | None = None

    @property
    def bank_settings(self) -> dict[str, Any]:
        """Keyword arguments of :func:`build_weight_bank`."""
        settings: dict[str, Any] = {"mining": self.mining}
        return settings if self.num_tuples is None else {**settings, "num_tuples": self.num_tuples}

    def layer_of(self, encoder: nn.Module) -> nn.Module:
        """The layer that this recipe is meant for.

        Args:
            encoder: A network whose part in front of the pooling is called ``features``,
                ``layer4`` or ``trunk_output``, as in torchvision's convolutional networks, at
                any depth of wrapping.

        Returns:
            A module of the encoder.

        Raises:
            LayerError: The encoder is of no family that is known here.

        Example::

            >>> from torchvision.models import resnet18
            >>> from captum_embed import recipes
            >>> network = resnet18()
            >>> recipes.LOCALIZE.layer_of(network) is network.layer4
            True
        """
        named = [
            (name.count("."), name)
            for name, _ in encoder.named_modules()
            if name.rpartition(".")[2] in _TRUNKS
        ]
        outermost = [name for depth, name in named if depth == min(named)[0]]
        if len(outermost) != 1:
            raise LayerError(
                f"the layer of {type(encoder).__name__} cannot be told: modules called "
                f"{', '.join(_TRUNKS)} are {outermost or 'absent'}; give the last layer in front "
                "of the pooling yourself"
            )
        trunk = encoder.get_submodule(outermost[0])
        return trunk if self.layer == "last_activation" else _last_block(trunk)

    def grad_cam(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        *,
        weight_bank: WeightBank | None = None,
        device_ids: list[int] | None = None,
        embedding_func: Callable[..., Tensor] | None = None,
    ) -> EmbeddingLayerGradCam:
        """The attribution with these settings.

        Args:
            forward_func: As in :class:`EmbeddingLayerGradCam`: what is explained.
            layer: As in :class:`EmbeddingLayerGradCam`; :meth:`layer_of` finds it.
            weight_bank: Built for this layer with :attr:`bank_settings`; or None, for the
                gradient of ``forward_func`` itself.
            device_ids: As in :class:`EmbeddingLayerGradCam`.
            embedding_func: As in :class:`EmbeddingLayerGradCam`.

        Returns:
            The attribution.

        Raises:
            BankMismatchError: The bank was built for another layer, or explains something else.
        """
        if weight_bank is None:
            return EmbeddingLayerGradCam(
                forward_func,
                layer,
                device_ids,
                channel_filter=self._filter_of_one,
                map_func=self.map_func,
            )
        if self.entry_filter is not None:
            weight_bank = WeightBank(
                weight_bank.embeddings,
                self.entry_filter(weight_bank.weights),
                weight_bank.labels,
                weight_bank.keys,
                weight_bank.metadata,
            )
        return EmbeddingLayerGradCam(
            forward_func,
            layer,
            device_ids,
            weight_bank=weight_bank,
            embedding_func=embedding_func,
            num_neighbors=min(self.num_neighbors, len(weight_bank)),
            channel_filter=self.channel_filter,
            map_func=self.map_func,
        )

    def _filter_of_one(self, weights: Tensor) -> Tensor:
        for channel_filter in (self.entry_filter, self.channel_filter):
            weights = weights if channel_filter is None else channel_filter(weights)
        return weights


def _last_block(trunk: nn.Module) -> nn.Module:
    blocks = getattr(trunk, "blocks", None)
    if isinstance(blocks, nn.Module):
        return blocks
    children = list(trunk.children())
    if isinstance(trunk, nn.Sequential) and len(children) > 1:
        convolution = next((m for m in children[-1].modules() if isinstance(m, nn.Conv2d)), None)
        blocks_inside = any(len(list(m.children())) for m in children[-1].children())
        if convolution is not None and convolution.kernel_size == (1, 1) and not blocks_inside:
            return children[-2]
    return trunk


LOCALIZE = Recipe(
    name="localize",
    question="Where is the object?",
    layer="last_block",
    entry_filter=channel_filters.absolute,
    num_neighbors=10,
    map_func=background_distance(power=2.6, nearest=0.3),
)
"""How far each place is from the image's border. Its boxes owe next to nothing to the weights."""

EXPLAIN = Recipe(
    name="explain",
    question="What does the match rest on?",
    num_neighbors=30,
    map_func=agreed_evidence(power=2.0, sigma=1.5),
)
"""Evidence for the match less evidence against it, where neighbouring places agree."""

PAPER = Recipe(
    name="paper",
    question="Which channels move the loss most?",
    mining="hardest",
    num_tuples=50,
    channel_filter=channel_filters.top_channels(50),
)
"""Chen et al. (WACV 2020): one neighbour, the 50 channels of largest mean gradient."""
