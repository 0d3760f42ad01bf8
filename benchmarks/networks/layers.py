"""The layer that all methods explain, with channels first whatever its own layout is.

What a layer of another layout puts out is brought into that shape, goes through an `nn.Identity`,
and is put back: this identity is the layer to explain. It stands in a forward hook, so that modules
and checkpoints keep the names of their library.
"""

from __future__ import annotations

from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from captum_embed.errors import LayerError
from captum_embed.families import place_of
from captum_embed.layouts import (
    LayerLayout,
    Layout,
    channels_first,
    checked_layout,
    require_layout,
)

DEFAULT_LAYER = "features"
LAYER_HELP = (
    "dotted name of the layer explained; without one the last before the pooling, and of a vision "
    "transformer the last at which the patches have a gradient"
)
LAYOUT_HELP = "of a layer that is named: how channels and places lie in its output"
PREFIX_HELP = (
    "of a named layer that gives tokens: how many in front of the patches are class token and "
    "registers; without it, as known of the network or told by its images"
)

# Of the images that a network is run on, in this thread: of tokens it tells the grid.
_images: ContextVar[Tensor] = ContextVar("images")


class _Shown:
    """Forward hook of a layer: what it puts out goes through a module with channels first."""

    def __init__(self, places: nn.Module, layout: LayerLayout) -> None:
        self.places, self.layout = places, layout

    def __call__(self, layer: nn.Module, _: Any, output: Any) -> Any:
        images = _images.get()
        if not isinstance(output, Tensor):
            raise LayerError(f"the layer gives {type(output).__name__}; expected one tensor")
        require_layout(output, self.layout.layout, layer, images)
        places = channels_first(
            output,
            self.layout.layout,
            prefix_tokens=self.layout.prefix_tokens,
            grid=self.layout.grid,
            image_size=images.shape[2:],
        )
        return self.layout.put_back(self.places(places), output)


def _remember(_: nn.Module, inputs: tuple[Any, ...]) -> None:
    _images.set(torch.empty(inputs[0].shape, device="meta"))


def show_places(
    network: nn.Module, layer: nn.Module, layout: LayerLayout, places: nn.Module | None = None
) -> nn.Module:
    """A module of the network whose output is that of a layer with channels first.

    Args:
        network (nn.Module): maps images (N, 3, H, W); the layer is in it.
        layer (nn.Module): gives tokens (N, T, C) or (N, h, w, C).
        layout (LayerLayout): of the layer.
        places (nn.Module, optional): changes nothing; None: one that is added to the network.

    Returns:
        nn.Module: with output (N, C, h, w); the same where it is asked again.

    Example:
        >>> from torchvision.models import VisionTransformer
        >>> network = VisionTransformer(32, 8, 2, 2, 16, 32)
        >>> places = show_places(network, network.encoder.layers[0], LayerLayout("tokens"))
        >>> places in set(network.modules())
        True
    """
    for hook in layer._forward_hooks.values():
        if isinstance(hook, _Shown) and hook.layout == layout:
            return hook.places
    if places is None:
        places = nn.Identity()
        # Containers run all that is in them.
        containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
        homes = (layer, *network.modules())
        next(each for each in homes if not isinstance(each, containers)).places = places
    layer.register_forward_hook(_Shown(places, layout))
    network.register_forward_pre_hook(_remember)
    return places


def find_layer(
    network: nn.Module,
    name: str,
    layout: Layout = "channels_first",
    prefix_tokens: int | None = None,
) -> nn.Module:
    """The layer that is explained, with output (N, C, h, w).

    Args:
        network (nn.Module): maps images to embeddings.
        name (str): dotted; ``"features"`` of a network without such a module stands for the
            layer that `captum_embed.families.place_of` knows.
        layout (str): of the named layer; of one with channels first the module itself is
            returned, of others one that is added to the network, see `show_places`.
        prefix_tokens (int, optional): of the named layer, where it gives tokens.

    Raises:
        LayerError: there is none of this name; the closest ones are listed. Or no name is given,
            and the network's family is not known.
        InputError: prefix tokens of a layout without tokens.
    """
    checked_layout(layout, prefix_tokens)
    modules = dict(network.named_modules())
    if name == DEFAULT_LAYER and name not in modules:
        try:
            place = place_of(network)
        except LayerError as error:
            listed = ", ".join(n for n in modules if n and n.count(".") < 2)
            raise LayerError(
                f"{error}: --layer NAME, and --layout tokens or channels_last where its channels "
                f"are not first. Its modules: {listed}"
            ) from error
        name, layout = place.last_activation, place.layout
    if name and name in modules:
        layer = modules[name]
        if layout == "channels_first":
            return layer
        # Images may be resized on their way to the backbone.
        root = getattr(network, "backbone", network) if hasattr(network, "prepare") else network
        return show_places(root, layer, _stated_layout(network, layout, prefix_tokens))
    parent = name.rpartition(".")[0]
    near = [n for n in modules if n and n.rpartition(".")[0] == parent][:8]
    raise LayerError(
        f"the network has no layer {name!r}; "
        + (f"beside it there are: {', '.join(near)}" if near else f"try {list(modules)[1:6]}")
    )


def _stated_layout(network: nn.Module, layout: Layout, prefix: int | None) -> LayerLayout:
    """The layout of a layer that is named; of tokens with prefix and grid, as far as known."""
    known = getattr(network, "layout", None)
    if prefix is None and isinstance(known, LayerLayout) and known.layout == layout:
        return known
    if prefix is None and layout == "tokens":
        with suppress(LayerError):
            prefix = place_of(network).prefix_tokens
    return LayerLayout(layout, prefix)


def named_layer(network: nn.Module, chosen: nn.Module, name: str) -> nn.Module:
    """The layer of a method: the run's, the one a network recommends, or one by dotted name.

    Args:
        network (nn.Module): one without a ``recommended_layer`` recommends the run's.
        chosen (nn.Module): the run's.
        name (str): ``"chosen"``, ``"recommended"``, or a dotted name.

    Raises:
        LayerError: see `find_layer`.
    """
    if name == "chosen":
        return chosen
    if name == "recommended":
        recommended = getattr(network, "recommended_layer", chosen)
        return recommended if isinstance(recommended, nn.Module) else chosen
    return find_layer(network, name)
