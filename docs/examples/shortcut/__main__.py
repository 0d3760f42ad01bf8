"""``python -m docs.examples.shortcut``: a background shortcut planted, seen in the maps, and fixed.

Retrieval on the embedded data set. One network is trained on photographs in which each class has
a background of its own, another on photographs with any background; both are tested on new
photographs with any background. ``docs/tutorial.md`` tells it as a story.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.core.files import require_writable_folder, write_atomically, write_json, write_text
from benchmarks.core.settings import (
    add_arguments,
    as_command,
    as_json,
    execute,
    positive_int,
    setting,
)
from benchmarks.networks.build import EmbeddingNetwork, packaged_state
from benchmarks.results.files import package_versions
from captum_embed.errors import InputError
from docs.examples.shortcut.data import (
    BACKGROUND_OF_CLASS,
    Photographs,
    load_photographs,
    split_held_out,
    swapped,
    write_sets,
)
from docs.examples.shortcut.errors import AttributedErrors, attribute_errors, held_out_recall
from docs.examples.shortcut.figure import Retrieved, Row, draw, save_with_palette
from docs.examples.shortcut.maps import explain
from docs.examples.shortcut.network import (
    TailTraining,
    run_in_batches,
    starting_network,
    tail_of,
    train_tail,
    trunk_of,
)
from docs.examples.shortcut.summary import as_tables, summarize_maps, summarize_swaps

PURPOSE = "retrieval errors of a planted background shortcut, explained and fixed"
SCHEMA_VERSION = 1
TRAINING_SETS = {"shortcut": "planted", "fixed": "fixed"}
"""The models that are trained, and on what."""

_SMALLEST_SIDE = 64


@dataclass(frozen=True)
class ShortcutSettings:
    output: Path = setting("folder to write to", parse=Path, changes_results=False)
    images_per_class: int = setting(
        "of each of the three sets; a quarter of the training sets is held out",
        default=20,
        parse=positive_int,
    )
    image_side: int = setting("pixels; images are made square", default=320, parse=positive_int)
    steps: int = setting("batches to train each network on", default=40, parse=positive_int)
    embedding_dim: int = setting("width of the head", default=64, parse=positive_int)
    margin: float = setting("of the triplet loss in training", default=0.2, parse=float)
    learning_rate: float = setting("of AdamW, last blocks", default=1e-4, parse=float)
    head_learning_rate: float = setting("the same, of the head", default=1e-3, parse=float)
    num_neighbors: int = setting("bank entries averaged", default=10, parse=positive_int)
    figure_rows: int = setting(
        "queries in the figure", default=4, parse=positive_int, changes_results=False
    )
    seed: int = setting("of photographs, head, batches and draws", default=0, parse=int)
    progress: bool = setting("show progress bars", default=True, changes_results=False)


class Clock:
    """Seconds of each stage, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 1)


@dataclass(frozen=True)
class Study:
    """Photographs by set, what the trunk makes of them, and the networks above it.

    Args:
        sets (dict): ``planted``, ``fixed``, what is held out of each, ``test`` and ``unseen``
            (test photographs of classes that nothing was trained on).
        activations (dict): (N, 112, h, w) by set.
        trunk (nn.Module): shared by all networks.
        tails (dict): by model: ``start`` (ImageNet features), ``shortcut`` and ``fixed``.
    """

    sets: dict[str, Photographs]
    activations: dict[str, Tensor]
    trunk: nn.Module
    tails: dict[str, EmbeddingNetwork]

    def embed(self, model: str, name: str) -> Tensor:
        return run_in_batches(self.tails[model], self.activations[name])


