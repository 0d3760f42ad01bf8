"""Preparation of a run: embeddings of the test images, their tuples, and the weight banks.

All of it is kept in the run's cache folder, one subfolder per protocol: a resumed run and the
worker processes read it from there. The bank and the tuples are made from the images as the
protocol shows them (full size, or the crop), like the queries.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from benchmarks.core.files import write_atomically
from benchmarks.datasets.records import ImageRecord, load_rgb
from benchmarks.methods import BankSpec, Method, distinct_banks
from benchmarks.networks.checkpoints import read_safetensors
from benchmarks.networks.layers import named_layer
from benchmarks.protocols.registry import EvaluationProtocol
from benchmarks.runs.settings import ExplainSettings
from captum_embed import TripletForward, build_weight_bank
from captum_embed.encoder_forward import Explains
from captum_embed.errors import InputError
from captum_embed.weight_bank.files import MANIFEST_NAME
from captum_embed.weight_bank.mining import Mining, mine_tuples, require_minable

# Images of one size among these are encoded together; 16 full-size ones fit in 2 GB.
BANK_BATCH = 16


class ShownImages(Dataset[tuple[Tensor, int]]):
    """(image, label) as one protocol shows the images; all of them must be readable."""

    def __init__(self, records: Sequence[ImageRecord], protocol: EvaluationProtocol) -> None:
        self.records = records
        self.protocol = protocol
        # Under torchvision's name, from which labels are known without reading the images.
        self.targets = [record.label for record in records]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        record = self.records[index]
        return self.protocol.show(load_rgb(record)), record.label


@dataclass(frozen=True)
class QueryReferences:
    """What each test image should match, and what not.

    Args:
        keys (tuple of str): B image keys.
        references (Tensor): (B, D), mean embedding of the positives of an image's tuples.
        foils (Tensor): (B, D), mean embedding of their negatives.
        counts (Tensor): (B,), tuples that count; an image without any has no references.
    """

    keys: tuple[str, ...]
    references: Tensor
    foils: Tensor
    counts: Tensor

    def of(self, key: str) -> tuple[Tensor, ...]:
        """References and foils (1, 1, D) of one image, or nothing."""
        row = self.keys.index(key)
        if not self.counts[row]:
            return ()
        return self.references[row][None, None], self.foils[row][None, None]

    def save(self, path: Path) -> None:
        tensors = {"references": self.references, "foils": self.foils, "counts": self.counts}
        metadata = {"keys": json.dumps(self.keys)}
        write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))

    @classmethod
    def load(cls, path: Path) -> QueryReferences:
        tensors, metadata = read_safetensors(path)
        return cls(tuple(json.loads(metadata["keys"])), **tensors)


@torch.no_grad()
def embed_shown(
    network: nn.Module, images: ShownImages, device: torch.device, *, progress: bool
) -> Tensor:
    """Embeddings (B, D) on the CPU, one image at a time: full-size images differ in size.

    Raises:
        InputError: an embedding is NaN or infinite, or not a vector; the image is named.
    """
    embeddings = []
    indices = range(len(images))
    for index in tqdm(indices, f"embedding ({images.protocol.name})", disable=not progress):
        embedding = network(images[index][0][None].to(device))
        if embedding.ndim != 2 or not torch.isfinite(embedding).all():
            raise InputError(
                f"{images.records[index].path}: the network's embedding has shape "
                f"{tuple(embedding.shape)} or holds NaN; expected finite numbers, (1, D)"
            )
        embeddings.append(embedding.cpu())
    return torch.cat(embeddings)


def query_references(
    forward: TripletForward,
    images: ShownImages,
    device: torch.device,
    *,
    num_tuples: int,
    mining: Literal["all", "hardest", "random"],
    seed: int,
    progress: bool,
) -> QueryReferences:
    """References of every test image, from the test images of the same protocol.

    Raises:
        InputError: a single test class, or a class with a single image, which has no positive.
    """
    labels = torch.tensor([record.label for record in images.records])
    require_minable(forward, labels)
    embeddings = embed_shown(forward.encoder, images, device, progress=progress)
    keys = tuple(record.key for record in images.records)
    if mining == "all":
        return QueryReferences(keys, *means_of_all(embeddings, labels))
    tuples = mine_tuples(
        forward, embeddings, labels, num_tuples=num_tuples, mining=mining, seed=seed
    )
    counts = tuples.active.sum(1)
    weights = tuples.active.to(embeddings) / counts.clamp(min=1)[:, None]
    references, foils = (
        torch.einsum("bm,bmd->bd", weights, embeddings[indices])
        for indices in tuples.references.unbind(2)
    )
    return QueryReferences(keys, references.contiguous(), foils.contiguous(), counts)


def means_of_all(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of the other images of each one's class (B, D), of all other classes, and the tuples.

    Example:
        >>> means_of_all(torch.tensor([[1.0], [3.0], [8.0]]), torch.tensor([0, 0, 1]))[:2]
        (tensor([[3.],
                [1.],
                [0.]]), tensor([[8.],
                [8.],
                [2.]]))
    """
    same = (labels[:, None] == labels).to(embeddings)
    in_class = same.sum(1, keepdim=True)
    own_class, everyone = same @ embeddings, embeddings.sum(0)
    positives, negatives = in_class - 1, len(labels) - in_class
    references = (own_class - embeddings) / positives.clamp(min=1)
    foils = (everyone - own_class) / negatives.clamp(min=1)
    return references, foils, (positives * negatives)[:, 0].long()


@dataclass(frozen=True)
class ProtocolCache:
    """Where one protocol's preparations are."""

    folder: Path

    @property
    def queries(self) -> Path:
        return self.folder / "queries.safetensors"

    @property
    def network(self) -> Path:
        """The state of a network that was trained for the protocol."""
        return self.folder / "network.safetensors"

    def bank(self, spec: BankSpec) -> Path:
        return self.folder / spec.folder_name


def prepare_banks(
    cache: ProtocolCache,
    methods: Sequence[Method],
    forward: TripletForward,
    layer: nn.Module,
    images: ShownImages,
    settings: ExplainSettings,
) -> None:
    """All banks that some methods borrow from, unless they are in the cache.

    Banks of one loss and mining come from the same passes, whatever their layers. What is asked
    for in two ways, by name and as the run says, is built once.
    """
    wanted: dict[tuple[int, Mining, Explains], dict[nn.Module, list[Path]]] = {}
    for spec in distinct_banks(methods):
        path = cache.bank(spec)
        # A save that was killed leaves a folder without its manifest.
        if (path / MANIFEST_NAME).exists():
            continue
        asked = spec.num_tuples or settings.num_tuples, spec.mining or settings.mining
        layers = wanted.setdefault((*asked, spec.explains), {})
        layers.setdefault(named_layer(forward.encoder, layer, spec.layer), []).append(path)
    for (num_tuples, mining, explains), layers in wanted.items():
        banks = build_weight_bank(
            TripletForward(forward.encoder, forward.margin, explains=explains).eval(),
            list(layers),
            images,
            num_tuples=None if mining == "all" else num_tuples,
            mining=mining,
            batch_size=BANK_BATCH,
            seed=settings.seed,
            keys=[record.key for record in images.records],
            progress=settings.progress,
        )
        for bank, paths in zip(banks, layers.values(), strict=True):
            for path in paths:
                bank.save(path)
