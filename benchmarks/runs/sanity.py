"""The parameter randomisation check: do maps change when the network's parameters are random?

After Adebayo et al. (NeurIPS 2018). The network's parameters are
re-initialised from the head downwards (`benchmarks.networks.randomisation.cascade`), and each
method's map of an image is compared to that of the trained network: absolute values, bilinear to
the crop.

All that is made from the network is made again from the random one: the tuples are mined anew
among the test images, and the banks are built anew from the same training images. So what is
compared is the whole method, run on another network.

Beside it stands eMPRT (Hedstroem et al., 2024): by how much the signed map is more complex when
all parameters are random.

The floor is the trained network's map of another test image: what maps have in common whatever
the image, such as a bright centre, makes them as alike as that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.core.files import require_writable_folder, write_json, write_text
from benchmarks.core.seeding import sample, seed_of, seeded
from benchmarks.core.settings import as_command, as_json, positive_int, setting
from benchmarks.datasets.choice import DataChoice, refuse_unknown_data, survey
from benchmarks.datasets.records import ImageRecord, ImageSet, load_rgb
from benchmarks.methods import heatmap, select
from benchmarks.metrics.bootstrap import bootstrap_interval
from benchmarks.metrics.complexity import complexity_rise
from benchmarks.networks.build import build_network
from benchmarks.networks.layers import find_layer
from benchmarks.networks.randomisation import cascade, randomised, rank_correlation, similarity
from benchmarks.protocols.protocol import Question
from benchmarks.protocols.registry import PROTOCOLS
from benchmarks.report.chart_parts import save_charts
from benchmarks.report.sanity import as_markdown, sanity_chart
from benchmarks.results.files import package_versions
from benchmarks.results.images import ImageTable
from benchmarks.runs.evaluation import Bench, EvaluationPlan
from benchmarks.runs.folder import RunFolder
from benchmarks.runs.localize import chosen_data, identity, plan_of, prepare
from benchmarks.runs.parallel import threads_of
from benchmarks.runs.settings import ExplainSettings
from captum_embed import TripletForward
from captum_embed.command_line.networks import chosen_device
from captum_embed.errors import InputError

# 2: with eMPRT.
SCHEMA_VERSION = 2
PROTOCOL = "attention"
FIGURES = ("rank_correlation", "ssim", "emprt")
TRAINED = "trained"
FLOOR = "another image"
# Training images behind the statistics of re-initialised batch normalisations.
STATISTICS_IMAGES = 32


@dataclass(frozen=True, kw_only=True)
class SanitySettings(ExplainSettings):
    limit: int = setting("images explained, drawn at random", default=50, parse=positive_int)
    bank_images: int = setting(
        "training images of each class in the banks, drawn at random", default=5, parse=positive_int
    )


def sanity(settings: SanitySettings) -> Path:
    """Run the check, or go on with an interrupted one in the same folder.

    Args:
        settings (SanitySettings): see each field's help.

    Returns:
        Path: of sanity.json.

    Raises:
        InputError: settings or data that cannot work, before the long part starts.
    """
    select(settings.methods)
    if settings.limit < 2:
        raise InputError("--limit is 1; expected 2 or more: the floor compares maps of two images")
    refuse_unknown_data(settings)
    device = chosen_device(settings.device)
    network = build_network(settings.network, settings.checkpoint, settings.embedding_dim)
    network = network.to(device).eval()
    find_layer(network, settings.layer, settings.layout, settings.prefix_tokens)
    stages = cascade(network)
    require_writable_folder(settings.output, "--output")
    data = _choose(settings)
    own = {
        **identity(settings, network, data, device, threads_of(1)),
        "command": "sanity",
        "stages": list(stages),
        "floor": FLOOR,
    }
    with RunFolder(settings.output, own) as run:
        data = survey(data, progress=settings.progress)
        plan = replace(plan_of(settings, device, run.cache), protocols=(PROTOCOL,))
        benches = {
            stage: _bench(settings, plan, stage, subject, data)
            for stage, subject in _networks(network, stages, data, device, settings.seed)
        }
        unavailable = {
            name: why for bench in benches.values() for name, why in bench.unavailable.items()
        }
        images = sample(data.test.records, settings.limit, settings.seed)
        missing = [image for image in images if image.key not in run.done]
        others = {a.key: b for a, b in zip(images, images[1:] + images[:1], strict=True)}
        able = [name for name in plan.methods if name not in unavailable]
        for image in tqdm(missing, "test images", disable=not settings.progress):
            run.add(compare(benches, image, others[image.key], able))
        return _report(settings, run, data, stages, unavailable)


def few_of_each_class(images: ImageSet, count: int, seed: int) -> ImageSet:
    """At most `count` images of each class, drawn at random, in the data set's order."""
    kept = {
        record.key
        for label in images.class_sizes
        for record in sample([r for r in images.records if r.label == label], count, seed)
    }
    return replace(images, records=tuple(r for r in images.records if r.key in kept))


def _choose(settings: SanitySettings) -> DataChoice:
    data = chosen_data(settings)
    return replace(data, train=few_of_each_class(data.train, settings.bank_images, settings.seed))


