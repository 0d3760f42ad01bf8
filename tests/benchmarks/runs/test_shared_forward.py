from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.methods import METHODS, Query, Subject
from benchmarks.methods.method import RECOMMENDED_LAYER
from benchmarks.networks.build import EmbeddingNetwork, lite0_network
from benchmarks.runs.shared_forward import record, replayed
from captum_embed import TripletForward


class Residual(nn.Module):
    """Works in place between its modules, as torchvision's blocks do."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.second = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.first(x), inplace=True)
        out = self.second(out)
        out += x
        return F.relu(out, inplace=True)


def network() -> EmbeddingNetwork:
    torch.manual_seed(0)
    features = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(inplace=True), Residual(), nn.Conv2d(4, 6, 1)
    )
    return EmbeddingNetwork(features, nn.Linear(6, 5, bias=False)).eval().requires_grad_(False)


@contextmanager
def counted(modules: list[nn.Module]) -> Iterator[list[nn.Module]]:
    """The convolutions that really compute."""
    ran: list[nn.Module] = []
    original = nn.Conv2d._conv_forward

    def conv_forward(self: nn.Conv2d, *args: Tensor) -> Tensor:
        ran.append(self)
        return original(self, *args)

    nn.Conv2d._conv_forward = conv_forward  # type: ignore[method-assign, assignment]
    try:
        yield ran
    finally:
        nn.Conv2d._conv_forward = original  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "path", ["features", "features.2", "features.2.second", "features.2.first", "features.0"]
)
def test_a_replayed_pass_gives_the_same_and_computes_only_what_is_behind_the_layer(
    path: str,
) -> None:
    net, image = network(), torch.rand(1, 3, 17, 15)
    expected = net(image)
    recording = record(net, [net.get_submodule(path)], image)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    behind = {"features": 0, "features.0": 2}.get(path, 1)
    with counted(convolutions) as ran, replayed(recording):
        assert torch.equal(net(image), expected)
        assert torch.equal(net(image), expected)
    assert ran == convolutions[len(convolutions) - behind :] * 2


def test_sharing_stops_at_the_first_layer_to_finish() -> None:
    net, image = network(), torch.rand(1, 3, 17, 15)
    recording = record(net, [net.features, net.features[2]], image)
    assert recording is not None
    assert list(recording.outputs) == [net.features[0], net.features[1], net.features[2]]


def test_another_image_runs_for_itself() -> None:
    net = network()
    image, other, larger = (
        torch.rand(1, 3, 17, 15),
        torch.rand(1, 3, 17, 15),
        torch.rand(2, 3, 9, 9),
    )
    recording = record(net, [net.features], image)
    expected = net(other), net(larger)
    with replayed(recording):
        assert torch.equal(net(other), expected[0])
        assert torch.equal(net(larger), expected[1])


def test_gradients_at_the_layer_are_those_of_a_pass_of_its_own() -> None:
    net, image = network(), torch.rand(1, 3, 17, 15)
    recording = record(net, [net.features[2]], image)
    seen: list[Tensor] = []

    def gradient() -> Tensor:
        with net.features[2].register_forward_hook(lambda *a: seen.append(a[2])):
            loss = net(image.clone().requires_grad_())[0, 0]
        return torch.autograd.grad(loss, seen[-1])[0]

    expected = gradient()
    with replayed(recording):
        torch.testing.assert_close(gradient(), expected)
        with torch.no_grad():
            assert not net(image).requires_grad


def test_nothing_is_left_on_the_network_after_an_error_either() -> None:
    net, image = network(), torch.rand(1, 3, 17, 15)
    net.features[0].forward = net.features[0].forward  # wrapped by someone else
    before = {module: dict(vars(module)) for module in net.modules()}
    recording = record(net, [net.features], image)
    with pytest.raises(KeyError), replayed(recording):
        raise KeyError
    with pytest.raises(RuntimeError):
        record(net, [net.features], torch.rand(1, 4, 9, 9))
    assert {module: dict(vars(module)) for module in net.modules()} == before
    for module in net.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.relu(self.conv(x)))
        return out


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Sum(nn.Module):
    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return pair[0] + pair[1]


def test_what_cannot_be_shared_is_run() -> None:
    image = torch.rand(1, 3, 8, 8)
    twice = Twice()
    assert record(twice, [twice.conv], image) is None
    pairs = nn.Sequential(Pair(), Sum())
    assert record(pairs, [pairs[1]], image) is None
    assert record(pairs, [nn.Identity()], image) is None
    with replayed(None):
        assert torch.equal(pairs(image), 2 * image)


SHARING = [method for method in METHODS.values() if method.shares_forward and not method.bank]


@pytest.mark.parametrize("method", SHARING, ids=[method.name for method in SHARING])
def test_methods_that_share_give_the_maps_of_a_pass_of_their_own(method) -> None:  # type: ignore[no-untyped-def]
    net = lite0_network(8, pretrained=False).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(1, 3, 102, 96, generator=generator)
    references = tuple(
        F.normalize(torch.randn(1, 4, 8, generator=generator), dim=2) for _ in range(2)
    )
    query = Query(image, references)
    forward = TripletForward(net, margin=0.5).eval()
    others = {RECOMMENDED_LAYER: net.recommended_layer}
    explain = method.build(Subject(forward, net.features, other_layers=others))
    expected = explain(query)
    recording = record(net, {net.features, net.recommended_layer}, image)
    stem = net.features.get_submodule("stem")
    ran: list[nn.Module] = []
    first = next(module for module in stem.modules() if isinstance(module, nn.Conv2d))

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if inputs[0].any():  # A baseline of zeros is another image, and has a pass of its own.
            ran.append(module)

    with replayed(recording), first.register_forward_hook(note):
        shared = explain(query)
    assert torch.equal(shared, expected)
    assert not ran
    assert torch.count_nonzero(shared)
