"""The library against what it contains: a forward pass, Captum's maps, one embedding pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from captum.attr import LayerGradCam

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
    """Against the forward pass, by size of the bank: time, and memory at its peak."""
    forward = TripletForward(setup.encoder)

    def plain(images: torch.Tensor) -> Callable[[], Any]:
        def run() -> Any:
            with torch.inference_mode():
                return setup.encoder(images)

        return run

    for entries in sorted({min(1000, setup.entries), setup.entries}):
        bank = random_bank(entries).to(setup.device)
        cam = EmbeddingLayerGradCam(forward, setup.layer, weight_bank=bank)
        for images in (setup.images, setup.images[:1]):
            count = "one image" if len(images) == 1 else f"{len(images)} images"
            ours, theirs = partial(cam.attribute, images), plain(images)
            ours()  # What is computed once for a bank is no part of a query.
            peaks = [peak_bytes(task, setup.device) for task in (ours, theirs)]
            yield Comparison(
                f"transfer from {entries:,} entries, {count}",
                "plain forward pass",
                ours,
                theirs,
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
