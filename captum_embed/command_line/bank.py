"""``captum-embed bank``: banks are built, described, verified, merged, reduced and searched."""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from captum_embed import TripletForward, build_weight_bank
from captum_embed.command_line.images import ImageFolder, Preprocessing, printable, require_readable
from captum_embed.command_line.preparation import (
    CLASS_NAMES,
    PREPROCESSING,
    RECIPE,
    chosen_images,
    class_names,
    classes_with_entries,
    default_num_neighbors,
    excluded,
    prepare,
)
from captum_embed.errors import BankFileError, BankMismatchError, InputError
from captum_embed.weight_bank import WeightBank
from captum_embed.weight_bank.files import read_manifest
from captum_embed.weight_bank.queries import Neighbors, nearest_entries


def run(parsed: argparse.Namespace) -> tuple[Any, str]:
    """Runs one of the actions; its result, and the text that is printed."""
    actions = {
        "build": _build,
        "info": _info,
        "verify": _verify,
        "merge": _merge,
        "drop": _drop,
        "neighbors": _neighbors,
    }
    return actions[parsed.action](parsed)


def _build(parsed: argparse.Namespace) -> tuple[dict[str, Any], str]:
    require_replaceable(parsed.output, parsed.force)
    folder = ImageFolder(parsed.images, Preprocessing())
    if len(folder.class_names) < 2:
        raise InputError(
            f"{printable(parsed.images)} holds the class {folder.class_names[0]!r} alone; expected "
            "two or more folders: an image matches its class against others"
        )
    counts = Counter(label for _, label in folder.samples)
    single = [name for label, name in enumerate(folder.class_names) if counts[label] == 1]
    if single:
        raise InputError(
            f"the class {printable(single[0])} of {printable(parsed.images)} has one image; an "
            "image matches others of its class: add images, or take the folder out"
        )
    require_readable([path for path, _ in folder.samples], progress=not parsed.quiet)
    prepared = prepare(parsed)
    folder.preprocessing = prepared.preprocessing
    prepared.embedding(prepared.picture(folder.samples[0][0]))
    forward = TripletForward(
        prepared.encoder,
        margin=parsed.margin,
        distance=parsed.distance,
        explains=parsed.explains,
    )
    mining = {**prepared.recipe.bank_settings}
    if parsed.mining:
        mining = {"mining": parsed.mining}
    if parsed.num_tuples:
        mining["num_tuples"] = parsed.num_tuples
    settings = {name: value for name, value in prepared.layer.items() if name != "layer"}
    build_weight_bank(
        forward,
        prepared.layer["layer"],
        folder,
        **mining,
        **settings,
        batch_size=parsed.batch_size,
        num_workers=parsed.workers,
        seed=parsed.seed,
        metadata={
            "network": prepared.network.name,
            RECIPE: prepared.recipe.name,
            CLASS_NAMES: json.dumps(folder.class_names),
            PREPROCESSING: prepared.preprocessing.to_text(),
        },
        path=parsed.output,
        progress=not parsed.quiet,
    )
    facts = facts_of(Path(parsed.output))
    return facts, facts_text(facts)