def shortcut(settings: ShortcutSettings) -> Path:
    """Run the example.

    Args:
        settings (ShortcutSettings): see each field's help.

    Returns:
        Path: of shortcut.json, beside the tables, the figure, the checkpoints and the
        photographs.

    Raises:
        InputError: settings that cannot work, before work starts.
    """
    _refuse_impossible(settings)
    clock = Clock()
    with clock.stage("photographs"):
        sets = load_sets(settings)
    networks = {
        "start": starting_network(None, settings.seed),
        **{name: starting_network(settings.embedding_dim, settings.seed) for name in TRAINING_SETS},
    }
    trunk = trunk_of(networks["start"])
    with clock.stage("trunk"):
        activations = {
            name: run_in_batches(trunk, photos.pixels, f"trunk: {name}", progress=settings.progress)
            for name, photos in sets.items()
        }
    tails = {name: tail_of(network) for name, network in networks.items()}
    study = Study(sets, activations, trunk, tails)
    with clock.stage("training"):
        losses = train_models(study, settings)
    with clock.stage("retrieval"):
        errors = {name: _errors(study, name, "test") for name in tails}
        retrieval = {name: _retrieval(study, name, errors[name]) for name in tails}
    with clock.stage("swaps"):
        swaps = summarize_swaps(embed_swaps(study, settings))
    with clock.stage("maps"):
        maps = {name: _maps(study, name, errors[name], settings) for name in TRAINING_SETS}
    results: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "command": as_command("docs.examples.shortcut", settings),
        "settings": as_json(settings),
        "versions": package_versions(),
        "threads": torch.get_num_threads(),
        "seconds": clock.seconds,
        "data": _about(sets),
        "losses": losses,
        "retrieval": retrieval,
        "swaps": swaps,
        "maps": summarize_maps(maps, sets["test"].masks),
    }
    return write(settings, results, study, networks, errors, maps)


def _refuse_impossible(settings: ShortcutSettings) -> None:
    if settings.images_per_class < 4:
        raise InputError(
            f"--images-per-class is {settings.images_per_class}; expected 4 or more, of which "
            "three are trained on and one is held out"
        )
    if settings.image_side < _SMALLEST_SIDE:
        raise InputError(
            f"--image-side is {settings.image_side}; expected {_SMALLEST_SIDE} or more, so that "
            "the last activation has a height and a width"
        )
    if not settings.margin > 0:
        raise InputError(f"--margin is {settings.margin}; expected above 0")
    if settings.seed < 0:
        raise InputError(f"--seed is {settings.seed}; expected 0 or more")
    require_writable_folder(settings.output, "--output")


def load_sets(settings: ShortcutSettings) -> dict[str, Photographs]:
    """Write the photographs, unless they are there, and read those that are used."""
    roots = write_sets(
        settings.output / "data",
        settings.images_per_class,
        settings.seed,
        progress=settings.progress,
    )
    trained = sorted(BACKGROUND_OF_CLASS)
    sets = {}
    for root in roots[:2]:
        photos = load_photographs(root, settings.image_side, trained, progress=settings.progress)
        sets[root.name], sets[f"{root.name}_held_out"] = split_held_out(photos)
    test = load_photographs(roots[2], settings.image_side, progress=settings.progress)
    sets["test"] = test.of_classes(trained)
    sets["unseen"] = test.of_classes(sorted(set(test.labels) - set(trained)))
    return sets


def train_models(study: Study, settings: ShortcutSettings) -> dict[str, list[float]]:
    """Train both in place, from the same start, on batches of the same draws; the losses."""
    training = TailTraining(
        settings.steps,
        settings.margin,
        settings.learning_rate,
        settings.head_learning_rate,
        settings.seed,
    )
    return {
        model: train_tail(
            study.tails[model],
            study.activations[name],
            study.sets[name].labels,
            training,
            f"training: {name}",
            progress=settings.progress,
        )
        for model, name in TRAINING_SETS.items()
    }


def _errors(study: Study, model: str, name: str) -> AttributedErrors:
    photos = study.sets[name]
    return attribute_errors(study.embed(model, name), photos.labels, photos.backgrounds)


def _retrieval(study: Study, model: str, errors: AttributedErrors) -> dict[str, Any]:
    retrieval: dict[str, Any] = {
        "test": errors.as_json(),
        "unseen": _errors(study, model, "unseen").as_json(),
    }
    if model in TRAINING_SETS:
        name = TRAINING_SETS[model]
        queries, gallery = study.sets[f"{name}_held_out"], study.sets[name]
        retrieval["held_out_recall_at_1"] = held_out_recall(
            study.embed(model, f"{name}_held_out"),
            queries.labels,
            study.embed(model, name),
            gallery.labels,
        )
    return retrieval