def _networks(
    network: nn.Module,
    stages: Mapping[str, Sequence[str]],
    data: DataChoice,
    device: torch.device,
    seed: int,
) -> list[tuple[str, nn.Module]]:
    shown = [
        PROTOCOLS[PROTOCOL].show(load_rgb(record))
        for record in sample(data.train.records, STATISTICS_IMAGES, seed)
    ]
    images = [torch.stack(shown).to(device)]
    random = [(stage, randomised(network, units, images, seed=seed))
              for stage, units in stages.items()]  # fmt: skip
    return [(TRAINED, network), *random]


def _bench(
    settings: SanitySettings,
    plan: EvaluationPlan,
    stage: str,
    network: nn.Module,
    data: DataChoice,
) -> Bench:
    """One network with its own tuples and banks."""
    plan = replace(plan, cache=plan.cache / stage.replace(" ", "_"))
    forward = TripletForward(network, margin=plan.margin).eval()
    layer = find_layer(network, plan.layer, plan.layout, plan.prefix_tokens)
    prepare(settings, plan, forward, layer, data)
    return Bench(plan, PROTOCOLS[PROTOCOL], forward, layer)


def compare(
    benches: Mapping[str, Bench], image: ImageRecord, other: ImageRecord, methods: Sequence[str]
) -> dict[str, Any]:
    """The record of one image: how alike each method's maps are to those of the trained network."""
    shown, other_shown = (PROTOCOLS[PROTOCOL].show(load_rgb(record)) for record in (image, other))
    likeness: dict[str, Any] = {}
    for name in methods:
        maps = {stage: maps_of(bench, name, image.key, shown) for stage, bench in benches.items()}
        trained = maps.pop(TRAINED)
        maps[FLOOR] = maps_of(benches[TRAINED], name, other.key, other_shown)
        likeness[name] = {
            stage: {
                "rank_correlation": rank_correlation(trained.magnitude, random.magnitude),
                "ssim": similarity(trained.magnitude, random.magnitude),
                "emprt": complexity_rise(trained.signed, random.signed),
                "empty": not (trained.magnitude.max() > 0 and random.magnitude.max() > 0),
            }
            for stage, random in maps.items()
        }
    return {"key": image.key, "label": image.label, "methods": likeness}


@dataclass(frozen=True)
class Maps:
    """A method's map, (H, W), as it is and in absolute values; zero for one that is not finite."""

    signed: np.ndarray
    magnitude: np.ndarray


def maps_of(bench: Bench, name: str, key: str, image: Tensor) -> Maps:
    """A method's map at the size of the crop."""
    method, explain = bench.explainers[name]
    with seeded(seed_of(bench.plan.seed, PROTOCOL, key), bench.device):
        attributions = explain(bench.query(key, image, Question()))
    reduced = method.reduction(bench.protocol.question)(attributions)
    if not torch.isfinite(reduced).all():
        reduced = torch.zeros_like(reduced)
    size = (image.shape[1], image.shape[2])
    return Maps(heatmap(reduced, size, signed=True), heatmap(reduced.abs(), size))


def summary(
    records: Sequence[Mapping[str, Any]],
    methods: Sequence[str],
    stages: Sequence[str],
    num_resamples: int,
) -> dict[str, Any]:
    """``{method: {stage: {figure: [mean, low, high], "num_empty": ...}}}`` with 95% intervals."""
    rows: dict[str, Any] = {}
    for name in methods:
        rows[name] = {}
        for stage in stages:
            measured = [record["methods"][name][stage] for record in records]
            figures: dict[str, Any] = {
                figure: list(
                    bootstrap_interval(
                        [one[figure] for one in measured], num_resamples=num_resamples
                    ).as_floats()
                )
                for figure in FIGURES
            }
            rows[name][stage] = {**figures, "num_empty": sum(one["empty"] for one in measured)}
    return rows


def _report(
    settings: SanitySettings,
    run: RunFolder,
    data: DataChoice,
    stages: Mapping[str, Sequence[str]],
    unavailable: Mapping[str, str],
) -> Path:
    records = sorted(run.records(), key=lambda record: record["key"])
    about = [
        {
            "name": m.name,
            "title": m.title,
            "family": m.family,
            "unavailable": unavailable.get(m.name),
        }
        for m in select(settings.methods)
    ]
    able = [m.name for m in select(settings.methods) if m.name not in unavailable]
    results = {
        "schema_version": SCHEMA_VERSION,
        "command": as_command("benchmarks sanity", settings),
        "settings": as_json(settings),
        "versions": package_versions(),
        "data": data.as_json(),
        "num_images": len(records),
        "stages": {stage: list(units) for stage, units in stages.items()},
        "floor": FLOOR,
        "methods": about,
        "summary": summary(records, able, [*stages, FLOOR], settings.num_resamples),
    }
    path = write_json(run.path / "sanity.json", results)
    images = ImageTable.from_records(map(_by_stage, records)).write(run.path)
    table = as_markdown(results)
    write_text(run.path / "sanity.md", table)
    figures = save_charts(run.path, {"sanity": sanity_chart(results)})
    print(table)
    print("\n".join(str(one) for one in (path, images, run.path / "sanity.md", *figures)))
    return path


def _by_stage(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of the check as one of several protocols: its stages."""
    methods = record["methods"]
    stages = dict.fromkeys(stage for of_method in methods.values() for stage in of_method)
    shown = {
        stage: {"methods": {name: of[stage] for name, of in methods.items()}, "floors": {}}
        for stage in stages
    }
    return {"key": record["key"], "label": record["label"], "protocols": shown}
