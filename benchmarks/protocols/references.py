"""Reference embeddings for the questions of a protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks.core.seeding import seed_of
from benchmarks.datasets.records import ImageRecord, load_rgb
from benchmarks.protocols.protocol import Embed, Source
from captum_embed.errors import InputError

BATCH = 16


def unit_embeddings(
    records: Sequence[ImageRecord], show: Callable[[Image.Image], Tensor], embed: Embed | None
) -> NDArray[np.float32]:
    """Embeddings of images, each divided by its length.

    Arrays and not tensors, which are sent to worker processes through files of shared memory.

    Args:
        records (sequence of ImageRecord): N images.
        show (Callable): an image as the network sees it, all of one size.
        embed (Callable, optional): the network.

    Returns:
        (N, D).

    Raises:
        InputError: no network was given, or an embedding is NaN or infinite; the image is named.
    """
    if embed is None:
        raise InputError("this protocol chooses by the network's embeddings: give Source an embed")
    parts = []
    for start in range(0, len(records), BATCH):
        batch = records[start : start + BATCH]
        embeddings = embed(torch.stack([show(load_rgb(record)) for record in batch]))
        for record, finite in zip(batch, torch.isfinite(embeddings).all(1), strict=True):
            if not finite:
                raise InputError(f"{record.path}: its embedding is NaN or infinite")
        parts.append(F.normalize(embeddings.float()))
    unit: NDArray[np.float32] = torch.cat(parts).numpy()
    return unit


def as_references(embeddings: NDArray[Any]) -> Tensor:
    """Embeddings (D,) or (M, D) as a question takes them, (M, D)."""
    return torch.from_numpy(np.atleast_2d(embeddings))


def another_of_class(record: ImageRecord, source: Source, protocol: str) -> ImageRecord:
    """Another image of the same class, drawn for this one.

    Args:
        record (ImageRecord): of the image.
        source (Source): all images, and the seed of the draw.
        protocol (str): whose draw it is.

    Raises:
        InputError: there is none.
    """
    others = [r for r in source.records if r.label == record.label and r.key != record.key]
    if not others:
        raise InputError(
            f"{record.key} is the only image of its class, {record.label}; the {protocol} protocol "
            "compares an image with another of its class: leave the class out"
        )
    draw = np.random.default_rng(seed_of(source.seed, protocol, record.key))
    return others[int(draw.integers(len(others)))]
