"""``captum-embed bank info``, ``verify``, ``merge`` and ``drop``: banks that are there already."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from captum_embed.command_line.images import printable
from captum_embed.command_line.preparation import (
    CLASS_NAMES,
    PREPROCESSING,
    class_names,
    excluded,
)
from captum_embed.errors import BankFileError, BankMismatchError, InputError
from captum_embed.weight_bank import WeightBank
from captum_embed.weight_bank.files import read_manifest


def run(parsed: argparse.Namespace) -> tuple[Any, str]:
    """Runs one of the commands; what the banks hold, and what a person is told."""
    if parsed.action == "merge":
        return _merge(parsed)
    if parsed.action == "drop":
        return _drop(parsed)
    banks = [facts_of(Path(path), verify=parsed.action == "verify") for path in parsed.banks]
    if parsed.action == "info":
        return banks, "\n\n".join(map(told, banks))
    return banks, "\n".join(
        f"{printable(facts['bank'])}: whole, {facts['entries']} entries" for facts in banks
    )


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
    classes = class_names(bank)
    metadata.pop(CLASS_NAMES, None)
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
        "classes": classes,
        **metadata,
    }


def told(facts: dict[str, Any]) -> str:
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
    return facts, told(facts)


def _drop(parsed: argparse.Namespace) -> tuple[dict[str, Any], str]:
    names = excluded(WeightBank.load(parsed.bank, verify=False), parsed.names, "drop")
    WeightBank.drop_from(parsed.bank, names or [])
    facts = facts_of(Path(parsed.bank))
    return facts, told(facts)


def _require_own_keys(paths: Sequence[str], banks: Sequence[WeightBank]) -> None:
    homes: dict[str, str] = {}
    for path, bank in zip(paths, banks, strict=True):
        for key in bank.keys or ():
            if key in homes:
                raise InputError(
                    f"the key {printable(key)} is in {printable(homes[key])} and in "
                    f"{printable(path)}; --prefix-keys puts the name of a bank's folder in front"
                )
            homes[key] = path


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
