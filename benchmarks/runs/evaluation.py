"""Evaluation of one item with every method and protocol, which makes its record."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.core.seeding import seed_of, seeded
from benchmarks.datasets.records import UnreadableImageError
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
from benchmarks.networks.build import DEFAULT_NETWORK, build_network
from benchmarks.networks.checkpoints import read_safetensors
from benchmarks.networks.layers import find_layer, named_layer
from benchmarks.protocols.protocol import EvaluationProtocol, Frame, Item, Measures, Question
from benchmarks.protocols.registry import PROTOCOLS
from benchmarks.runs.preparation import ProtocolCache, QueryReferences
from benchmarks.runs.shared_forward import Recording, record, replayed
from captum_embed import TripletForward, WeightBank
from captum_embed.errors import InputError, LayerError
from captum_embed.layouts import Layout

# Width of the head that networks trained for a protocol get where the run's has none.
NEW_HEAD = 64


@dataclass(frozen=True)
class EvaluationPlan:
    """All that an evaluation needs, small enough to send to another process.

    Args:
        network (str): see `benchmarks.networks.build.build_network`.
        checkpoint (Path, optional): of the network.
        layer (str): dotted name of the layer explained.
        layout (str): of its output.
        prefix_tokens (int, optional): likewise, of tokens.
        methods (tuple of str): registry names.
        protocols (tuple of str): names in `PROTOCOLS`.
        margin (float): of the triplet loss.
        seed (int): of methods that draw.
        device (str): where the network runs.
        cache (Path): folder with a `ProtocolCache` per protocol.
        embedding_dim (int, optional): width of a new head, see `build_network`.
        budget (int): evaluations per image of the methods that take many, see
            `benchmarks.methods.budget`.
        bank_channels (int, optional): of compact banks; None: all.
        slow_keys (frozenset of str, optional): the items that methods of cost ``"slow"`` are run
            on; None: all.
    """

    network: str
    checkpoint: Path | None
    layer: str
    methods: tuple[str, ...]
    protocols: tuple[str, ...]
    margin: float
    seed: int
    device: str
    cache: Path
    layout: Layout = "channels_first"
    prefix_tokens: int | None = None
    embedding_dim: int | None = None
    budget: int = DEFAULT_BUDGET
    bank_channels: int | None = None
    slow_keys: frozenset[str] | None = None


@dataclass(frozen=True)
class Work:
    """What is measured in one go: the items of one key, by protocol.

    Test images are items of several protocols at once; those of others are on their own.

    Args:
        key (str): of the items.
        label (int): their class.
        items (dict): by the protocol's name.
    """

    key: str
    label: int
    items: dict[str, Item]

    @classmethod
    def of(cls, items: Mapping[str, Sequence[Item]]) -> list[Work]:
        """The items of all protocols, those of one key together."""
        works: dict[str, Work] = {}
        for protocol, of_protocol in items.items():
            for item in of_protocol:
                work = works.setdefault(item.key, cls(item.key, item.label, {}))
                work.items[protocol] = item
        return list(works.values())


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


@dataclass(frozen=True)
class Asked:
    """What a network is asked about an item.

    Args:
        bench (Bench): of the network.
        queries (list of Query): one for each heatmap.
        forward_seconds (float): of a plain pass.
        shared (SharedForward): the pass that methods share.
    """

    bench: Bench
    queries: list[Query]
    forward_seconds: float
    shared: SharedForward


class Bench:
    """One protocol with its methods built: maps and measures images.

    Attributes:
        compared (tuple of Bench): of the protocol's further networks, where it compares some.
    """

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
        self.compared: tuple[Bench, ...] = ()
        self.queries = QueryReferences.load(cache.queries) if cache.queries.exists() else None
        specs = distinct_banks(select(plan.methods))
        banks = {spec: WeightBank.load(cache.bank(spec)) for spec in specs}
        if (kept := plan.bank_channels) is not None:
            banks = {spec: bank.compact(kept, embeddings="float16") for spec, bank in banks.items()}
        self.subject = Subject(
            Match(forward.encoder),
            layer,
            banks.get(BankSpec()),
            other_banks=banks,
            other_layers={
                name: named_layer(forward.encoder, layer, name)
                for method in select(plan.methods)
                for name in method.all_layers
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

    def query(self, key: str, image: Tensor, question: Question | None = None) -> Query:
        """What a method is asked about an image (3, H, W); without a question, no references."""
        references: tuple[Tensor, ...] = ()
        asked = question is not None and question.references is not None
        if question is not None and question.references is not None:
            foils = question.references[:0] if question.foils is None else question.foils
            references = (question.references[None], foils[None])
        elif question is not None and self.queries is not None:
            references = self.queries.of(key)
        on_device = tuple(one.to(self.device) for one in references)
        return Query(image[None].to(self.device), on_device, asked)

    def queries_of(self, key: str, frame: Frame) -> list[Query]:
        """One query for each question of a frame."""
        questions = frame.questions
        if frame.reference is not None:
            foils = None if frame.foils is None else F.normalize(self.embed(frame.foils))
            embedding = F.normalize(self.embed(frame.reference[None]))
            questions = (Question(embedding, foils),)
        return [self.query(key, frame.image, question) for question in questions]

    def heatmap(self, name: str, query: Query) -> np.ndarray:
        """The heatmap (H, W) of one method; the same for the same seed, query and method."""
        method, explain = self.explainers[name]
        size = (query.image.shape[2], query.image.shape[3])
        signed = self.protocol.signed
        reduction = method.reduction(self.protocol.question, signed=signed)
        try:
            signed_map = explain(query)
        except (InputError, LayerError) as error:
            # What a method refuses is counted among its maps that are not finite.
            warnings.warn(f"no map by {method.title}: {error}", stacklevel=2)
            signed_map = query.image.new_full((1, 1, 1, 1), torch.nan)
        return heatmap(signed_map, size, reduction, signed=signed)

    def measure(self, item: Item) -> dict[str, Any]:
        """Measures of every method and floor on one item; ``{"left_out": reason}`` without any."""
        started = self._now()
        frame = self.protocol.frame(item)
        if frame is None:
            return {"left_out": "its box lies outside the crop"}
        height, width = frame.size
        asked = [bench._asked(item.key, frame) for bench in (self, *self.compared)]
        measured = {
            name: self._measure_method(name, item.key, asked, frame)
            for name in self.explainers
            if self.wants(name, item.key)
        }
        floors = self.protocol.floors(frame, self.embed)
        return {
            "size": [width, height],
            "box": [round(side, 3) for side in frame.box],
            "forward_seconds": round(asked[0].forward_seconds, 5),
            # One pass for all that share it, and what each method computes beside that.
            "methods_seconds": sum(one.forward_seconds for one in asked)
            + sum(seconds for _, seconds in measured.values()),
            "seconds": self._now() - started,
            "floors": floors,
            "methods": {name: measures for name, (measures, _) in measured.items()},
        }

    def _asked(self, key: str, frame: Frame) -> Asked:
        queries = self.queries_of(key, frame)
        return Asked(self, queries, *self._forward(queries[0]))

    def wants(self, name: str, key: str) -> bool:
        """Whether a method is run on the item of that key."""
        slow = self.explainers[name][0].cost == "slow"
        return not slow or self.plan.slow_keys is None or key in self.plan.slow_keys

    def _measure_method(
        self, name: str, key: str, asked: Sequence[Asked], frame: Frame
    ) -> tuple[Measures, float]:
        """What is kept of a method's heatmaps; and the seconds of all, without the shared pass."""
        timed = [one.bench._maps(name, key, one.queries, one.shared) for one in asked]
        maps = [pixels for of_network, _ in timed for pixels in of_network]
        shares = self.explainers[name][0].shares_forward
        total = sum(
            len(of_network) * (seconds - (one.shared.seconds if shares else 0.0))
            for (of_network, seconds), one in zip(timed, asked, strict=True)
        )
        finite = all(bool(np.isfinite(pixels).all()) for pixels in maps)
        maps = [pixels if np.isfinite(pixels).all() else np.zeros_like(pixels) for pixels in maps]
        measures = self.protocol.measure(maps, frame, self.embed)
        if not finite:
            measures["not_finite"] = True
        return {**measures, "seconds": round(timed[0][1], 5)}, total

    def _maps(
        self, name: str, key: str, queries: Sequence[Query], shared: SharedForward
    ) -> tuple[list[np.ndarray], float]:
        """A method's heatmaps, and the seconds that one of them takes."""
        shares = self.explainers[name][0].shares_forward
        recording = shared.recording if shares else None
        seed = seed_of(self.plan.seed, self.protocol.name, key)
        with seeded(seed, self.device), replayed(recording):
            started = self._now()
            maps = [self.heatmap(name, query) for query in queries]
            seconds = (self._now() - started) / len(queries)
        if shares:
            seconds += shared.seconds
        return maps, seconds

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
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
        self.benches = {
            name: comparing(plan, PROTOCOLS[name])
            if PROTOCOLS[name].networks
            else bench_of(plan, PROTOCOLS[name], network)
            for name in plan.protocols
        }

    @property
    def unavailable(self) -> dict[str, str]:
        """Why methods of the plan cannot serve this network, by name."""
        return {k: v for bench in self.benches.values() for k, v in bench.unavailable.items()}

    def record(self, work: Work) -> dict[str, Any]:
        """The record of the items of one key, as it stands in ``records.jsonl``."""
        record: dict[str, Any] = {"key": work.key, "label": work.label}
        try:
            record["protocols"] = {
                name: bench.measure(work.items[name])
                for name, bench in self.benches.items()
                if name in work.items
            }
        except UnreadableImageError as error:
            record["unreadable"] = str(error)
        return record


