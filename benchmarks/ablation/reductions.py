"""How each method's channels are reduced and smoothed: one rule for all, on training classes.

Every method's attributions are computed once for an image; the candidates are reductions of them.
Ours and the controls are measured as their recipes say, and are not chosen for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from tqdm import tqdm

from benchmarks.core.files import require_writable_folder, write_json, write_text
from benchmarks.core.seeding import seed_of, seeded
from benchmarks.core.settings import as_command, as_json, setting
from benchmarks.datasets.choice import refuse_unknown_data, survey
from benchmarks.methods import METHODS, Method, heatmap, select
from benchmarks.methods.chosen_reductions import save
from benchmarks.methods.reductions import Channels, Reduction
from benchmarks.metrics.bootstrap import NUM_RESAMPLES, draw
from benchmarks.metrics.figures import Figure
from benchmarks.networks.build import build_network
from benchmarks.networks.layers import find_layer
from benchmarks.protocols.protocol import Frame
from benchmarks.protocols.registry import PROTOCOLS
from benchmarks.results.files import package_versions
from benchmarks.runs.evaluation import Bench, Work
from benchmarks.runs.folder import RunFolder
from benchmarks.runs.localize import (
    chosen_data,
    identity,
    items_of,
    plan_of,
    prepare,
    slow_keys,
)
from benchmarks.runs.parallel import threads_of
from benchmarks.runs.settings import BenchSettings
from captum_embed import TripletForward
from captum_embed.command_line.networks import chosen_device
from captum_embed.errors import InputError

SCHEMA_VERSION = 1
CHANNELS: tuple[Channels, ...] = ("signed", "absolute")
SIGMAS = (0.0, 0.01, 0.02, 0.04, 0.08)
# The figure that a choice is made by.
DECIDES = {"boxes": "max_box_acc", "mosaic": "mosaic_mass"}
# Rows that are second readings of another's map keep the reading they are named for.
NOT_CHOSEN_FOR = ("layer_grad_cam_loss", "layer_grad_cam_loss_block")


@dataclass(frozen=True, kw_only=True)
class ReductionSettings(BenchSettings):
    command: ClassVar[str] = "reductions"

    protocols: tuple[str, ...] = setting(
        f"one of {', '.join(DECIDES)}", default=("boxes",), parse=lambda text: (text,)
    )
    save: bool = setting(
        "write the choice to where the registry reads it", default=False, changes_results=False
    )


def choose_reductions(settings: ReductionSettings) -> Path:
    """Run the choice, or go on with an interrupted one in the same folder.

    Args:
        settings (ReductionSettings): see each field's help.

    Returns:
        Path: of reductions.json.

    Raises:
        InputError: settings or data that cannot work, before the long part starts.
    """
    select(settings.methods)
    (protocol,) = settings.protocols
    if protocol not in DECIDES:
        raise InputError(f"--protocols {protocol}: expected one of {', '.join(DECIDES)}")
    refuse_unknown_data(settings)
    device = chosen_device(settings.device)
    network = build_network(settings.network, settings.checkpoint, settings.embedding_dim)
    network = network.to(device)
    layer = find_layer(network, settings.layer, settings.layout, settings.prefix_tokens)
    forward = TripletForward(network, margin=settings.margin).eval()
    require_writable_folder(settings.output, "--output")
    data = chosen_data(settings)
    own = {
        **identity(settings, network, data, device, threads_of(1)),
        "candidates": {m.name: [str(c) for c in candidates(m)] for m in select(settings.methods)},
    }
    with RunFolder(settings.output, own) as run:
        data = survey(data, progress=settings.progress)
        plan = plan_of(settings, device, run.cache)
        works = items_of(settings, plan, network, data)
        prepare(settings, plan, forward, layer, data)
        if settings.slow_limit is not None:
            plan = replace(plan, slow_keys=slow_keys(settings, works))
        bench = ReductionBench(plan, PROTOCOLS[protocol], forward, layer)
        missing = [work for work in works if work.key not in run.done]
        for work in tqdm(missing, "training images", disable=not settings.progress):
            run.add(bench.record(work))
        return _report(settings, run, bench.unavailable)


def candidates(method: Method) -> tuple[Reduction, ...]:
    """What is tried of a method; ours and the controls have what their recipes say."""
    if method.family in ("ours", "control") or method.name in NOT_CHOSEN_FOR:
        return (method.customary,)
    kinds = dict.fromkeys((*CHANNELS, method.customary.channels))
    return tuple(Reduction(channels, sigma) for channels in kinds for sigma in SIGMAS)


class ReductionBench(Bench):
    """Measures every candidate of a method on one computation of its attributions."""

    def record(self, work: Work) -> dict[str, Any]:
        """The deciding value of each candidate: ``{"methods": {name: {candidate: value}}}``."""
        item = work.items[self.protocol.name]
        frame = self.protocol.frame(item)
        assert frame is not None, "boxes and mosaics measure every item"
        queries = self.queries_of(item.key, frame)
        values: dict[str, Any] = {}
        for name, (method, explain) in self.explainers.items():
            if not self.wants(name, item.key):
                continue
            with seeded(seed_of(self.plan.seed, self.protocol.name, item.key), self.device):
                attributions = [explain(query).detach().cpu() for query in queries]
            values[name] = {
                str(candidate): self._value(attributions, candidate, frame)
                for candidate in candidates(method)
            }
        return {"key": work.key, "label": work.label, "methods": values}

    def _value(
        self, attributions: Sequence[Tensor], candidate: Reduction, frame: Frame
    ) -> float | list[float]:
        maps = [heatmap(one, frame.size, candidate) for one in attributions]
        value = deciding_figure(self.protocol.name).of(self.protocol.measure(maps, frame))
        numbers: float | list[float] = np.asarray(value, dtype=float).tolist()
        return numbers


def deciding_figure(protocol: str) -> Figure:
    """The figure of a protocol that a choice is made by."""
    return next(f for f in PROTOCOLS[protocol].figures if f.key == DECIDES[protocol])


def summary(
    records: Sequence[Mapping[str, Any]],
    methods: Sequence[Method],
    protocol: str,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """A row per method: images, value of each candidate, and the one that is chosen.

    That is the best, where it is better than the customary one beyond chance: the 95% interval of
    their paired difference lies above zero. Otherwise the customary one stays.
    """
    figure = deciding_figure(protocol)
    rows = []
    for method in methods:
        measured = [r["methods"][method.name] for r in records if method.name in r["methods"]]
        if not measured:
            continue
        draws = {
            str(candidate): draw(
                [one[str(candidate)] for one in measured],
                figure.aggregate,
                num_resamples=num_resamples,
                seed=seed,
            )
            for candidate in candidates(method)
        }
        customary = str(method.customary)
        best = max(draws, key=lambda name: float(draws[name].estimate))
        gain = (draws[best] - draws[customary]).interval()
        rows.append(
            {
                "name": method.name,
                "title": method.title,
                "num_images": len(measured),
                "values": {name: float(one.estimate) for name, one in draws.items()},
                "customary": customary,
                "best": best,
                "gain": gain.as_floats(),
                "chosen": best if gain.low > 0 else customary,
            }
        )
    return rows


def _report(settings: ReductionSettings, run: RunFolder, unavailable: Mapping[str, str]) -> Path:
    (protocol,) = settings.protocols
    methods = [method for method in select(settings.methods) if method.name not in unavailable]
    rows = summary(
        list(run.records()),
        methods,
        protocol,
        num_resamples=settings.num_resamples,
        seed=settings.seed,
    )
    figure = deciding_figure(protocol)
    command = as_command("benchmarks reductions", settings)
    results = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "settings": as_json(settings),
        "versions": package_versions(),
        "rule": f"highest {figure.heading} on the training classes, where it is above the "
        "customary reduction's by more than chance (paired 95% interval)",
        "methods": rows,
        "unavailable": dict(unavailable),
    }
    path = write_json(run.path / "reductions.json", results)
    table = as_markdown(rows, figure, command)
    write_text(run.path / "reductions.md", table)
    if settings.save:
        chosen = {
            row["name"]: reduction
            for row in rows
            for reduction in candidates(METHODS[row["name"]])
            if str(reduction) == row["chosen"] and len(row["values"]) > 1
        }
        save(PROTOCOLS[protocol].question, chosen)
    print(table)
    return path


def as_markdown(rows: Sequence[Mapping[str, Any]], figure: Figure, command: str) -> str:
    """The customary reduction, the best, and which of them is chosen."""
    lines = [
        f"| method | images | customary | {figure.heading} | best | {figure.heading} "
        "| difference | chosen |",
        "|---|---:|---|---:|---|---:|---:|---|",
    ]
    for row in rows:
        before, after = (100 * row["values"][row[key]] for key in ("customary", "best"))
        gain, low, high = (100 * value for value in row["gain"])
        lines.append(
            f"| {row['title']} | {row['num_images']} | {row['customary']} | {before:.1f} "
            f"| {row['best']} | {after:.1f} | {gain:+.1f} [{low:+.1f}, {high:+.1f}] "
            f"| {'customary' if row['chosen'] == row['customary'] else 'best'} |"
        )
    return "\n".join([*lines, "", "```", command, "```", ""])
