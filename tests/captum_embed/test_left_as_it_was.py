"""The network, the inputs and torch are as before: after an exception anywhere, and in memory."""

import gc
import os
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from captum_embed import (
    EmbeddingLayerGradCam,
    PairForward,
    SimilarityForward,
    TripletForward,
    WeightBank,
    build_weight_bank,
    rivals,
)
from captum_embed.layer_recorder import _CALLS

# `make torture` sets more: an exception in place of every call, and thousands of maps.
EVERY = int(os.environ.get("EXCEPTION_EVERY", "29"))
MAPS = int(os.environ.get("MAPS", "60"))

IMAGES = torch.rand(3, 2, 3, 8, 9, generator=torch.Generator().manual_seed(0))


class InjectedError(Exception):
    """What is raised in place of a call."""


class RaisesAt(TorchDispatchMode):
    """Counts torch's calls, forward and backward, and raises in place of one."""

    def __init__(self, place):
        super().__init__()
        self.left = place

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.left -= 1
        if self.left == 0:
            raise InjectedError
        return func(*args, **(kwargs or {}))


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1)
    pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    encoder = nn.Sequential(*layers, *pooled)
    encoder[0].weight.requires_grad_(False)
    return encoder


def of_gradients(encoder):
    return EmbeddingLayerGradCam(TripletForward(encoder), encoder[0]).attribute(tuple(IMAGES))


def of_a_plain_function(encoder):
    def forward(first, second):
        return (encoder(first) * encoder(second)).sum(1)

    return EmbeddingLayerGradCam(forward, encoder[2]).grad_weights(tuple(IMAGES[:2]))


def of_a_bank(encoder):
    numbers = IMAGES.flatten()
    bank = WeightBank(numbers[:45].view(9, 5), numbers[:36].view(9, 4))
    grad_cam = EmbeddingLayerGradCam(TripletForward(encoder), encoder[2], weight_bank=bank)
    return grad_cam.attribute(IMAGES[0], num_neighbors=3), grad_cam.neighbors(IMAGES[1])


def encoding_references(encoder):
    return SimilarityForward(encoder, IMAGES[1], foils=IMAGES[2])


def of_references(encoder):
    return EmbeddingLayerGradCam(encoding_references(encoder), encoder[0]).attribute(IMAGES[0])


def building(encoder):
    data = [(image, place % 2) for place, image in enumerate(IMAGES.flatten(0, 1))]
    return build_weight_bank(TripletForward(encoder), encoder[2], data, batch_size=3)


def of_rivals(encoder):
    forward = PairForward(encoder, "similarity", distance="cosine")
    rivals.ScoreCAM(forward, encoder[2]).attribute(IMAGES[0], torch.ones(2, 5))
    rivals.SimilarityGradCam(forward, encoder[2]).attribute(tuple(IMAGES[:2]))
    rivals.EigenCAM(encoder, encoder[2]).attribute(IMAGES[0])
    rivals.RELAX(forward).attribute(IMAGES[0], torch.ones(2, 5), num_masks=8)


CASES = [
    (of_gradients, False),
    (of_a_plain_function, False),
    (of_a_bank, False),
    (of_references, False),
    (of_rivals, False),
    (encoding_references, True),
    (building, True),
    (building, False),
]


@contextmanager
def everything_as_before(encoder):
    def settings():
        hooks = [
            (len(each._forward_hooks), len(each._forward_pre_hooks), len(each._backward_hooks))
            for each in encoder.modules()
        ]
        modes = [each.training for each in encoder.modules()]
        wanted = [each.requires_grad for each in (*encoder.parameters(), IMAGES)]
        gradients = [each.grad for each in (*encoder.parameters(), IMAGES)]
        enabled = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        return hooks, modes, wanted, gradients, enabled, dict(_CALLS)

    def tensors():
        return [*encoder.state_dict().values(), IMAGES, torch.get_rng_state()]

    before, held = settings(), [each.clone() for each in tensors()]
    yield
    assert settings() == before
    assert all(map(torch.equal, tensors(), held))


@pytest.mark.parametrize(("call", "training"), CASES)
def test_an_exception_in_place_of_any_call_leaves_no_trace(call, training):
    encoder = network().train(training)
    with RaisesAt(0) as counted:
        call(encoder)
    calls = -counted.left
    assert calls > 20
    encoder = network().train(training)
    for place in range(1, calls, EVERY):
        with everything_as_before(encoder), pytest.raises(InjectedError), RaisesAt(place):
            call(encoder)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="Linux tells it")
def test_memory_stays_flat_over_many_maps():
    encoder = network().eval()
    calls = [of_gradients, of_a_plain_function, of_a_bank]

    def resident():
        gc.collect()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for call in calls * 10:
        call(encoder)
    size = resident()
    for number in range(MAPS):
        calls[number % len(calls)](encoder)
    # A map of these is 200 bytes, and what a call computes some 100 kB.
    assert resident() - size < 4 * 2**20
