"""A user's own module as a network of the benchmark; its modules keep their names."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from math import isqrt
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.networks.checkpoints import read_safetensors, refuse_mismatch
from captum_embed.command_line.networks import factory_named
from captum_embed.encoders import embedding_vectors
from captum_embed.errors import InputError, LayerError
from captum_embed.families import place_of
from captum_embed.layouts import LayerLayout


def made_by(name: str, checkpoint: str | Path | None = None) -> nn.Module:
    """The module that a user's callable returns.

    Args:
        name (str): ``package.module:factory``, also from a file in the working directory.
        checkpoint (str or Path, optional): its path is given to a factory that takes an argument;
            the module of another is filled with it: a safetensors file of its `state_dict`.

    Raises:
        InputError: it cannot be imported or called, or returns no module.
        CheckpointError: no safetensors file, or one for another network.
    """
    factory = factory_named(name)
    takes_path = checkpoint is not None and _takes_argument(factory)
    # This runs the user's code, which may raise anything, and may end the program.
    try:
        network = factory(str(checkpoint)) if takes_path else factory()
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(
            f"--network {name} failed ({type(error).__name__}: {error}) where it should return a "
            "network"
        ) from error
    if not isinstance(network, nn.Module):
        raise InputError(f"network {name!r} gave a {type(network).__name__}, not an nn.Module")
    if checkpoint is not None and not takes_path:
        given, _ = read_safetensors(checkpoint)
        refuse_mismatch(Path(checkpoint), given, network.state_dict(), name)
        network.load_state_dict(given)
    return network


def _takes_argument(factory: Callable[..., Any]) -> bool:
    try:
        inspect.signature(factory).bind("")
    except (TypeError, ValueError):
        return False
    return True


class _Resized:
    """Forward pre-hook of a network: each image whole, at the one size that the network takes."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, network: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        images, *others = inputs
        if images.shape[2:] != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", antialias=True)
        return (images, *others)


def _embeddings(network: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor:
    return embedding_vectors(output)


def serve(network: nn.Module) -> nn.Module:
    """A network for images of any size that gives a tensor, by hooks.

    Args:
        network (nn.Module): images (N, 3, H, W) to embeddings (N, D), or to an output that
            `captum_embed.encoders.embedding_of` knows, such as a ``ModelOutput`` of transformers.

    Returns:
        nn.Module: the same. Where it takes images of one size alone, they are resized.

    Example:
        >>> from torchvision.models import VisionTransformer
        >>> network = serve(VisionTransformer(32, 8, 2, 2, 16, 32).eval())
        >>> network(torch.rand(1, 3, 50, 70)).shape
        torch.Size([1, 1000])
    """
    size = _stated_size(network)
    if size is not None and _runs(network, size) and not _runs(network, (size[0], 2 * size[1])):
        network.register_forward_pre_hook(_Resized(size))
        _note_layout(network, size)
    network.register_forward_hook(_embeddings)
    return network


def _stated_size(network: nn.Module) -> tuple[int, int] | None:
    """Height and width of images, as networks of torchvision, timm and transformers state them."""
    for module in network.modules():
        stated = [
            getattr(getattr(module, "patch_embed", None), "img_size", None),
            getattr(module, "image_size", None),
            getattr(getattr(module, "config", None), "image_size", None),
        ]
        for size in stated:
            both = (size, size) if isinstance(size, int) else size
            if isinstance(both, (tuple, list)) and len(both) == 2:
                return both[0], both[1]
    return None


@torch.no_grad()
def _runs(network: nn.Module, size: tuple[int, int]) -> bool:
    parameter = next(network.parameters(), torch.empty(0))
    try:
        network(torch.zeros(1, 3, *size, device=parameter.device))
    # Networks state what they need by assertions, or fail in the middle.
    except (AssertionError, RuntimeError, ValueError):
        return False
    return True


def _note_layout(network: nn.Module, size: tuple[int, int]) -> None:
    """Prefix and grid of the patches, which the images do not tell before they are resized."""
    try:
        place = place_of(network)
    except LayerError:
        return
    if place.layout != "tokens" or place.prefix_tokens is None or hasattr(network, "layout"):
        return
    counts: list[int] = []
    layer = network.get_submodule(place.last_activation)
    with layer.register_forward_hook(lambda *call: counts.append(call[2].shape[1])):
        _runs(network, size)
    side = isqrt(counts[0] - place.prefix_tokens)
    if size[0] == size[1]:
        network.layout = LayerLayout("tokens", place.prefix_tokens, (side, side))  # type: ignore[assignment]
