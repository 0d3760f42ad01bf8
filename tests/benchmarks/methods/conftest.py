from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.methods import Query, Subject
from benchmarks.methods.match import Match
from benchmarks.methods.method import RECOMMENDED_LAYER
from benchmarks.networks.build import EmbeddingNetwork
from captum_embed import WeightBank

CHANNELS, WIDTH, TUPLES, SIZE = 12, 6, 5, (36, 44)


class AwkwardFeatures(nn.Module):
    """All that keeps Captum's rules from applying: a module that runs twice, activations as
    functions, a residual addition, a clamp, a pooling right after an activation."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, stride=2, bias=bias)
        self.norm = nn.BatchNorm2d(CHANNELS) if bias else nn.Identity()
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, 2, padding=1) if bias else nn.AvgPool2d(2)
        self.block = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=bias)
        self.last = nn.Conv2d(CHANNELS, CHANNELS, 1, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.pool(self.relu(self.norm(self.stem(images))))
        x = F.relu(self.block(x)) + x
        return self.relu(self.last(x)).clamp(max=1.5)


def frozen_network(features: nn.Module, seed: int = 0) -> EmbeddingNetwork:
    generator = torch.Generator().manual_seed(seed)
    network = EmbeddingNetwork(features, nn.Linear(CHANNELS, WIDTH, bias=False))
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = max(1, parameter[0].numel())
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.abs_().add_(0.5)
                module.running_mean.fill_(0.1)
                module.running_var.fill_(0.8)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_subject() -> Subject:
    network = frozen_network(AwkwardFeatures())
    generator = torch.Generator().manual_seed(3)
    bank = WeightBank(
        F.normalize(torch.randn(12, WIDTH, generator=generator), dim=1),
        torch.randn(12, CHANNELS, generator=generator),
        labels=torch.arange(12) // 3,
    )
    forward = Match(network).eval()
    other_layers = {RECOMMENDED_LAYER: network.features.pool}
    return Subject(forward, network.features, bank, other_layers=other_layers, budget=24, seed=5)


@pytest.fixture(scope="session")
def tiny_query() -> Query:
    generator = torch.Generator().manual_seed(1)
    image = F.interpolate(torch.randn(1, 3, 9, 11, generator=generator), SIZE, mode="bilinear")
    references, foils = F.normalize(torch.randn(2, 1, TUPLES, WIDTH, generator=generator), dim=-1)
    return Query(image, (references, foils))


@pytest.fixture(scope="session")
def bias_free_subject(tiny_subject: Subject) -> Subject:
    """Convolutions without bias, so that relevance is conserved."""
    network = frozen_network(AwkwardFeatures(bias=False))
    forward = Match(network).eval()
    return replace(tiny_subject, forward=forward, layer=network.features, bank=None)
