"""``captum-embed bank neighbors``: the bank entries nearest to images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from captum_embed.command_line.images import printable
from captum_embed.command_line.preparation import (
    chosen_images,
    class_names,
    excluded,
    lenders,
    prepare,
)
from captum_embed.weight_bank import WeightBank
from captum_embed.weight_bank.queries import Neighbors, nearest_entries


def run(parsed: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    """Runs the command; the neighbours of each image, and what a person is told."""
    images = chosen_images(parsed, *parsed.images)
    bank = WeightBank.load(parsed.bank)
    prepared = prepare(parsed, bank)
    exclude, classes = excluded(bank, parsed.exclude), class_names(bank)
    count = parsed.num_neighbors or lenders(prepared.recipe, bank, exclude)
    records = []
    for path in tqdm(images, "embed", disable=parsed.quiet, delay=1):
        embedding = prepared.embedding(prepared.picture(path))
        nearest = nearest_entries(bank, embedding, count, exclude)
        records.append({"image": str(path), "neighbors": described(nearest, classes)})
    return records, "\n".join(map(_told, records))


def described(neighbors: Neighbors, classes: Sequence[str] | None) -> list[dict[str, Any]]:
    """The neighbours of one query, nearest first: key, class, label, distance, index."""
    names = dict(enumerate(classes or ()))
    rows = []
    for place, index in enumerate(neighbors.indices[0].tolist()):
        label = None if neighbors.labels is None else int(neighbors.labels[0, place])
        rows.append(
            {
                "key": None if neighbors.keys is None else neighbors.keys[0][place],
                "class": None if label is None else names.get(label),
                "label": label,
                "distance": float(neighbors.distances[0, place]),
                "index": index,
            }
        )
    return rows


def _told(record: dict[str, Any]) -> str:
    rows = [
        (
            printable(one["key"] if one["key"] is not None else f"entry {one['index']}"),
            printable(one["class"] if one["class"] is not None else one["label"] or ""),
            f"{one['distance']:.4f}",
        )
        for one in record["neighbors"]
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = [f"  {d}  {k:{widths[0]}}  {c:{widths[1]}}".rstrip() for k, c, d in rows]
    return "\n".join([printable(record["image"]), *lines])
