"""Named settings that belong together, from the layer to the map, one for each question.

:data:`LOCALIZE`: where is the object? :data:`TRANSFER`: where does what raises a match differ from
the background? :data:`EXPLAIN`: what does the match rest on? :data:`PAPER`: Chen et al. as we read
them. What a recipe answers, and how well, is measured by
``python -m benchmarks`` in a checkout; the settings were chosen on training species alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from captum_embed import channel_filters
from captum_embed.channel_filters import ChannelFilter
from captum_embed.errors import InputError, LayerError
from captum_embed.families import place_of
from captum_embed.grad_cam import EmbeddingLayerGradCam
from captum_embed.layouts import Layout
from captum_embed.map_functions import MapFunction, agreed_evidence, background_distance
from captum_embed.weight_bank import WeightBank
from captum_embed.weight_bank.filtered import FilteredBank

__all__ = ["EXPLAIN", "LOCALIZE", "PAPER", "TRANSFER", "Recipe"]


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
        """The layer that this recipe is meant for; see :meth:`layer_settings`.

        Example::

            >>> from torchvision.models import resnet18
            >>> from captum_embed import recipes
            >>> network = resnet18()
            >>> recipes.LOCALIZE.layer_of(network) is network.layer4
            True
        """
        layer: nn.Module = self.layer_settings(encoder)["layer"]
        return layer

    def layer_settings(self, encoder: nn.Module) -> dict[str, Any]:
        """The layer that this recipe is meant for, with the layout of its output.

        They are keyword arguments of :class:`EmbeddingLayerGradCam`,
        :func:`build_weight_bank` and of the rivals that explain a layer. Of a vision transformer
        it is the last layer at which the patches have a gradient.

        Args:
            encoder: A network of a known family, at any depth of wrapping: convolutional ones,
                ViT, DINO, CLIP and Swin of torchvision, timm and transformers.

        Returns:
            ``layer`` and ``layout``, and of tokens ``prefix_tokens``.

        Raises:
            LayerError: The encoder is of no family that is known here.

        Example::

            >>> from torchvision.models import VisionTransformer
            >>> from captum_embed import recipes
            >>> encoder = VisionTransformer(32, 8, 2, 2, 16, 32)  # a small vit_b_16
            >>> settings = recipes.EXPLAIN.layer_settings(encoder)
            >>> settings["layout"], settings["prefix_tokens"]
            ('tokens', 1)
        """
        place = place_of(encoder)
        name = place.last_block if self.layer == "last_block" else place.last_activation
        settings = {"layer": encoder.get_submodule(name), "layout": place.layout}
        if place.prefix_tokens is None:
            return settings
        return {**settings, "prefix_tokens": place.prefix_tokens}

    def grad_cam(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | None = None,
        *,
        weight_bank: WeightBank | None = None,
        device_ids: list[int] | None = None,
        embedding_func: Callable[..., Tensor] | None = None,
        layout: Layout | None = None,
        prefix_tokens: int | None = None,
        grid: tuple[int, int] | None = None,
    ) -> EmbeddingLayerGradCam:
        """The attribution with these settings.

        Args:
            forward_func: As in :class:`EmbeddingLayerGradCam`: what is explained.
            layer: As in :class:`EmbeddingLayerGradCam`. None: :meth:`layer_of` the encoder.
            weight_bank: Built for this layer with :attr:`bank_settings`; or None, for the
                gradient of ``forward_func`` itself.
            device_ids: As in :class:`EmbeddingLayerGradCam`.
            embedding_func: As in :class:`EmbeddingLayerGradCam`.
            layout: As in :class:`EmbeddingLayerGradCam`. None: that of :meth:`layer_settings`,
                if the layer is the one named there; otherwise ``"channels_first"``.
            prefix_tokens: As in :class:`EmbeddingLayerGradCam`.
            grid: As in :class:`EmbeddingLayerGradCam`.

        Returns:
            The attribution.

        Raises:
            BankMismatchError: The bank was built for another layer, or explains something else.
            LayerError: No layer is given, and the encoder is of no family that is known here.
            InputError: No layer is given, and no encoder can be found.

        Example::

            >>> import torch
            >>> from torchvision.models import resnet18
            >>> from captum_embed import SimilarityForward, recipes
            >>> forward = SimilarityForward(resnet18(num_classes=8).eval(), torch.rand(1, 8))
            >>> recipes.EXPLAIN.grad_cam(forward).attribute(torch.rand(2, 3, 64, 64)).shape
            torch.Size([2, 1, 2, 2])
        """
        settings = self._known_settings(forward_func, embedding_func, layer)
        if layout is not None:
            settings = {"layer": settings["layer"], "layout": layout}
        given = {"prefix_tokens": prefix_tokens, "grid": grid}
        settings |= {name: value for name, value in given.items() if value is not None}
        if weight_bank is None:
            return EmbeddingLayerGradCam(
                forward_func,
                device_ids=device_ids,
                channel_filter=self._filter_of_one,
                map_func=self.map_func,
                **settings,
            )
        if self.entry_filter is not None:
            weight_bank = FilteredBank(weight_bank, self.entry_filter)
        return EmbeddingLayerGradCam(
            forward_func,
            device_ids=device_ids,
            weight_bank=weight_bank,
            embedding_func=embedding_func,
            num_neighbors=min(self.num_neighbors, len(weight_bank)),
            channel_filter=self.channel_filter,
            map_func=self.map_func,
            **settings,
        )

    def _known_settings(
        self, forward_func: Any, embedding_func: Any, layer: nn.Module | None
    ) -> dict[str, Any]:
        """The layer given, or else the recommended one, and the layout that it is known to have."""
        inner = getattr(forward_func, "module", forward_func)
        candidates = (embedding_func, getattr(inner, "encoder", None), inner)
        encoder = next((each for each in candidates if isinstance(each, nn.Module)), None)
        if encoder is None and layer is None:
            raise InputError(
                f"no layer is given, and {type(forward_func).__name__} has no `encoder` to find "
                "one in; pass layer=..., the module itself"
            )
        known: dict[str, Any] = {}
        if encoder is not None:
            try:
                known = self.layer_settings(encoder)
            except LayerError:
                if layer is None:
                    raise
        if layer is None or known.get("layer") is layer:
            return known
        return {"layer": layer, "layout": "channels_first"}

    def _filter_of_one(self, weights: Tensor) -> Tensor:
        for channel_filter in (self.entry_filter, self.channel_filter):
            weights = weights if channel_filter is None else channel_filter(weights)
        return weights


LOCALIZE = Recipe(
    name="localize",
    question="Where is the object?",
    layer="last_block",
    entry_filter=channel_filters.absolute,
    num_neighbors=10,
    map_func=background_distance(power=2.6, nearest=0.3),
)
"""How far each place is from the image's border. Its boxes owe next to nothing to the weights."""

TRANSFER = Recipe(
    name="transfer",
    question="Where does the image raise matches?",
    layer="last_block",
    num_neighbors=300,
    map_func=background_distance(power=2.6, nearest=0.3, signed=True),
)
"""The distance of LOCALIZE, with the sign of the evidence that a bank's weights give.

Against references, what speaks against the match is below zero. From a bank, the
mean over many entries names the object, the weights of a single image its class. In a network that
was trained on few classes this sign can mean nothing for others: measure beside
``control_transfer_uniform`` on your data. With uniform weights it is arbitrary.
"""

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
