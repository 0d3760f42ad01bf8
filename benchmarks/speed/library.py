"""The library against what it contains: a forward pass, Captum's maps, one embedding pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from captum.attr import LayerGradCam
from torch import nn

from benchmarks.runs.memory import peak_bytes
from benchmarks.speed.comparison import WIDTH, Comparison, Setup
from captum_embed import (
    EmbeddingLayerGradCam,
    TripletForward,
    WeightBank,
    build_weight_bank,
)


def random_bank(entries: int, dim: int = WIDTH, channels: int = WIDTH) -> WeightBank:
    """A bank of random numbers."""
    return WeightBank(torch.randn(entries, dim), torch.randn(entries, channels).half().float())


def transfer(setup: Setup) -> Iterator[Comparison]:
    """Against the forward pass, by size of the bank and kind of pass: time, and peak memory."""
    autocast = partial(torch.autocast, setup.device.type, torch.bfloat16)
    network = setup.encoder, setup.layer
    last = copy.deepcopy(network)
    last[0].to(memory_format=torch.channels_last)
    images_last = setup.images.contiguous(memory_format=torch.channels_last)
    for entries in sorted({min(1000, setup.entries), setup.entries}):
        bank = random_bank(entries).to(setup.device)
        yield from _transfers(bank, *network, setup.images)
    yield from _transfers(bank, *last, images_last, ", channels last")
    yield from _transfers(bank, *network, setup.images, ", autocast to bfloat16", autocast)


def _transfers(
    bank: WeightBank,
    encoder: nn.Module,
    layer: nn.Module,
    images: torch.Tensor,
    kind: str = "",
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[Comparison]:
    cam = EmbeddingLayerGradCam(TripletForward(encoder), layer, weight_bank=bank)

    def ours(queries: torch.Tensor) -> None:
        with context():
            cam.attribute(queries)

    def plain(queries: torch.Tensor) -> None:
        with torch.inference_mode(), context():
            encoder(queries)

    for queries in (images, images[:1]):
        count = "one image" if len(queries) == 1 else f"{len(queries)} images"
        ours(queries)  # What is computed once for a bank is no part of a query.
        peaks = [peak_bytes(partial(run, queries), images.device) for run in (ours, plain)]
        yield Comparison(
            f"transfer from {len(bank):,} entries, {count}{kind}",
            "plain forward pass",
            partial(ours, queries),
            partial(plain, queries),
            facts={"times its peak memory": peaks[0] / peaks[1]},
        )


def gradients(setup: Setup) -> Iterator[Comparison]:
    """Maps of a triplet, and of many tuples; `peers` has those of a similarity."""
    anchor, positive, negative = setup.images[:3].split(1)
    forward = TripletForward(setup.encoder, margin=1e4)
    ours = EmbeddingLayerGradCam(forward, setup.layer)
    captums = LayerGradCam(forward, setup.layer)
    # Captum's explains the last execution alone, so that three maps take three calls.
    triplet = (anchor, positive, negative)
    orders = (triplet, (positive, negative, anchor), (negative, anchor, positive))
    yield Comparison(
        "three maps of a triplet",
        "Captum's LayerGradCam, a call for each",
        lambda: ours.attribute(triplet),
        lambda: [captums.attribute(order) for order in orders],
    )
    positives, negatives = torch.randn(2, 1, 50, WIDTH, device=setup.device)
    yield Comparison(
        "one map of 50 tuples",
        "50 maps of one tuple",
        lambda: ours.attribute(anchor, additional_forward_args=(positives, negatives)),
        lambda: [
            ours.attribute(anchor, additional_forward_args=(positives[:, [i]], negatives[:, [i]]))
            for i in range(50)
        ],
    )


def building(setup: Setup) -> Iterator[Comparison]:
    """A bank against embedding its images."""
    repeats = -(-setup.num_images // len(setup.images))
    images = setup.images.repeat(repeats, 1, 1, 1)[: setup.num_images]
    dataset = [(image, index % 4) for index, image in enumerate(images)]
    forward = TripletForward(setup.encoder)

    def embed() -> None:
        with torch.inference_mode():
            for batch in images.split(16):
                setup.encoder(batch)

    for budget, named in ((2**30, "activations kept"), (0, "activations not kept")):
        yield Comparison(
            f"building a bank of {len(images)} images, {named}",
            "embedding the images once",
            partial(
                build_weight_bank,
                forward,
                setup.layer,
                dataset,
                batch_size=16,
                activation_budget=budget,
                progress=False,
            ),
            embed,
        )
