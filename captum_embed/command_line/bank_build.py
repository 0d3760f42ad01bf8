"""``captum-embed bank build``: a weight bank of a folder with one folder for each class."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from captum_embed import TripletForward, build_weight_bank
from captum_embed.command_line.bank_files import facts_of, require_replaceable, told
from captum_embed.command_line.images import ImageFolder, Preprocessing, printable, require_readable
from captum_embed.command_line.preparation import (
    CLASS_NAMES,
    PREPROCESSING,
    RECIPE,
    prepare,
)
from captum_embed.errors import InputError


def run(parsed: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Runs the command; what the bank holds, and what a person is told."""
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
    return facts, told(facts)
