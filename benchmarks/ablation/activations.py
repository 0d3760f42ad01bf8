"""Activations of every image, computed once for all variants and kept on disk."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.ablation.variants import BLOCK, LAST, STRIDE_16, BankVariant, View
from benchmarks.core.files import write_atomically
from benchmarks.datasets.preprocess import to_tensor
from benchmarks.datasets.records import ImageRecord, load_rgb
from benchmarks.networks.build import EmbeddingNetwork
from benchmarks.networks.lite0 import Lite0Features
from captum_embed.errors import InputError

ENLARGEMENT = 1.5
STRIDE_16_BLOCK = 10


class ActivationCache:
    """Activations of full-size images at the layers of the ablation.

    Args:
        folder (Path): one safetensors file per image; those already there are kept.
        network (nn.Module): EfficientNet-Lite0 of `benchmarks.networks.build`.
        records (sequence of ImageRecord): the images.
        views (collection of str): forwards beside the plain one, ``"flipped"``, ``"enlarged"``.

    Raises:
        InputError: another network, whose blocks the ablation does not know.
    """

    def __init__(
        self,
        folder: Path,
        network: nn.Module,
        records: Sequence[ImageRecord],
        views: Collection[View] = ("flipped", "enlarged"),
    ) -> None:
        self.network = network
        self.features = lite0_features(network)
        self.folder = folder
        self.records = records
        self.views = views
        folder.mkdir(parents=True, exist_ok=True)

    def fill(self, *, progress: bool) -> None:
        """Compute what is missing."""
        for index, record in enumerate(
            tqdm(self.records, "activations", unit="image", disable=not progress)
        ):
            if not self._path(index).exists():
                tensors = self._activations(to_tensor(load_rgb(record))[None])
                write_atomically(self._path(index), partial(save_file, tensors))

    def load(self, index: int) -> dict[str, Tensor]:
        """Activations (1, C, h, w) of one image, by ``view/layer``."""
        activations: dict[str, Tensor] = load_file(self._path(index))
        activations[f"plain/{LAST}"] = self._last(activations[f"plain/{BLOCK}"])
        return activations

    def load_layer(self, index: int, layer: str) -> Tensor:
        """Activations (1, C, h, w) of one image at one layer, the image as it is."""
        kept = BLOCK if layer == LAST else layer
        with safe_open(str(self._path(index)), framework="pt") as file:
            activations: Tensor = file.get_tensor(f"plain/{kept}")
        return self._last(activations) if layer == LAST else activations

    @torch.no_grad()
    def _last(self, of_the_block: Tensor) -> Tensor:
        activations: Tensor = self.features.last(of_the_block)
        return activations

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.safetensors"

    @torch.no_grad()
    def _activations(self, image: Tensor) -> dict[str, Tensor]:
        features, blocks = self.features, self.features.blocks
        at_stride_16 = blocks[: STRIDE_16_BLOCK + 1](features.stem(image))
        tensors = {
            f"plain/{STRIDE_16}": at_stride_16,
            f"plain/{BLOCK}": blocks[STRIDE_16_BLOCK + 1 :](at_stride_16),
        }
        if "flipped" in self.views:
            tensors[f"flipped/{BLOCK}"] = blocks(features.stem(image.flip(3))).flip(3)
        if "enlarged" in self.views:
            enlarged = F.interpolate(
                image, scale_factor=ENLARGEMENT, mode="bilinear", align_corners=False
            )
            tensors[f"enlarged/{BLOCK}"] = blocks(features.stem(enlarged))
        return {name: tensor.contiguous() for name, tensor in tensors.items()}


class Tail(nn.Module):
    """The network from one of the ablation's layers on: activations to embeddings.

    Args:
        network (EmbeddingNetwork): EfficientNet-Lite0.
        variant (BankVariant): the layer, the pooling, and what the gradient sees of the norm.
    """

    def __init__(self, network: nn.Module, variant: BankVariant) -> None:
        super().__init__()
        features = lite0_features(network)
        above: list[nn.Module] = {
            LAST: [],
            BLOCK: [features.last],
            STRIDE_16: [*features.blocks[STRIDE_16_BLOCK + 1 :], features.last],
        }[variant.layer]
        self.entry = nn.Identity()
        self.above = nn.Sequential(*above)
        self.head = cast(EmbeddingNetwork, network).head
        self.variant = variant

    def forward(self, activations: Tensor) -> Tensor:
        last = self.above(self.entry(activations))
        pooled = last.amax((2, 3)) if self.variant.pooling == "max" else last.mean((2, 3))
        embedding: Tensor = self.head(pooled)
        norm = embedding.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return embedding / (norm.detach() if self.variant.norm == "constant" else norm)


def lite0_features(network: nn.Module) -> Lite0Features:
    """The features of a network, if it is the one whose blocks the ablation knows.

    Raises:
        InputError: it is another.
    """
    if not isinstance(network, EmbeddingNetwork) or not isinstance(network.features, Lite0Features):
        raise InputError(
            "the ablation compares layers of EfficientNet-Lite0 by name and knows no other "
            f"network; a {type(network).__name__} of other features was given"
        )
    return network.features
