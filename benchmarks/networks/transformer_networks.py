"""Vision transformers, Swin and others that are explained at tokens or at channels-last maps."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.datasets.preprocess import IMAGENET_MEAN, IMAGENET_STD
from benchmarks.networks.layers import show_places
from captum_embed.command_line.networks import LoadedNetwork
from captum_embed.errors import InputError, LayerError
from captum_embed.families import place_of
from captum_embed.layouts import LayerLayout


class _Prepare(nn.Module):
    """Images as a network takes them, from those normalised as ImageNet's."""

    scale: Tensor
    shift: Tensor

    def __init__(self, size: int | None, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.size = size
        own_mean, own_std, mean_, std_ = map(torch.tensor, (IMAGENET_MEAN, IMAGENET_STD, mean, std))
        self.register_buffer("scale", (own_std / std_)[:, None, None], persistent=False)
        shift = (own_mean - mean_) / std_
        self.register_buffer("shift", shift[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.size is not None and images.shape[2:] != (self.size, self.size):
            side = (self.size, self.size)
            images = F.interpolate(images, side, mode="bilinear", antialias=True)
        return images * self.scale + self.shift


class TransformerNetwork(nn.Module):
    """Maps images to L2-normalised embeddings, and is explained at `features`.

    A network that takes images of one size is shown each image, whole, at that size.

    Args:
        loaded (LoadedNetwork): of a family that `captum_embed.families.place_of` knows.
        head (nn.Module): the network's own embeddings (N, C) to (N, D), linear.

    Attributes:
        features: the layer that the benchmark explains unless another is named, (N, C, h, w).
        layout: of the layer in the network; of tokens with their grid.
        pool: global average pooling where the embeddings are the mean of `features`; or absent.

    Raises:
        InputError: the family is not known, or the network does not run.
    """

    def __init__(self, loaded: LoadedNetwork, head: nn.Module | None = None) -> None:
        super().__init__()
        wanted, encoder = loaded.preprocessing, loaded.encoder
        try:
            place = place_of(encoder)
        except LayerError as error:
            raise InputError(f"--network {loaded.name}: {error}; or write a factory") from error
        # Before the backbone, so that this is its name.
        self.features = nn.Identity()
        self.prepare = _Prepare(wanted.image_size, wanted.mean, wanted.std)
        # Not `encoder`: of a forward function that is the network itself.
        self.backbone = encoder
        self.head = nn.Identity() if head is None else head
        self.layout = LayerLayout(place.layout, place.prefix_tokens)
        layer = encoder.get_submodule(place.last_activation)
        show_places(encoder, layer, self.layout, self.features)
        self._try(wanted.image_size)

    @torch.no_grad()
    def _try(self, size: int) -> None:
        """Finds out what only a run tells: width, grid, pooling, and the sizes of images."""
        shown: list[Tensor] = []
        with self.features.register_forward_hook(lambda *call: shown.append(call[2])):
            images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
            pooled = self.backbone(images)
        self.num_channels = pooled.shape[1]
        if self.layout.layout == "tokens":
            rows, columns = shown[0].shape[2:]
            self.layout = replace(self.layout, grid=(rows, columns))
        else:
            try:
                self.backbone(F.pad(images, (0, size // 2)))
                self.prepare.size = None
            # timm asserts, others fail at a matrix product.
            except (AssertionError, RuntimeError, ValueError):
                pass
        if torch.allclose(pooled, shown[0].mean((2, 3)), rtol=1e-3, atol=1e-5):
            self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.head(self.backbone(self.prepare(images))), dim=1)
