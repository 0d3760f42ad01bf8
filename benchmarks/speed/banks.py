"""Banks: search against torch and FAISS, growth with size, indexes of FAISS, bytes on disk."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.comparison import WIDTH, Comparison, Setup
from benchmarks.speed.library import random_bank
from captum_embed import WeightBank
from captum_embed.weight_bank import IndexedBank

NO_FAISS = "" if find_spec("faiss") else "pip install faiss-cpu"
K = 10
_PRODUCT = "one single-precision matrix product"
# Of the embeddings that indexes are built over: as many as a small network has.
INDEX_WIDTH = 128
# Embeddings of a class, which lie around a common centre.
CLASS_SIZE = 100
INDEX_SETTINGS: tuple[tuple[str, dict[str, int]], ...] = (
    ("flat", {}),
    ("ivf", {}),
    ("ivf", {"nprobe": 8}),
    ("hnsw", {"ef_construction": 40}),
    ("hnsw", {"ef_construction": 40, "ef_search": 256}),
)
QUERIES = 256


def search(setup: Setup) -> Iterator[Comparison]:
    """Exact search against one product, and against what else answers the question."""
    bank = random_bank(setup.entries).to(setup.device)
    rows = bank.embeddings
    # As an encoder that collapsed embeds.
    equal = WeightBank(rows[:1].repeat(setup.entries, 1), bank.weights)
    # Of which eight bits cannot tell the nearest: few classes, each around a centre.
    alike = _around_few_centres(setup.entries + 1024).to(setup.device)
    of_alike = WeightBank(alike[1024:], bank.weights)
    for count in (1, 64, 1024):
        queries = torch.randn(count, WIDTH, device=setup.device)
        what = f"search of {count} queries in {setup.entries:,} entries"
        ours = partial(bank.search, queries, K)
        against, product = _PRODUCT, partial(torch.matmul, queries, rows.T)
        yield Comparison(what, against, ours, product)
        yield Comparison(f"{what}, all equal", against, partial(equal.search, queries, K), product)
        ours_alike = partial(of_alike.search, alike[:count], K)
        yield Comparison(f"{what}, of 20 tight classes", against, ours_alike, product)
        if count < 1024:
            # Of 1,024, the table of all distances takes gigabytes.
            yield Comparison(what, "torch.cdist and topk", ours, partial(_by_torch, queries, rows))
        against = "FAISS IndexFlatL2"
        if NO_FAISS:
            yield Comparison(what, against, missing=NO_FAISS)
        else:
            yield Comparison(
                what, against, ours, partial(_flat(rows).search, queries.cpu().numpy(), K)
            )


def _around_few_centres(count: int) -> Tensor:
    labels = torch.arange(count) % 20
    rows = torch.nn.functional.normalize(torch.randn(20, WIDTH))[labels]
    return torch.nn.functional.normalize(rows + 0.01 * torch.randn(count, WIDTH))


def _by_torch(queries: Tensor, rows: Tensor) -> Any:
    return torch.cdist(queries, rows).topk(K, largest=False)


def _flat(rows: Tensor) -> Any:
    import faiss

    index: Any = faiss.IndexFlatL2(rows.shape[1])
    index.add(rows.cpu().numpy())
    return index


def growth(setup: Setup) -> Iterator[Comparison]:
    """The same search in ten times as many entries."""
    queries = torch.randn(64, WIDTH, device=setup.device)
    sizes = [max(K, setup.entries // step) for step in (100, 10, 1)]
    for smaller, larger in pairwise(sizes):
        few, many = (random_bank(size, channels=8).to(setup.device) for size in (smaller, larger))
        yield Comparison(
            f"search of 64 queries in {larger:,} entries",
            f"in {smaller:,}",
            partial(many.search, queries, K),
            partial(few.search, queries, K),
            queries=64,
        )


def index(setup: Setup) -> Iterator[Comparison]:
    """Indexes of FAISS against exact search of the same bank: speed, and what they miss."""
    if NO_FAISS:
        yield Comparison("search through an index", "exact search", missing=NO_FAISS)
        return
    embeddings = clustered(setup.entries + QUERIES, INDEX_WIDTH)
    queries = embeddings[setup.entries :].to(setup.device)
    bank = WeightBank(embeddings[: setup.entries], torch.zeros(setup.entries, 1)).to(setup.device)
    expected = bank.search(queries, K)[1]
    with tempfile.TemporaryDirectory() as folder:
        for kind, settings in INDEX_SETTINGS:
            existed = Path(folder, f"bank.{kind}.safetensors").exists()
            started = time.perf_counter()
            indexed = IndexedBank(bank, kind, Path(folder, "bank"), progress=False, **settings)
            opened = time.perf_counter() - started
            told = "".join(f", {name} {value}" for name, value in settings.items())
            facts = {
                "recall": recall(indexed.search(queries, K)[1], expected),
                "seconds to open" if existed else "seconds to build": opened,
                "bytes per entry on disk": Path(folder, f"bank.{kind}.safetensors").stat().st_size
                / setup.entries,
            }
            for count in (1, QUERIES):
                yield Comparison(
                    f"{count} queries in {setup.entries:,} entries, {kind}{told}",
                    "exact search",
                    partial(indexed.search, queries[:count], K),
                    partial(bank.search, queries[:count], K),
                    queries=count,
                    facts=facts if count > 1 else {},
                )


def clustered(count: int, dim: int) -> Tensor:
    """Unit vectors (count, dim) around centres, one for a hundred of them, in any order."""
    centres = torch.randn(-(-count // CLASS_SIZE), dim)
    rows = centres[torch.randint(len(centres), (count,))]
    return torch.nn.functional.normalize(rows.add_(torch.randn(count, dim), alpha=0.7))


def recall(indices: Tensor, expected: Tensor) -> float:
    """The share of the nearest (Q, k) that is among those given.

    Example:
        >>> recall(torch.tensor([[1, 2], [5, 4]]), torch.tensor([[1, 3], [4, 5]]))
        0.75
    """
    hits = (indices[:, :, None] == expected[:, None]).any(2)
    return float(hits.double().mean())


def size(setup: Setup) -> Iterator[Comparison]:
    """Bytes of a saved entry, by what is kept of it; nothing is timed."""
    entries, channels = min(10_000, setup.entries), 2048
    bank = random_bank(entries, channels=channels)
    bank = WeightBank(bank.embeddings, bank.weights, torch.arange(entries))
    kinds = {"float32": bank, "bfloat16": bank.to(torch.bfloat16)}
    for kept in (200, 50):
        compact = bank.compact(kept, embeddings="float16")
        kinds[f"float16, the {kept} largest weights"] = compact
    whole = 0.0
    for named, saved in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            saved.save(Path(folder, "bank"))
            files = Path(folder, "bank").iterdir()
            per_entry = sum(file.stat().st_size for file in files) / entries
        whole = whole or per_entry
        yield Comparison(
            f"a saved entry of {WIDTH} numbers and {channels:,} weights, {named}",
            "float32",
            facts={"ratio": per_entry / whole, "bytes per entry": per_entry},
        )
