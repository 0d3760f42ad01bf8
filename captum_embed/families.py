"""Where the networks of known families are explained: the layer, and what its output looks like.

A family is told by the names of its modules, so that no library of networks is imported. What is
known here is checked, network by network, against the table of ``docs/how_to/transformers.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from captum_embed.errors import LayerError
from captum_embed.layouts import Layout

# The part of a convolutional network that ends at the last activation before the pooling.
_TRUNKS = ("features", "layer4", "trunk_output")

# The first norm of a vision transformer's last block ("*": the last of the blocks), and a module
# that tells the family. A class token reads the patches for the last time behind that norm.
_LAST_NORMS = (
    ("encoder.layers.*.ln_1", "conv_proj"),
    ("blocks.*.norm1", "patch_embed"),
    ("encoder.layer.*.norm1", "embeddings.patch_embeddings"),
    ("model.layer.*.norm1", "embeddings.patch_embeddings"),
    ("layer.*.norm1", "embeddings.patch_embeddings"),
    ("layers.*.layernorm_before", "embeddings.patch_embeddings"),
    ("encoder.layer.*.layernorm_before", "embeddings.patch_embeddings"),
    ("encoder.layers.*.layer_norm1", "embeddings.patch_embedding"),
)


@dataclass(frozen=True)
class Place:
    """Where a network is explained.

    Args:
        last_activation: Dotted name of the last layer before the pooling; of a transformer that
            reads its class token, the last at which the patches still have a gradient.
        last_block: Dotted name of what goes into that activation, or into the 1x1 convolution in
            front of it; the same layer where there is no such difference.
        layout: Of their outputs.
        prefix_tokens: Tokens without a place in the image; None unless ``layout`` is "tokens".
    """

    last_activation: str
    last_block: str
    layout: Layout = "channels_first"
    prefix_tokens: int | None = None


def place_of(encoder: nn.Module) -> Place:
    """Where a network of a known family is explained.

    Args:
        encoder: The network, at any depth of wrapping.

    Returns:
        The layers, named from ``encoder``, and their layout.

    Raises:
        LayerError: It is of no family that is known here, or there are several in it.

    Example::

        >>> from torchvision.models import VisionTransformer
        >>> place_of(VisionTransformer(32, 8, 2, 2, 16, 32)).last_activation
        'encoder.layers.encoder_layer_1.ln_1'
    """
    modules = list(encoder.named_modules())
    for rule in (_vision_transformer, _swin, _convolutional, _trunk):
        places = [(n.count(".") + bool(n), n, p) for n, m in modules if (p := rule(m)) is not None]
        outermost = [(name, place) for depth, name, place in places if depth == min(places)[0]]
        if len(outermost) > 1:
            names = [f"{name}.{place.last_activation}".lstrip(".") for name, place in outermost]
            raise LayerError(
                f"the layer of {type(encoder).__name__} cannot be told: it may be any of {names}; "
                "give the one of the part that embeds the image"
            )
        for name, place in outermost:
            above = f"{name}." if name else ""
            return Place(
                above + place.last_activation,
                above + place.last_block,
                place.layout,
                place.prefix_tokens,
            )
    raise LayerError(
        f"the layer of {type(encoder).__name__} cannot be told: its modules are those of no known "
        "family; give the last layer in front of the pooling yourself, with its layout"
    )


def transformer_blocks(encoder: Any) -> list[nn.Module]:
    """The blocks of a vision transformer of a known family, in their order.

    Raises:
        LayerError: It is none.

    Example::

        >>> from torchvision.models import VisionTransformer
        >>> len(transformer_blocks(VisionTransformer(32, 8, 2, 2, 16, 32)))
        2
    """
    for root in encoder.modules() if isinstance(encoder, nn.Module) else ():
        for pattern, telling in _LAST_NORMS:
            if _named(root, pattern) and _named(root, telling):
                return list(root.get_submodule(pattern.partition(".*")[0]).children())
    raise LayerError(
        f"{type(encoder).__name__} is no vision transformer of a known family; pass its blocks, in "
        "their order, with blocks=[...]; networks without attention have other methods"
    )


def _named(root: nn.Module, pattern: str) -> str | None:
    """The dotted name that a pattern stands for below ``root``, or None; ``*``: the last child."""
    names: list[str] = []
    for part in pattern.split("."):
        children = dict(root.named_children())
        name = next(reversed(children), None) if part == "*" else part
        if name is None or name not in children:
            return None
        names.append(name)
        root = children[name]
    return ".".join(names)


def _vision_transformer(root: nn.Module) -> Place | None:
    for pattern, telling in _LAST_NORMS:
        name = _named(root, pattern)
        if name is None or _named(root, telling) is None:
            continue
        if getattr(root, "global_pool", "token") != "token":
            name = "norm"
        elif _named(root, "head.attention"):
            name = "post_layernorm"
        return Place(name, name, "tokens", _prefix_tokens(root))
    return None


def _prefix_tokens(root: nn.Module) -> int:
    stated = getattr(root, "num_prefix_tokens", None)
    if isinstance(stated, int):
        return stated
    homes = [root, getattr(root, "embeddings", root)]
    names = {name for home in homes for name, _ in home.named_parameters(recurse=False)}
    classes = names & {"cls_token", "class_token", "class_embedding"}
    source = root if hasattr(root, "num_register_tokens") else getattr(root, "config", None)
    return len(classes) + (getattr(source, "num_register_tokens", 0) or 0)


def _swin(root: nn.Module) -> Place | None:
    if _named(root, "permute") and _named(root, "features.*.*.norm1"):
        return Place("norm", "norm", "channels_last")
    if _named(root, "patch_embed") and _named(root, "layers.*.blocks.*.norm1"):
        return Place("norm", "norm", "channels_last")
    if _named(root, "embeddings.patch_embeddings") and _named(root, "encoder.layers.*.blocks"):
        return Place("layernorm", "layernorm", "tokens", 0)
    return None


def _convolutional(root: nn.Module) -> Place | None:
    """Those of timm and transformers; their names are too common to be looked for one by one."""
    for names, last, block in (
        (("blocks", "conv_head", "bn2"), "bn2", "blocks"),
        (("blocks", "conv_head", "global_pool"), "blocks", "blocks"),
        (("stages", "norm_pre"), "stages", "stages"),
        (("s4", "final_conv"), "final_conv", "s4"),
        (("encoder.stages", "embeddings"), "encoder.stages.*", "encoder.stages.*"),
        (("encoder.stages", "embedder"), "encoder.stages.*", "encoder.stages.*"),
    ):
        if all(_named(root, name) for name in names):
            return Place(str(_named(root, last)), str(_named(root, block)))
    return None


def _trunk(root: nn.Module) -> Place | None:
    names = [name for name in _TRUNKS if _named(root, name)]
    if len(names) != 1:
        return None
    return Place(names[0], f"{names[0]}{_last_block(root.get_submodule(names[0]))}")


def _last_block(trunk: nn.Module) -> str:
    """Where the last block of a trunk is below it."""
    if isinstance(getattr(trunk, "blocks", None), nn.Module):
        return ".blocks"
    children = list(trunk.named_children())
    if isinstance(trunk, nn.Sequential) and len(children) > 1:
        last = children[-1][1]
        convolution = next((m for m in last.modules() if isinstance(m, nn.Conv2d)), None)
        blocks_inside = any(len(list(m.children())) for m in last.children())
        if convolution is not None and convolution.kernel_size == (1, 1) and not blocks_inside:
            return f".{children[-2][0]}"
    return ""
