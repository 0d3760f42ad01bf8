"""One test image through every method and protocol: the record that all tables are made from."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.core.seeding import seeded
from benchmarks.datasets.records import ImageRecord, UnreadableImageError
from benchmarks.methods import (
    BankSpec,
    Explainer,
    Method,
    MethodUnavailableError,
    Query,
    Subject,
    distinct_banks,
    heatmap,
    select,
)
from benchmarks.methods.match import Match
from benchmarks.methods.method import DEFAULT_BUDGET
from benchmarks.networks.build import build_network, find_layer, named_layer
from benchmarks.protocols.protocol import EvaluationProtocol, Frame, Measures
from benchmarks.protocols.registry import PROTOCOLS
from benchmarks.runs.preparation import MinedQueries, ProtocolCache
from benchmarks.runs.shared_forward import Recording, record, replayed
from captum_embed import TripletForward, WeightBank


@dataclass(frozen=True)
class EvaluationPlan:
    """All that an evaluation needs, small enough to send to another process.

    Args:
        network (str): see `benchmarks.networks.build.build_network`.
        checkpoint (Path, optional): of the network.
        layer (str): dotted name of the layer explained.
        methods (tuple of str): registry names.
        protocols (tuple of str): names in `PROTOCOLS`.
        margin (float): of the triplet loss.
        num_neighbors (int): bank entries a query borrows from.
        seed (int): of methods that draw.
        device (str): where the network runs.
        cache (Path): folder with a `ProtocolCache` per protocol.
        embedding_dim (int, optional): width of a new head, see `build_network`.
        budget (int): evaluations per image of the methods that take many, see
            `benchmarks.methods.budget`.
        slow_keys (frozenset of str, optional): the images that methods of cost ``"slow"`` are run
            on; None: all.
    """

    network: str
    checkpoint: Path | None
    layer: str
    methods: tuple[str, ...]
    protocols: tuple[str, ...]
    margin: float
    num_neighbors: int
    seed: int
    device: str
    cache: Path
    embedding_dim: int | None = None
    budget: int = DEFAULT_BUDGET
    slow_keys: frozenset[str] | None = None


@dataclass(frozen=True)
class SharedForward:
    """A forward pass that methods share.

    Args:
        recording (Recording, optional): None where the network allows no sharing.
        seconds (float): what a method is spared by it. It counts in the time of every method that
            shares, so that times are those of a method used alone.
    """

    recording: Recording | None
    seconds: float


class Bench:
    """One protocol with its methods built: maps and measures images."""

    def __init__(
        self,
        plan: EvaluationPlan,
        protocol: EvaluationProtocol,
        forward: TripletForward,
        layer: nn.Module,
    ) -> None:
        cache = ProtocolCache(plan.cache / protocol.shows)
        self.plan = plan
        self.protocol = protocol
        self.device = torch.device(plan.device)
        self.network = forward.encoder
        self.queries = MinedQueries.load(cache.queries) if cache.queries.exists() else None
        banks = {
            spec: WeightBank.load(cache.bank(spec)) for spec in distinct_banks(select(plan.methods))
        }
        self.subject = Subject(
            Match(forward.encoder),
            layer,
            banks.get(BankSpec()),
            plan.num_neighbors,
            other_banks=banks,
            other_layers={
                spec.layer: named_layer(forward.encoder, layer, spec.layer) for spec in banks
            },
            budget=plan.budget,
            seed=plan.seed,
        )
        self.explainers: dict[str, tuple[Method, Explainer]] = {}
        self.unavailable: dict[str, str] = {}
        for method in select(plan.methods):
            self._build(method)

    def _build(self, method: Method) -> None:
        try:
            self.explainers[method.name] = (method, method.build(self.subject))
        except MethodUnavailableError as reason:
            self.unavailable[method.name] = str(reason)

    def query(self, key: str, image: Tensor, *, with_references: bool = True) -> Query:
        references: tuple[Tensor, ...] = ()
        if with_references and self.queries is not None:
            references = tuple(r.to(self.device) for r in self.queries.references_of(key))
        return Query(image[None].to(self.device), references)

    def heatmap(self, name: str, query: Query) -> np.ndarray:
        """The heatmap (H, W) of one method; the same for the same seed, query and method."""
        method, explain = self.explainers[name]
        size = (query.image.shape[2], query.image.shape[3])
        return heatmap(explain(query), size, method.map_power)

    def measure(self, image: ImageRecord) -> dict[str, Any]:
        """Measures of every method and floor on one image; ``{"left_out": reason}`` without any."""
        frame = self.protocol.frame(image)
        if frame is None:
            return {"left_out": "its box lies outside the crop"}
        query = self.query(image.key, frame.image)
        height, width = frame.size
        forward_seconds, shared = self._forward(query)
        return {
            "size": [width, height],
            "box": [round(side, 3) for side in frame.box],
            "num_tuples": query.references[0].shape[1] if query.references else None,
            "forward_seconds": round(forward_seconds, 5),
            "floors": self.protocol.floors(frame, self._embed),
            "methods": {
                name: self._measure_method(name, image.key, query, frame, shared)
                for name in self.explainers
                if self._wants(name, image.key)
            },
        }

    def _wants(self, name: str, key: str) -> bool:
        slow = self.explainers[name][0].cost == "slow"
        return not slow or self.plan.slow_keys is None or key in self.plan.slow_keys

    def _measure_method(
        self, name: str, key: str, query: Query, frame: Frame, shared: SharedForward
    ) -> Measures:
        shares = self.explainers[name][0].shares_forward
        recording = shared.recording if shares else None
        seed = seed_of(self.plan.seed, self.protocol.name, key)
        with seeded(seed, self.device), replayed(recording):
            started = self._now()
            pixels = self.heatmap(name, query)
            seconds = self._now() - started
        if shares:
            seconds += shared.seconds
        finite = bool(np.isfinite(pixels).all())
        pixels = pixels if finite else np.zeros_like(pixels)
        measures = self.protocol.measure(pixels, frame, self._embed)
        if not finite:
            measures["not_finite"] = True
        return {**measures, "seconds": round(seconds, 5)}

    @torch.no_grad()
    def _embed(self, images: Tensor) -> Tensor:
        """Embeddings (N, D) of images (N, 3, H, W), both on the CPU."""
        embeddings: Tensor = self.network(images.to(self.device)).cpu()
        return embeddings

    @torch.no_grad()
    def _timed_forward(self, query: Query) -> float:
        started = self._now()
        self.network(query.image)
        return self._now() - started

    def _forward(self, query: Query) -> tuple[float, SharedForward]:
        """Seconds of the plain pass; and the one that methods share, with what it spares them."""
        layers = {self.subject.layer, *self.subject.other_layers.values()}
        # Not timed: the first pass on an image of a new size prepares what all others use.
        recording = record(self.network, layers, query.image)
        seconds = self._timed_forward(query)
        with replayed(recording):
            rest = self._timed_forward(query)
        return seconds, SharedForward(recording, max(0.0, seconds - rest))

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class Evaluator:
    """All protocols of a plan, with one network."""

    def __init__(self, plan: EvaluationPlan) -> None:
        network = build_network(plan.network, plan.checkpoint, plan.embedding_dim).to(plan.device)
        layer = find_layer(network, plan.layer)
        forward = TripletForward(network, margin=plan.margin).eval()
        self.benches = {
            name: Bench(plan, PROTOCOLS[name], forward, layer) for name in plan.protocols
        }

    @property
    def unavailable(self) -> dict[str, str]:
        """Why methods of the plan cannot serve this network, by name."""
        return {k: v for bench in self.benches.values() for k, v in bench.unavailable.items()}

    def record(self, image: ImageRecord) -> dict[str, Any]:
        """The record of one image, as it stands in ``records.jsonl``."""
        record: dict[str, Any] = {"key": image.key, "label": image.label}
        try:
            record["protocols"] = {n: bench.measure(image) for n, bench in self.benches.items()}
        except UnreadableImageError as error:
            record["unreadable"] = str(error)
        return record


def seed_of(seed: int, *names: str) -> int:
    """A seed that depends on nothing but the run's seed and the names.

    Example:
        >>> seed_of(0, "boxes", "a.jpg") == seed_of(0, "boxes", "a.jpg") != seed_of(0, "boxes", "b")
        True
    """
    digest = hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:6], "big")


def sample(records: Sequence[ImageRecord], limit: int | None, seed: int) -> list[ImageRecord]:
    """At most `limit` images at random, in the data set's order; a smaller limit takes a subset."""
    if limit is None or limit >= len(records):
        return list(records)
    drawn = sorted(records, key=lambda record: seed_of(seed, record.key))[:limit]
    keys = {record.key for record in drawn}
    return [record for record in records if record.key in keys]
