from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TinyEncoder(nn.Module):
    """Two convolutions, global average pooling, a linear head, the unit sphere."""

    def __init__(self, dim: int = 5, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.below = nn.Conv2d(3, 4, 3, padding=1)
        self.layer = nn.Conv2d(4, 6, 3, padding=1)
        self.head = nn.Linear(6, dim, bias=False)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 2

    def forward(self, images: Tensor) -> Tensor:
        pooled = self.layer(self.below(images).tanh()).mean((2, 3))
        return F.normalize(self.head(pooled))


@pytest.fixture
def make_encoder() -> Callable[..., TinyEncoder]:
    return TinyEncoder


@pytest.fixture
def make_dataset() -> Callable[..., list[tuple[Tensor, int]]]:
    def make(
        per_class: int = 4, classes: int = 3, sizes: tuple[tuple[int, int], ...] = ((8, 8),)
    ) -> list[tuple[Tensor, int]]:
        generator = torch.Generator().manual_seed(7)
        return [
            (torch.rand(3, *sizes[i % len(sizes)], generator=generator), 10 + i % classes)
            for i in range(per_class * classes)
        ]

    return make
