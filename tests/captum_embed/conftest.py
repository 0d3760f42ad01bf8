"""A small encoder, its triplets, and maps of them by full autograd."""

import pytest
import torch
from torch import nn


class Encoder(nn.Module):
    """Two convolutions, a nonlinear head, unit embeddings."""

    def __init__(self, channels: int = 5) -> None:
        super().__init__()
        self.below = nn.Conv2d(3, 4, 3)
        self.features = nn.Conv2d(4, channels, 3)
        self.head = nn.Linear(channels, 6)

    def forward(self, images):
        activation = self.features(torch.tanh(self.below(images))).relu()
        pooled = activation.mean((2, 3)) + activation.square().mean((2, 3))
        return nn.functional.normalize(self.head(pooled), dim=1)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Encoder()


def triplets(n=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, 3, 9, 11, generator=generator) for _ in range(3))


def by_full_autograd(encoder, images, loss_of):
    """Grad-CAM maps of each image batch, by one full forward and backward written out."""
    recorded = []
    for batch in images:
        activation = encoder.features(torch.tanh(encoder.below(batch)))
        activation.retain_grad()
        rectified = activation.relu()
        pooled = rectified.mean((2, 3)) + rectified.square().mean((2, 3))
        recorded.append((activation, nn.functional.normalize(encoder.head(pooled), dim=1)))
    loss_of(*(embedding for _, embedding in recorded)).sum().backward()
    encoder.zero_grad()
    return [
        (a.grad.mean((2, 3), keepdim=True) * a).sum(1, keepdim=True).detach() for a, _ in recorded
    ]


def triplet_loss(a, p, n, margin=4.0):
    return ((a - p).square().sum(1) - (a - n).square().sum(1) + margin).relu()
