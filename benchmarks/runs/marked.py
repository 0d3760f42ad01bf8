"""The three networks of the mark protocol: trained from one start, checked, and kept in the cache.

The head is trained first, then the tail: the last blocks and the head of EfficientNet-Lite0, all of
any other network. A run concludes nothing from networks that did not learn what they should: the
one that was trained with tied marks must retrieve by the mark, the one with marks at random must
not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.core.files import write_atomically, write_json
from benchmarks.core.seeding import seed_of
from benchmarks.datasets.choice import DataChoice
from benchmarks.datasets.records import ImageRecord
from benchmarks.methods import select
from benchmarks.networks.build import EmbeddingNetwork
from benchmarks.networks.layers import find_layer
from benchmarks.protocols.mark import MarkProtocol, followed, marks_of
from benchmarks.protocols.protocol import Source
from benchmarks.protocols.registry import PROTOCOLS
from benchmarks.results.tables import retrieval_text
from benchmarks.runs.evaluation import EvaluationPlan, network_of, starting_network
from benchmarks.runs.preparation import ProtocolCache, ShownImages, prepare_banks
from benchmarks.runs.settings import ExplainSettings
from benchmarks.training.tail import TailTraining, in_batches, split, train_tail
from captum_embed import TripletForward
from captum_embed.errors import InputError

PROTOCOL = "mark"
HEAD_STEPS = 100
MARGIN = 0.5
# The largest squared distance of unit vectors: every triplet has a loss, and so a gradient, also
# where training has driven the loss to zero.
BANK_MARGIN = 4.0
# Test images that retrieval is checked on, at most.
MOST_CHECKED = 300

Retrieval = dict[str, dict[str, float]]


class MarkedImages(ShownImages):
    """(image, label) of the training photographs, as one of the networks sees them.

    Args:
        records (sequence of ImageRecord): with their objects in the crop.
        protocol (MarkProtocol): shows the images.
        network (str): of `NETWORKS`.
        seed (int): of the marks that are drawn, and of their places.
    """

    def __init__(
        self, records: Sequence[ImageRecord], protocol: MarkProtocol, network: str, seed: int
    ) -> None:
        super().__init__(records, protocol)
        self.network = network
        self.seed = seed
        self.tied = marks_of(records)

    def mark_of(self, record: ImageRecord) -> int | None:
        if self.network == "absent":
            return None
        if self.network == "tied":
            return self.tied[record.label]
        draw = np.random.default_rng(seed_of(self.seed, PROTOCOL, "drawn", record.key))
        return int(draw.integers(len(self.tied)))

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.shown(index), self.targets[index]

    def shown(self, index: int, *, without_object: bool = False) -> Tensor:
        """One photograph, (3, H, W)."""
        record = self.records[index]
        assert isinstance(self.protocol, MarkProtocol)
        shown = self.protocol.marked(
            record, self.mark_of(record), self.seed, "training", without_object=without_object
        )
        if shown is None:
            raise InputError(f"{record.path}: the object lies outside the crop; leave it out")
        return shown[0]


def prepare_networks(
    settings: ExplainSettings, plan: EvaluationPlan, data: DataChoice, steps: int
) -> None:
    """Train what is not trained yet, check it, and build the banks of all three networks.

    A run without the protocol needs none of it.

    Raises:
        InputError: retrieval does not follow the mark where it should, or does where it should
            not; or fewer than two training classes.
    """
    if PROTOCOL not in plan.protocols:
        return
    protocol = PROTOCOLS[PROTOCOL]
    assert isinstance(protocol, MarkProtocol)
    records = [r for r in data.train.records if protocol.crops.frame(r) is not None]
    for name in protocol.networks:
        of_network = replace(plan, cache=plan.cache / name)
        images = MarkedImages(records, protocol, name, settings.seed)
        path = ProtocolCache(of_network.cache / protocol.shows).network
        if not path.exists():
            network = starting_network(plan)
            _train(network.to(plan.device), images, name, steps, settings)
            state = {k: v.cpu().contiguous() for k, v in network.state_dict().items()}
            _save(state, path)
    _check(settings, plan, protocol, data, steps)
    for name in protocol.networks:
        of_network = replace(plan, cache=plan.cache / name)
        network = network_of(of_network, protocol)
        prepare_banks(
            ProtocolCache(of_network.cache / protocol.shows),
            select(plan.methods),
            TripletForward(network, margin=BANK_MARGIN).eval(),
            find_layer(network, plan.layer, plan.layout, plan.prefix_tokens),
            MarkedImages(records, protocol, name, settings.seed),
            settings,
        )


def retrieval_of(plan: EvaluationPlan) -> Retrieval | None:
    """Retrieval by the networks of a run; None for a run without the protocol."""
    path = _retrieval_file(plan)
    if PROTOCOL not in plan.protocols:
        return None
    retrieval: Retrieval = json.loads(path.read_text(encoding="utf-8"))
    return retrieval


def _retrieval_file(plan: EvaluationPlan) -> Path:
    return plan.cache / "mark_retrieval.json"


def _save(state: dict[str, Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: save_file(state, temporary))


def _train(
    network: nn.Module, images: MarkedImages, name: str, steps: int, settings: ExplainSettings
) -> None:
    what, progress = f"training, marks {name}", settings.progress
    shown = [
        images.shown(index, without_object=hidden)
        for hidden in (False, True)
        for index in range(len(images))
    ]
    labels = 2 * images.targets
    trunk, tail = split(network)
    activations = in_batches(trunk, shown, what, progress=progress)
    training = TailTraining(steps, MARGIN, seed=settings.seed)
    if isinstance(tail, EmbeddingNetwork):
        # What is below the head does not change yet, and is run once.
        pooled = in_batches(nn.Sequential(tail.features, tail.pool), activations)
        head = EmbeddingNetwork(nn.Identity(), tail.head)
        first = replace(training, steps=HEAD_STEPS, head_learning_rate=1e-2)
        train_tail(head, pooled, labels, first, what, progress=progress)
    train_tail(tail, activations, labels, training, what, progress=progress)


def _check(
    settings: ExplainSettings,
    plan: EvaluationPlan,
    protocol: MarkProtocol,
    data: DataChoice,
    steps: int,
) -> None:
    """Print and keep by what each network retrieves; refuse to go on from the wrong thing."""
    path = _retrieval_file(plan)
    if not path.exists():
        write_json(path, _retrieval(settings, plan, protocol, data))
    retrieval: Retrieval = json.loads(path.read_text(encoding="utf-8"))
    print(retrieval_text(retrieval))
    tied, random = retrieval["tied"], retrieval["random"]
    if not (tied["mark"] > tied["class"] and random["class"] > random["mark"]):
        raise InputError(
            f"{retrieval_text(retrieval)}. The mark protocol concludes nothing from this: with "
            "tied marks retrieval should follow the mark, with marks at random the class. Change "
            f"--mark-steps (now {steps}) or the training classes, and choose another --output"
        )


def _retrieval(
    settings: ExplainSettings, plan: EvaluationPlan, protocol: MarkProtocol, data: DataChoice
) -> dict[str, Any]:
    source = Source(
        data.test.records, MOST_CHECKED, settings.seed, train_records=data.train.records
    )
    items = protocol.items(source)
    kept = [(item, frame) for item in items if (frame := protocol.frame(item)) is not None]
    shown = [frame.image for _, frame in kept]
    labels, marks = [item.label for item, _ in kept], [item.number for item, _ in kept]
    retrieval = {}
    for name in protocol.networks:
        network = network_of(replace(plan, cache=plan.cache / name), protocol)
        embeddings = in_batches(network, shown, f"retrieval, {name}", progress=settings.progress)
        retrieval[name] = followed(embeddings.cpu(), labels, marks)
    return retrieval
