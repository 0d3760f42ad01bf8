"""The options that commands share, each with its one home and name.

A command's settings derive from those of the parts that it uses, and add its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.core.settings import ClassNumbers, names, positive_int, setting
from benchmarks.datasets.choice import DATA_HELP, DOWNLOAD_HELP, SPLIT_HELP, SPLITS
from benchmarks.networks.build import DEFAULT_NETWORK, EMBEDDING_DIM, NETWORK_HELP


@dataclass(frozen=True, kw_only=True)
class CommonSettings:
    """What every command that computes is told."""

    seed: int = setting("of everything drawn", default=0, parse=int)
    progress: bool = setting("show progress bars", default=True, changes_results=False)


@dataclass(frozen=True, kw_only=True)
class DeviceSettings:
    """Where the network runs."""

    device: str = setting("cpu, cuda, or auto", default="auto", changes_results=False)


@dataclass(frozen=True, kw_only=True)
class RunSettings(CommonSettings):
    """Where a run is kept, and how sure its figures are."""

    output: Path = setting("folder of the run", parse=Path, changes_results=False)
    num_resamples: int = setting(
        "of the bootstrap, for the confidence intervals",
        default=5000,
        parse=positive_int,
        changes_results=False,
    )


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which images."""

    data: str = setting(DATA_HELP)
    train_classes: ClassNumbers | None = setting(
        "classes to train or to make weight banks of, such as 1-10",
        default=None,
        parse=ClassNumbers.parse,
    )
    test_classes: ClassNumbers | None = setting(
        "classes to test on, such as 26-35", default=None, parse=ClassNumbers.parse
    )
    split: str = setting(SPLIT_HELP, default=SPLITS[0], choices=SPLITS)
    download: bool = setting(DOWNLOAD_HELP, default=False, changes_results=False)


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Which network, and what of it is explained."""

    network: str = setting(NETWORK_HELP, default=DEFAULT_NETWORK)
    checkpoint: Path | None = setting(
        "safetensors file; without one the network's ImageNet weights", default=None, parse=Path
    )
    embedding_dim: int | None = setting(
        f"width of a new, untrained head where there is no checkpoint; default: {EMBEDDING_DIM}, "
        f"and none for {DEFAULT_NETWORK}",
        default=None,
        parse=positive_int,
    )
    layer: str = setting("dotted name of the layer explained", default="features")


@dataclass(frozen=True, kw_only=True)
class TupleSettings:
    """What is explained: the match by which tuples."""

    methods: tuple[str, ...] = setting(
        "names separated by commas; core, fast and all stand for several",
        default=("core",),
        parse=names,
    )
    mining: Literal["all", "hardest", "random"] = setting(
        "which tuples of an image count", default="all", choices=("all", "hardest", "random")
    )
    num_tuples: int = setting(
        "tuples per image, where not all of them count", default=50, parse=positive_int
    )
    margin: float = setting("of the triplet loss, squared Euclidean", default=0.2, parse=float)


@dataclass(frozen=True, kw_only=True)
class ExplainSettings(DeviceSettings, TupleSettings, NetworkSettings, RunSettings, DataSettings):
    """What every command that explains images is told."""
