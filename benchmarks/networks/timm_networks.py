"""Convolutional networks of timm, without their classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.core.seeding import seeded
from benchmarks.datasets.preprocess import IMAGENET_MEAN, IMAGENET_STD
from benchmarks.networks.torchvision_networks import RANDOM, Backbone, count_channels, not_in_place
from captum_embed.errors import InputError, MissingExtraError
from captum_embed.families import place_of


class TimmFeatures(nn.Module):
    """`forward_features` of a timm model, for images normalised as ImageNet's.

    Args:
        model (nn.Module): of timm; its ``pretrained_cfg`` says how it wants images normalised.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        wanted = model.pretrained_cfg
        ours_mean, ours_std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        mean = torch.tensor(wanted.get("mean") or IMAGENET_MEAN)
        std = torch.tensor(wanted.get("std") or IMAGENET_STD)
        self.renormalizes = not (torch.equal(mean, ours_mean) and torch.equal(std, ours_std))
        scale, shift = ours_std / std, (ours_mean - mean) / std
        self.register_buffer("scale", scale[:, None, None], persistent=False)
        self.register_buffer("shift", shift[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.renormalizes:
            images = images * self.scale + self.shift
        activations: Tensor = self.model.forward_features(images)
        return activations


def has_channels_first(name: str) -> bool:
    """Whether a timm model is convolutional, as far as its family is known; see `place_of`."""
    try:
        import timm

        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False, num_classes=0)
        return place_of(model).layout == "channels_first"
    # What is wrong with the name, `timm_backbone` says.
    except Exception:
        return True


def timm_backbone(name: str, weights: str = "DEFAULT", seed: int = 0) -> Backbone:
    """A timm model without its classifier, in evaluation mode.

    Args:
        name (str): as in `timm.list_models`, tags such as ``resnet50.a1_in1k`` included.
        weights (str): ``"DEFAULT"``: the pretrained ones, which timm downloads; ``"random"``.
        seed (int): of the initial weights, drawn without touching the global generator.

    Raises:
        MissingExtraError: timm is not installed.
        InputError: no such model, no weights, or it is no convolutional network.
    """
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError(f"--network timm:{name} needs timm: pip install timm") from error
    if weights not in ("DEFAULT", RANDOM):
        raise InputError(
            f"timm:{name}: weights {weights!r}; expected {RANDOM}, or none named, and timm's own "
            f"tags in the model's name, such as timm:resnet50.a1_in1k"
        )
    try:
        with seeded(seed):
            model = timm.create_model(name, pretrained=weights != RANDOM, num_classes=0).eval()
    # Besides its own errors, whatever its download client raises.
    except Exception as error:
        raise InputError(
            f"timm:{name} could not be made ({type(error).__name__}: {error}). See "
            f"timm.list_models() for names; without internet give --checkpoint, or "
            f"timm:{name}@{RANDOM} for untrained weights"
        ) from error
    features = TimmFeatures(model)
    not_in_place(features)
    try:
        num_channels = count_channels(features, model.pretrained_cfg["input_size"][-1])
        expected = model.num_features
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(f"timm:{name} is of no use here: {error}") from error
    if num_channels != expected:
        raise InputError(
            f"timm:{name} gives activations with {num_channels} channels, and says that it has "
            f"{expected}; channels last are not supported, those are transformers"
        )
    return Backbone(features, nn.AdaptiveAvgPool2d(1), num_channels)
