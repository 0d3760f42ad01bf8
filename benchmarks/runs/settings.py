"""The settings that several commands share, as dataclasses.

The settings of a command derive from those of the parts that it uses, and add its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

from benchmarks.core.settings import (
    CommonSettings,
    DeviceSettings,
    finite_number,
    names,
    positive_int,
    setting,
    whole_number,
)
from benchmarks.datasets.choice import DataSettings
from benchmarks.methods.method import DEFAULT_BUDGET
from benchmarks.networks.build import DEFAULT_NETWORK, EMBEDDING_DIM, NETWORK_HELP
from benchmarks.networks.layers import DEFAULT_LAYER, LAYER_HELP, LAYOUT_HELP, PREFIX_HELP
from benchmarks.protocols.registry import DEFAULT_PROTOCOLS, PROTOCOLS
from captum_embed.layouts import Layout


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
    layer: str = setting(LAYER_HELP, default=DEFAULT_LAYER)
    layout: Layout = setting(LAYOUT_HELP, default="channels_first", choices=get_args(Layout))
    prefix_tokens: int | None = setting(PREFIX_HELP, default=None, parse=whole_number)


@dataclass(frozen=True, kw_only=True)
class TupleSettings:
    """What is explained: the match by which tuples."""

    methods: tuple[str, ...] = setting(
        "names separated by commas; core, fast, all and variants stand for several",
        default=("core",),
        parse=names,
    )
    mining: Literal["all", "hardest", "random"] = setting(
        "which tuples of an image count", default="all", choices=("all", "hardest", "random")
    )
    num_tuples: int = setting(
        "tuples per image, where not all of them count", default=50, parse=positive_int
    )
    margin: float = setting(
        "of the triplet loss, squared Euclidean", default=0.2, parse=finite_number
    )


@dataclass(frozen=True, kw_only=True)
class ExplainSettings(DeviceSettings, TupleSettings, NetworkSettings, RunSettings, DataSettings):
    """What every command that explains images is told."""


@dataclass(frozen=True, kw_only=True)
class BenchSettings(ExplainSettings):
    """What is measured, on how many images."""

    protocols: tuple[str, ...] = setting(
        f"of {', '.join(PROTOCOLS)}", default=DEFAULT_PROTOCOLS, parse=names
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
    bank_channels: int | None = setting(
        "compact banks: weights kept of each entry, in half precision, with half-precision "
        "embeddings; default: all, as built",
        default=None,
        parse=positive_int,
    )
    num_mosaics: int = setting(
        "mosaics of the protocol of that name", default=200, parse=positive_int
    )


@dataclass(frozen=True, kw_only=True)
class LocalizeSettings(BenchSettings):
    command: ClassVar[str] = "localize"

    mark_steps: int = setting(
        "batches that the last blocks of each network of the mark protocol are trained on",
        default=15,
        parse=positive_int,
    )
    minutes: float | None = setting(
        "stop measuring after so many, and report what is done; the same command goes on",
        default=None,
        parse=finite_number,
        changes_results=False,
    )
    workers: int = setting("processes", default=1, parse=positive_int, changes_results=False)
    memory: bool = setting(
        "measure the peak memory of every method on one image",
        default=False,
        changes_results=False,
    )
    figures: bool = setting("draw the figures", default=True, changes_results=False)
    figure_rows: int = setting(
        "rows of the qualitative figure", default=4, parse=positive_int, changes_results=False
    )
    figure_method: str = setting(
        "transfer method of the qualitative figure",
        default="ours_localize",
        changes_results=False,
    )