def bench_of(plan: EvaluationPlan, protocol: EvaluationProtocol, network: nn.Module) -> Bench:
    """A protocol's bench for one network."""
    forward = TripletForward(network, margin=plan.margin).eval()
    return Bench(
        plan, protocol, forward, find_layer(network, plan.layer, plan.layout, plan.prefix_tokens)
    )


def comparing(plan: EvaluationPlan, protocol: EvaluationProtocol) -> Bench:
    """The bench of a protocol that compares networks of its own, which the cache holds."""
    plans = [replace(plan, cache=plan.cache / name) for name in protocol.networks]
    first, *others = (bench_of(one, protocol, network_of(one, protocol)) for one in plans)
    first.compared = tuple(others)
    for other in others:
        first.unavailable |= other.unavailable
    first.explainers = {k: v for k, v in first.explainers.items() if k not in first.unavailable}
    return first


def starting_network(plan: EvaluationPlan) -> nn.Module:
    """The network of the run, with a head to be trained where it would have none."""
    bare = plan.checkpoint is None and plan.network == DEFAULT_NETWORK
    dim = NEW_HEAD if bare and plan.embedding_dim is None else plan.embedding_dim
    return build_network(plan.network, plan.checkpoint, dim)


def network_of(plan: EvaluationPlan, protocol: EvaluationProtocol) -> nn.Module:
    """A network that was trained for a protocol, from the plan's cache."""
    network = starting_network(plan)
    state, _ = read_safetensors(ProtocolCache(plan.cache / protocol.shows).network)
    network.load_state_dict(state)
    return network.to(plan.device)
