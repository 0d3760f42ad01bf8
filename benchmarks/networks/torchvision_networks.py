"""torchvision's classification CNNs, without their classifier."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from benchmarks.core.seeding import seeded
from captum_embed.command_line.networks import torchvision_state
from captum_embed.errors import InputError

RANDOM = "random"
# What `_parts` knows; tested one by one.
FAMILIES = (
    "convnext",
    "densenet",
    "efficientnet",
    "mobilenet",
    "regnet",
    "resnet",
    "resnext",
    "vgg",
    "wide_resnet",
)


@dataclass(frozen=True)
class Backbone:
    """A network up to its pooling.

    Args:
        features (nn.Module): images (N, 3, H, W) to activations (N, C, h, w).
        pool (nn.Module): activations to (N, C, 1, 1).
        num_channels (int): C.
        last_block (str): dotted name, within `features`, of the last block; ``""``: `features`.
    """

    features: nn.Module
    pool: nn.Module
    num_channels: int
    last_block: str = ""


def torchvision_names() -> list[str]:
    """The names of the networks that `torchvision_backbone` builds."""
    return [name for name in models.list_models(module=models) if name.startswith(FAMILIES)]


def torchvision_backbone(name: str, weights: str = "DEFAULT", seed: int = 0) -> Backbone:
    """A torchvision network without its classifier, in evaluation mode.

    No activation works in place, as attribution methods read the tensors before and after it.

    Args:
        name (str): of `torchvision_names`.
        weights (str): ``"DEFAULT"`` or another name of the network's weights enum, such as
            ``"IMAGENET1K_V1"``: downloaded, unless torch.hub's cache has them. ``"random"``: as
            initialised.
        seed (int): of the initial weights, drawn without touching the global generator.

    Raises:
        InputError: no such network or weights, or the download failed.

    Example:
        >>> backbone = torchvision_backbone("resnet18", weights="random")
        >>> backbone.num_channels, backbone.last_block
        (512, 'layer4')
    """
    if name not in torchvision_names():
        raise InputError(f"torchvision has no classification CNN {name!r} of a known family")
    with seeded(seed):
        model = models.get_model(name, weights=None).eval()
    if weights != RANDOM:
        instead = f"give --checkpoint with a safetensors file; or {name}@{RANDOM}, untrained"
        model.load_state_dict(torchvision_state(name, weights, otherwise=instead))
    features, pool, last_block = _parts(model)
    not_in_place(features)
    return Backbone(features, pool, count_channels(features), last_block)


def _parts(model: Any) -> tuple[nn.Module, nn.Module, str]:
    """Features, pooling and the name of the last block."""
    pool: nn.Module = nn.AdaptiveAvgPool2d(1)
    if isinstance(model, models.ResNet):
        kept = [(k, m) for k, m in model.named_children() if k not in ("avgpool", "fc")]
        return nn.Sequential(OrderedDict(kept)), pool, "layer4"
    if isinstance(model, models.RegNet):
        kept = [("stem", model.stem), ("trunk_output", model.trunk_output)]
        return nn.Sequential(OrderedDict(kept)), pool, "trunk_output"
    if isinstance(model, models.DenseNet):
        # torchvision calls the last activation as a function.
        kept = [*model.features.named_children(), ("relu5", nn.ReLU())]
        return nn.Sequential(OrderedDict(kept)), pool, "denseblock4"
    features: nn.Sequential = model.features
    if isinstance(model, models.ConvNeXt):
        # The layer norm is trained to stand behind the pooling.
        return features, nn.Sequential(pool, model.classifier[0]), str(len(features) - 1)
    if isinstance(model, models.VGG):
        return features, pool, ""
    # EfficientNet and MobileNet end in a 1x1 convolution, a norm and an activation.
    return features, pool, str(len(features) - 2)


def not_in_place(module: nn.Module) -> None:
    """Have the activations of a network leave their input as it is."""
    for each in module.modules():
        if getattr(each, "inplace", False) is True:
            each.inplace = False  # type: ignore[assignment]


@torch.no_grad()
def count_channels(features: nn.Module, side: int = 64) -> int:
    """C of the activations (N, C, h, w), from a forward pass.

    Raises:
        InputError: the network gives something else.
    """
    activations = features(torch.zeros(1, 3, side, side))
    if not isinstance(activations, Tensor) or activations.ndim != 4:
        shape = getattr(activations, "shape", type(activations).__name__)
        raise InputError(
            f"the network's features are {tuple(shape) if not isinstance(shape, str) else shape}; "
            "expected activations (N, C, h, w), those of a convolutional network"
        )
    return activations.shape[1]
