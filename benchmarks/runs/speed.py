"""Ratios of running times, measured in turns: one, the other, and again.

A ratio within one run outlives the machine; seconds do not.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn
from tqdm import tqdm

from captum_embed import (
    EmbeddingLayerGradCam,
    SimilarityForward,
    TripletForward,
    WeightBank,
    build_weight_bank,
)
from captum_embed.command_line.networks import chosen_device

_WIDTH = 512


@dataclass(frozen=True)
class Ratio:
    """What was timed against what.

    Args:
        what (str): the part of the library.
        against (str): what a user would pay without it.
        ratio (float): median of the ratios of all turns.
        seconds (float): median of the part itself.
    """

    what: str
    against: str
    ratio: float
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Scene:
    encoder: nn.Module
    layer: nn.Module
    images: Tensor
    triplet: tuple[Tensor, Tensor, Tensor]
    entries: int
    num_images: int


def measure(
    *,
    device: str,
    side: int,
    turns: int,
    entries: int,
    images: int,
    seed: int,
    progress: bool,
) -> tuple[list[Ratio], dict[str, Any]]:
    """Every ratio, and the machine it was measured on.

    Args:
        device (str): cpu, cuda or auto.
        side (int): of the square images, in pixels.
        turns (int): of each pair.
        entries (int): of the largest bank.
        images (int): of the bank that is built.
        seed (int): of network, images and embeddings.
        progress (bool): show a bar.
    """
    from torchvision.models import resnet18

    where = chosen_device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = resnet18(num_classes=_WIDTH).eval().requires_grad_(False).to(where)
        photographs = torch.rand(16, 3, side, side).to(where)
        triplet = tuple(torch.rand(3, 1, 3, side, side).to(where))
        scene = _Scene(encoder, encoder.layer4, photographs, triplet, entries, images)
        pairs = [*_transfers(scene), *_gradients(scene), *_building(scene), *_search(scene)]
    ratios = []
    for what, against, ours, theirs in tqdm(pairs, "speed", disable=not progress, leave=False):
        ratios.append(_side_by_side(what, against, ours, theirs, turns, where))
    about = {
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[1] if hasattr(os, "getloadavg") else None,
    }
    return ratios, about


Pair = tuple[str, str, Callable[[], Any], Callable[[], Any]]


def _synthetic_bank(scene: _Scene, entries: int) -> WeightBank:
    channels = 512
    return WeightBank(torch.randn(entries, _WIDTH), torch.randn(entries, channels).half().float())


def _transfers(scene: _Scene) -> Iterator[Pair]:
    forward = TripletForward(scene.encoder)

    def plain(images: Tensor) -> Callable[[], Any]:
        def run() -> Any:
            with torch.inference_mode():
                return scene.encoder(images)

        return run

    for entries in sorted({min(1000, scene.entries), scene.entries}):
        bank = _synthetic_bank(scene, entries)
        transfer = EmbeddingLayerGradCam(forward, scene.layer, weight_bank=bank)
        for images in (scene.images, scene.images[:1]):
            count = "one image" if len(images) == 1 else f"{len(images)} images"
            yield (
                f"transfer from {entries:,} entries, {count}",
                "plain forward pass",
                partial(transfer.attribute, images),
                plain(images),
            )


def _gradients(scene: _Scene) -> Iterator[Pair]:
    anchor, positive, negative = scene.triplet
    forward = TripletForward(scene.encoder, margin=1e4)
    ours = EmbeddingLayerGradCam(forward, scene.layer)
    captums = LayerGradCam(forward, scene.layer)
    # Captum's explains the last execution alone, so that three maps take three calls.
    orders = (scene.triplet, (positive, negative, anchor), (negative, anchor, positive))
    yield (
        "three maps of a triplet",
        "Captum's LayerGradCam, a call for each",
        lambda: ours.attribute(scene.triplet),
        lambda: [captums.attribute(order) for order in orders],
    )
    positives, negatives = torch.randn(2, 1, 50, _WIDTH, device=anchor.device)
    yield (
        "one map of 50 tuples",
        "50 maps of one tuple",
        lambda: ours.attribute(anchor, additional_forward_args=(positives, negatives)),
        lambda: [
            ours.attribute(anchor, additional_forward_args=(positives[:, [i]], negatives[:, [i]]))
            for i in range(50)
        ],
    )
    reference = torch.randn(1, _WIDTH, device=anchor.device)
    similar = SimilarityForward(scene.encoder, references=reference)
    mine, captum = EmbeddingLayerGradCam(similar, scene.layer), LayerGradCam(similar, scene.layer)
    yield (
        "one map of a similarity",
        "Captum's LayerGradCam",
        lambda: mine.attribute(anchor),
        lambda: captum.attribute(anchor),
    )


def _building(scene: _Scene) -> Iterator[Pair]:
    repeats = -(-scene.num_images // len(scene.images))
    images = scene.images.repeat(repeats, 1, 1, 1)[: scene.num_images]
    dataset = [(image, index % 4) for index, image in enumerate(images)]
    forward = TripletForward(scene.encoder)

    def embed() -> None:
        with torch.inference_mode():
            for batch in images.split(16):
                scene.encoder(batch)

    for budget, named in ((2**30, "activations kept"), (0, "activations not kept")):
        yield (
            f"building a bank of {len(images)} images, {named}",
            "embedding the images once",
            partial(
                build_weight_bank,
                forward,
                scene.layer,
                dataset,
                batch_size=16,
                activation_budget=budget,
                progress=False,
            ),
            embed,
        )


def _search(scene: _Scene) -> Iterator[Pair]:
    bank = _synthetic_bank(scene, scene.entries)
    for count in (1, 64, 1024):
        queries = torch.randn(count, _WIDTH)
        yield (
            f"search of {count} queries in {scene.entries:,} entries",
            "one single-precision matrix product",
            partial(bank.search, queries, 10),
            partial(torch.matmul, queries, bank.embeddings.T),
        )


def _side_by_side(
    what: str,
    against: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    turns: int,
    device: torch.device,
) -> Ratio:
    ours()
    theirs()
    pairs = [(_seconds(ours, device), _seconds(theirs, device)) for _ in range(turns)]
    ratio = statistics.median(one / other for one, other in pairs)
    return Ratio(what, against, ratio, statistics.median(one for one, _ in pairs))


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def as_markdown(ratios: list[Ratio], about: dict[str, Any], command: str) -> str:
    """The table, the machine and the command."""
    rows = "\n".join(
        f"| {r.what} | {r.against} | {r.ratio:.2f} | {1000 * r.seconds:.1f} |" for r in ratios
    )
    machine = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in about.items())
    return (
        f"| what | against | ratio | ms |\n|---|---|---:|---:|\n{rows}\n\n"
        f"Medians of turns taken in alternation. Machine: {machine}.\n\n```\n{command}\n```\n"
    )