def _info(parsed: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    banks = [facts_of(Path(path)) for path in parsed.banks]
    return banks, "\n\n".join(map(facts_text, banks))


def _verify(parsed: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    banks = [facts_of(Path(path), verify=True) for path in parsed.banks]
    return banks, "\n".join(
        f"{printable(facts['bank'])}: whole, {facts['entries']} entries" for facts in banks
    )


def _merge(parsed: argparse.Namespace) -> tuple[dict[str, Any], str]:
    require_replaceable(parsed.output, parsed.force)
    banks = [WeightBank.load(path) for path in parsed.banks]
    named = [class_names(bank) for bank in banks]
    if any(names is None for names in named) and any(names is not None for names in named):
        without = parsed.banks[named.index(None)]
        raise InputError(
            f"the bank {printable(without)} does not say the names of its classes, and others do: "
            "whether its numbers mean the same classes is unknown; build it with `captum-embed "
            "bank build`"
        )
    prepared = [bank.metadata.get(PREPROCESSING) for bank in banks]
    if len(set(prepared)) > 1:
        raise BankMismatchError(
            f"images of the banks were prepared in different ways ({prepared[0]}, and "
            f"{next(one for one in prepared if one != prepared[0])}); build them with the same "
            "options"
        )
    if all(names is not None for names in named):
        banks = _with_common_classes(banks, [names or [] for names in named])
    keys = None
    if parsed.prefix_keys:
        keys = [
            f"{Path(os.path.realpath(path)).name}/{key}"
            for path, bank in zip(parsed.banks, banks, strict=True)
            for key in _keys(path, bank)
        ]
    else:
        _require_own_keys(parsed.banks, banks)
    joined = WeightBank.concat(banks, keys)
    if parsed.top_channels or parsed.embeddings:
        joined = joined.compact(parsed.top_channels, embeddings=parsed.embeddings)
    joined.save(parsed.output)
    facts = facts_of(Path(parsed.output))
    return facts, facts_text(facts)


def _drop(parsed: argparse.Namespace) -> tuple[dict[str, Any], str]:
    names = excluded(WeightBank.load(parsed.bank, verify=False), parsed.names, "drop")
    WeightBank.drop_from(parsed.bank, names or [])
    facts = facts_of(Path(parsed.bank))
    return facts, facts_text(facts)


def _neighbors(parsed: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    images = chosen_images(parsed, *parsed.images)
    bank = WeightBank.load(parsed.bank)
    prepared = prepare(parsed, bank)
    exclude, classes = excluded(bank, parsed.exclude), class_names(bank)
    count = parsed.num_neighbors or default_num_neighbors(prepared.recipe, bank, exclude)
    records = []
    for path in tqdm(images, "embed", disable=parsed.quiet, delay=1):
        embedding = prepared.embedding(prepared.picture(path))
        nearest = nearest_entries(bank, embedding, count, exclude)
        records.append({"image": str(path), "neighbors": described(nearest, classes)})
    return records, "\n".join(map(_neighbors_text, records))


def facts_of(path: Path, *, verify: bool = False) -> dict[str, Any]:
    """What a bank holds.

    Args:
        path: Its folder.
        verify: Read every byte, and compare it with the bank's checksums.

    Raises:
        BankFileError: It is no bank, or is damaged.
    """
    bank = WeightBank.load(path, verify=verify)
    manifest = read_manifest(path)
    metadata = dict(bank.metadata)
    named = metadata.pop(CLASS_NAMES, None) is not None
    dropped = sum(stop - first for shard in manifest.shards for first, stop in shard.dropped)
    return {
        "bank": str(path),
        "entries": len(bank),
        "embedding_dim": bank.embedding_dim,
        "channels": bank.num_channels,
        "top_channels": manifest.top_channels,
        "dtype": manifest.weight_dtype,
        "embedding_dtype": manifest.embedding_dtype,
        "bytes": sum(file.stat().st_size for file in path.iterdir()),
        "dropped": dropped,
        "labels": manifest.has_labels,
        "keys": manifest.has_keys,
        "classes": list(classes_with_entries(bank)) if named else None,
        **metadata,
    }


def facts_text(facts: dict[str, Any]) -> str:
    """The facts of a bank in lines."""
    shown = {**facts, "bytes": f"{facts['bytes']:,}"}
    if facts["classes"] is not None:
        names = [printable(name) for name in facts["classes"]]
        more = f", ... ({len(names)})" if len(names) > 8 else ""
        shown["classes"] = ", ".join(names[:8]) + more
    width = max(map(len, shown))
    return "\n".join(
        f"{printable(name):{width}}  {printable(value)}"
        for name, value in shown.items()
        if value is not None
    )


def require_replaceable(path: str, force: bool) -> None:
    """Refuses to write a bank where something is.

    Raises:
        InputError: It is there; a bank may be replaced by force, anything else not at all.
    """
    if not os.path.lexists(path) or (os.path.isdir(path) and not os.listdir(path)):
        return
    if not (Path(path) / "manifest.json").is_file():
        raise InputError(f"{printable(path)} is in use, and no weight bank; give another --output")
    if not force:
        raise InputError(f"the bank {printable(path)} is there already; give --force to replace it")


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


def _neighbors_text(record: dict[str, Any]) -> str:
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


def _require_own_keys(paths: Sequence[str], banks: Sequence[WeightBank]) -> None:
    owners: dict[str, str] = {}
    for path, bank in zip(paths, banks, strict=True):
        for key in bank.keys or ():
            if key in owners:
                raise InputError(
                    f"the key {printable(key)} is in {printable(owners[key])} and in "
                    f"{printable(path)}; --prefix-keys puts the name of a bank's folder in front"
                )
            owners[key] = path


def _keys(path: str, bank: WeightBank) -> Sequence[str]:
    if bank.keys is None:
        raise InputError(f"the bank {printable(path)} has no keys, so --prefix-keys has no meaning")
    return bank.keys


def _with_common_classes(banks: list[WeightBank], named: list[list[str]]) -> list[WeightBank]:
    """The banks with one numbering of classes, by their names."""
    names = list(dict.fromkeys(name for each in named for name in each))
    numbers = {name: number for number, name in enumerate(names)}
    relabelled = []
    for bank, own in zip(banks, named, strict=True):
        labels = bank.labels
        if labels is not None and own != names[: len(own)]:
            if int(labels.min()) < 0 or int(labels.max()) >= len(own):
                raise BankFileError("a bank has labels without a name; build it again")
            labels = torch.tensor([numbers[name] for name in own])[labels]
        metadata = {**bank.metadata, CLASS_NAMES: json.dumps(names)}
        relabelled.append(bank._relabelled(labels, metadata))
    return relabelled
