"""The options of ``python -m benchmarks localize``, each with its one home and name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.core.settings import ClassNumbers, names, positive_int, setting
from benchmarks.datasets.choice import DATA_HELP, DOWNLOAD_HELP, SPLIT_HELP, SPLITS
from benchmarks.methods.method import DEFAULT_BUDGET
from benchmarks.networks.build import DEFAULT_NETWORK, EMBEDDING_DIM, NETWORK_HELP
from benchmarks.protocols.registry import DEFAULT_PROTOCOLS, PROTOCOLS


@dataclass(frozen=True)
class LocalizeSettings:
    data: str = setting(DATA_HELP)
    output: Path = setting("folder of the run", parse=Path, changes_results=False)
    train_classes: ClassNumbers | None = setting(
        "classes of the weight bank, such as 1-10", default=None, parse=ClassNumbers.parse
    )
    test_classes: ClassNumbers | None = setting(
        "classes to test on, such as 26-35", default=None, parse=ClassNumbers.parse
    )
    split: str = setting(SPLIT_HELP, default=SPLITS[0], choices=SPLITS)
    download: bool = setting(DOWNLOAD_HELP, default=False, changes_results=False)
    checkpoint: Path | None = setting(
        "safetensors file; without one the network's ImageNet weights", default=None, parse=Path
    )
    network: str = setting(NETWORK_HELP, default=DEFAULT_NETWORK)
    embedding_dim: int | None = setting(
        f"width of a new, untrained head where there is no checkpoint; default: {EMBEDDING_DIM}, "
        f"and none for {DEFAULT_NETWORK}",
        default=None,
        parse=positive_int,
    )
    layer: str = setting("dotted name of the layer explained", default="features")
    methods: tuple[str, ...] = setting(
        "names separated by commas; core, fast and all stand for several",
        default=("core",),
        parse=names,
    )
    protocols: tuple[str, ...] = setting(
        f"of {', '.join(PROTOCOLS)}", default=DEFAULT_PROTOCOLS, parse=names
    )
    num_tuples: int = setting("tuples per image", default=50, parse=positive_int)
    mining: Literal["hardest", "random"] = setting(
        "of the tuples", default="hardest", choices=("hardest", "random")
    )
    margin: float = setting("of the triplet loss, squared Euclidean", default=0.2, parse=float)
    num_neighbors: int = setting(
        "bank entries that weights are transferred from, unless a method says",
        default=1,
        parse=positive_int,
    )
    budget: int = setting(
        "evaluations of the network per image, at most, for the methods that take many",
        default=DEFAULT_BUDGET,
        parse=positive_int,
    )
    limit: int | None = setting(
        "test images at most, drawn at random; the tuples still come from all of them",
        default=None,
        parse=positive_int,
    )
    slow_limit: int | None = setting(
        "test images at most for the slow methods (tens of passes per image); some of --limit's",
        default=None,
        parse=positive_int,
    )
    seed: int = setting("of everything drawn", default=0, parse=int)
    workers: int = setting("processes", default=1, parse=positive_int, changes_results=False)
    device: str = setting("cpu, cuda, or auto", default="auto", changes_results=False)
    num_resamples: int = setting(
        "of the bootstrap, for the confidence intervals",
        default=5000,
        parse=positive_int,
        changes_results=False,
    )
    memory: bool = setting(
        "measure the peak memory of every method on one image",
        default=True,
        changes_results=False,
    )
    figures: bool = setting("draw the figures", default=True, changes_results=False)
    figure_rows: int = setting(
        "rows of the qualitative figure", default=4, parse=positive_int, changes_results=False
    )
    figure_method: str = setting(
        "transfer method of the qualitative figure",
        default="ours_recommended",
        changes_results=False,
    )
    progress: bool = setting("show progress bars", default=True, changes_results=False)
