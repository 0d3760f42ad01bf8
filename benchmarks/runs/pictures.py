"""The figures of a localization run, and the images of its report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.datasets.choice import DataChoice
from benchmarks.datasets.embedded import distractors_of
from benchmarks.datasets.preprocess import to_image
from benchmarks.datasets.records import Box, ImageRecord, load_rgb
from benchmarks.methods import METHODS, Method, heatmap
from benchmarks.metrics.localization import PAPER_THRESHOLD, threshold_sweep
from benchmarks.report.figures import Panel, draw_rows, save_figure
from benchmarks.report.panels import (
    FOLDER,
    ImagePanels,
    MapPanel,
    Panels,
    compared_methods,
    image_scores,
    remove_panels,
    worst_images,
    write_index,
    write_map,
    write_photo,
)
from benchmarks.results.images import ImageTable
from benchmarks.runs.evaluation import Bench
from captum_embed import WeightBank


def write_qualitative(
    folder: Path,
    bench: Bench,
    data: DataChoice,
    measured: Sequence[str],
    *,
    method: str,
    rows: int,
    seed: int,
) -> list[Path]:
    """qualitative.png: measured test images beside the training image they borrow weights from.

    Args:
        folder (Path): of the run.
        bench (Bench): of one protocol.
        data (DataChoice): of the run.
        measured (sequence of str): keys of the test images to draw from.
        method (str): a transfer method; without it in the run there is no figure.
        rows (int): test images, of as many classes as there are, drawn from the seed.
        seed (int): of the draw.

    Returns:
        list of Path: of the figure, or empty.
    """
    spec = METHODS[method].bank
    if spec is None or method not in bench.explainers:
        return []
    bank = bench.subject.needed_bank(spec)
    keys = set(measured)
    records = [record for record in data.test.records if record.key in keys]
    training = {record.key: record for record in data.train.records}
    pairs = []
    for record in _one_of_each_class(records, rows, seed):
        neighbor = training[_nearest_key(bench, bank, record)]
        panels = [_panel(bench, METHODS[method], one) for one in (neighbor, record)]
        pairs.append((panels[0], panels[1]))
    if not pairs:
        return []
    title = (
        f"{METHODS[method].title}: weights borrowed from the bank; left, its nearest entry\n"
        f"white: ground truth; cyan: box at τ = {PAPER_THRESHOLD}"
    )
    if distractors := distractors_of(data.test.root):
        title += f"\n{distractors}"
    return [save_figure(draw_rows(pairs, title), folder / "qualitative.png")]


def write_panels(
    folder: Path,
    bench: Bench,
    data: DataChoice,
    results: Mapping[str, Any],
    images: ImageTable,
    *,
    rows: int,
    seed: int,
) -> None:
    """The images and maps of the HTML report: some drawn at random, and the worst.

    Args:
        folder (Path): of the run.
        bench (Bench): of one protocol.
        data (DataChoice): of the run.
        results (Mapping): content of results.json.
        images (ImageTable): of the run.
        rows (int): images drawn, as for `write_qualitative`.
        seed (int): of the draw.
    """
    protocol = bench.protocol.name
    methods = compared_methods(results, protocol)
    scores = {name: image_scores(images, protocol, name) for name in methods}
    measured = scores[methods[0]] if methods else {}
    records = {record.key: record for record in data.test.records if record.key in measured}
    chosen = [record.key for record in _one_of_each_class(list(records.values()), rows, seed)]
    worst = worst_images(images, protocol, results["main_method"])
    remove_panels(folder)
    shown = {
        key: _image_panels(folder / FOLDER, f"{index:02}", bench, records[key], scores)
        for index, key in enumerate(dict.fromkeys([*chosen, *worst]))
    }
    panels = [tuple(shown[key] for key in keys) for keys in (chosen, worst)]
    write_index(folder, Panels(protocol, *panels))


def _image_panels(
    folder: Path,
    number: str,
    bench: Bench,
    record: ImageRecord,
    scores: Mapping[str, Mapping[str, float]],
) -> ImagePanels:
    frame = bench.protocol.frame(record)
    assert frame is not None
    height, width = frame.size
    photo = write_photo(_pixels(frame.image), folder / f"image-{number}.png")
    maps = []
    for name, of_method in scores.items():
        heat = bench.heatmap(name, bench.queries_of(record.key, frame)[0])
        heat = heat if np.isfinite(heat).all() else np.zeros_like(heat)
        file = write_map(heat, folder / f"map-{number}-{name}.png")
        maps.append(
            MapPanel(
                name,
                file.name,
                _box_at(heat, frame.box, PAPER_THRESHOLD),
                of_method.get(record.key),
            )
        )
    return ImagePanels(
        record.key, record.class_name, (width, height), frame.box, photo.name, tuple(maps)
    )


def _pixels(image: torch.Tensor) -> np.ndarray:
    """A normalised image (3, H, W) as (H, W, 3) uint8."""
    pixels: np.ndarray = (to_image(image) * 255).round().byte().permute(1, 2, 0).numpy()
    return pixels


def _one_of_each_class(records: Sequence[ImageRecord], count: int, seed: int) -> list[ImageRecord]:
    """Records in random order, one of each class before a second of any."""
    order = np.random.default_rng(seed).permutation(len(records))
    already: Counter[int] = Counter()
    ranked = []
    for index in order:
        record = records[index]
        ranked.append((already[record.label], record))
        already[record.label] += 1
    ranked.sort(key=lambda pair: pair[0])
    return [record for _, record in ranked[:count]]


@torch.no_grad()
def _nearest_key(bench: Bench, bank: WeightBank, record: ImageRecord) -> str:
    assert bank.keys is not None
    image = bench.protocol.show(load_rgb(record))
    _, indices = bank.search(bench.network(image[None].to(bench.device)).cpu())
    return bank.keys[int(indices[0, 0])]


def _panel(bench: Bench, method: Method, record: ImageRecord) -> Panel:
    frame = bench.protocol.frame(record)
    image = bench.protocol.show(load_rgb(record)) if frame is None else frame.image
    explain = method.build(bench.subject)
    query = bench.query(record.key, image)
    reduction = method.reduction(bench.protocol.question)
    pixels = heatmap(explain(query), (image.shape[1], image.shape[2]), reduction)
    box = None if frame is None else frame.box
    return Panel(
        image=_pixels(image),
        heatmap=pixels,
        box=box,
        predicted=None if box is None else _box_at(pixels, box, PAPER_THRESHOLD),
        caption=record.class_name,
    )


def _box_at(pixels: np.ndarray, box: Box, threshold: float) -> Box | None:
    sweep = threshold_sweep(pixels, box, thresholds=np.array([threshold]))
    if sweep.empty:
        return None
    x0, y0, x1, y1 = (float(side) for side in sweep.boxes[0])
    return x0, y0, x1, y1