@torch.no_grad()
def embed_swaps(study: Study, settings: ShortcutSettings) -> dict[str, Tensor]:
    """Embeddings (N, 4, D) of the composites of `swapped`, by model."""
    photos = study.sets["test"]
    composites = tqdm(
        swapped(photos, settings.seed),
        "exchanging backgrounds and objects",
        len(photos),
        leave=False,
        disable=not settings.progress,
    )
    embeddings: dict[str, list[Tensor]] = {name: [] for name in study.tails}
    for pixels in composites:
        activations = run_in_batches(study.trunk, pixels)
        for name, tail in study.tails.items():
            embeddings[name].append(tail(activations))
    return {name: torch.stack(rows) for name, rows in embeddings.items()}


def _maps(
    study: Study, model: str, errors: AttributedErrors, settings: ShortcutSettings
) -> dict[str, Tensor]:
    name = TRAINING_SETS[model]
    queries = study.activations["test"]
    return explain(
        study.tails[model],
        study.activations[name],
        study.sets[name].labels,
        queries,
        queries[torch.from_numpy(errors.nearest)],
        num_neighbors=settings.num_neighbors,
        progress=settings.progress,
    )


def _about(sets: Mapping[str, Photographs]) -> dict[str, Any]:
    return {
        "background_of_class": {str(k): v for k, v in BACKGROUND_OF_CLASS.items()},
        "photographs": {name: len(photos) for name, photos in sets.items()},
        "classes": {name: sorted(set(photos.labels)) for name, photos in sets.items()},
        "mean_area_of_the_object": float(sets["test"].masks.mean()),
    }


def write(
    settings: ShortcutSettings,
    results: dict[str, Any],
    study: Study,
    networks: Mapping[str, EmbeddingNetwork],
    errors: Mapping[str, AttributedErrors],
    maps: Mapping[str, Mapping[str, Tensor]],
) -> Path:
    """Checkpoints, figure and JSON; prints the tables and where the files are."""
    photos, folder = study.sets["test"], settings.output
    chosen = choose_queries(errors, photos, settings.figure_rows, settings.seed)
    results["figure"] = [photos.keys[index] for index in chosen]
    rows = [_row(index, photos, errors, maps) for index in chosen]
    tables = f"{as_tables(results, markdown=True)}\n\n```\n{results['command']}\n```\n"
    paths = [
        write_json(folder / "shortcut.json", results),
        write_text(folder / "shortcut.md", tables),
        save_with_palette(draw(rows, results), folder / "shortcut.png"),
    ]
    paths += [
        _save_network(networks[model], folder / f"{name}.safetensors")
        for model, name in TRAINING_SETS.items()
    ]
    print(f"\n{as_tables(results)}\n")
    print("\n".join(str(path) for path in paths))
    return paths[0]


def _save_network(network: EmbeddingNetwork, path: Path) -> Path:
    state = packaged_state(network)
    return write_atomically(path, lambda temporary: save_file(state, temporary))


def choose_queries(
    errors: Mapping[str, AttributedErrors], photos: Photographs, count: int, seed: int
) -> list[int]:
    """Queries that the planted shortcut gets wrong with the query's background.

    Drawn at random, of as many classes as there are; no look at the maps.
    """
    of_shortcut = errors["shortcut"]
    candidates = np.flatnonzero(~of_shortcut.right_class & of_shortcut.same_background)
    order = np.random.default_rng(seed).permutation(candidates)
    already = dict.fromkeys(photos.labels, 0)
    ranked: list[tuple[int, int, int]] = []
    for index in order:
        label = photos.labels[index]
        ranked.append((already[label], len(ranked), int(index)))
        already[label] += 1
    return [index for _, _, index in sorted(ranked)[:count]]


def _row(
    index: int,
    photos: Photographs,
    errors: Mapping[str, AttributedErrors],
    maps: Mapping[str, Mapping[str, Tensor]],
) -> Row:
    def answer(model: str) -> Retrieved:
        nearest = int(errors[model].nearest[index])
        return Retrieved(
            photos.pixels[nearest],
            _caption(photos, nearest),
            bool(errors[model].right_class[index]),
            maps[model]["localize"][index],
            maps[model]["signed"][index],
        )

    return Row(
        photos.pixels[index],
        photos.masks[index],
        _caption(photos, index),
        answer("shortcut"),
        answer("fixed"),
    )


def _caption(photos: Photographs, index: int) -> str:
    folder = photos.keys[index].partition("/")[0]
    return f"{folder.partition('.')[2]} on {photos.backgrounds[index]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the story; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m docs.examples.shortcut", description=PURPOSE)
    add_arguments(parser, ShortcutSettings)
    return execute(shortcut, ShortcutSettings, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
