"""``captum-embed explain``: maps of images, as pictures, numbers and a page."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from captum_embed import SimilarityForward, TripletForward
from captum_embed.command_line.bank import described
from captum_embed.command_line.files import OutputFolder
from captum_embed.command_line.images import printable
from captum_embed.command_line.page import Page
from captum_embed.command_line.preparation import (
    Prepared,
    chosen_images,
    class_names,
    default_num_neighbors,
    excluded,
    prepare,
)
from captum_embed.encoders import same_embedding
from captum_embed.errors import BankMismatchError
from captum_embed.grad_cam import EmbeddingLayerGradCam
from captum_embed.visualization import signed_overlay, upsampled
from captum_embed.weight_bank import WeightBank
from captum_embed.weight_bank.queries import Neighbors

MADE_BY = "captum-embed explain"


def run(parsed: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Runs the command; the record of it, and what a person is told."""
    output = OutputFolder(parsed.output, MADE_BY, force=parsed.force)
    images = chosen_images(parsed, *parsed.images)
    references = chosen_images(parsed, *parsed.reference or [])
    foils = chosen_images(parsed, *parsed.foil or [])
    bank = None if parsed.bank is None else WeightBank.load(parsed.bank)
    prepared = prepare(parsed, bank)
    prepared.embedding(prepared.picture(images[0]))
    ways: dict[str, Any] = {}
    if references:
        ways["reference"] = _SimilarityMaps(prepared, references, foils)
    if bank is not None:
        ways["bank"] = _BankMaps(prepared, bank, parsed)
    shown = [(path, "image", ways) for path in images]
    if references and len(images) == 1:
        # Of a pair, both sides are of interest.
        back = {"reference": _SimilarityMaps(prepared, images, foils)}
        shown += [(path, "reference", back) for path in references]
    facts: dict[str, Any] = {
        **prepared.facts(),
        "references": [str(path) for path in references],
        "foils": [str(path) for path in foils],
        "bank": parsed.bank,
        "explains": parsed.explains or "match",
    }
    page = Page(prepared, facts, references, foils, parsed.bank_images)
    record = _draw(
        output, prepared, facts, page, tqdm(shown, "explain", disable=parsed.quiet, delay=1)
    )
    return record, _summary_text(record["images"], output.path)


def _draw(
    output: OutputFolder,
    prepared: Prepared,
    facts: dict[str, Any],
    page: Page,
    shown: Collection[tuple[Path, str, Mapping[str, Any]]],
) -> dict[str, Any]:
    """Writes the files of each image, the page, and last the record, which is returned."""
    done: list[dict[str, Any]] = []
    files: list[str] = []
    digits = len(str(len(shown)))
    for path, role, ways in shown:
        picture = prepared.picture(path)
        maps_of_image = {way: maps.of(picture) for way, maps in ways.items()}
        if not done:
            # Not before a first map has shown that there will be some.
            output.begin(facts)
        done.append({"image": str(path), "role": role, "maps": {}})
        name = f"{len(done):0{digits}d}-{_plain(path.stem)}"
        drawn = []
        for way, (values, told) in maps_of_image.items():
            file = f"{name}-{way}" if len(ways) > 1 else name
            overlay = _overlay(picture, values)
            array = values[0, 0].float().cpu().numpy()
            output.write(f"overlays/{file}.png", overlay.save)
            output.write(f"maps/{file}.npy", partial(np.save, arr=array, allow_pickle=False))
            record = {
                **told,
                "overlay": f"overlays/{file}.png",
                "map": f"maps/{file}.npy",
                "full_colour": float(np.abs(upsampled(values, picture.size[::-1])).max()),
            }
            files += [record["overlay"], record["map"]]
            done[-1]["maps"][way] = record
            drawn.append((way, overlay, record))
        page.add(path, role, picture, drawn)
    output.write("index.html", lambda file: file.write_text(page.html(), encoding="utf-8"))
    record = {**facts, "images": done, "files": [*files, "index.html"], "complete": True}
    output.write_results(record)
    return record


class _SimilarityMaps:
    """Maps of the similarity to references, less that to foils."""

    def __init__(self, prepared: Prepared, references: list[Path], foils: list[Path]) -> None:
        self._prepared = prepared
        embeddings = [
            torch.cat([prepared.embedding(prepared.picture(path)) for path in paths])
            if paths
            else None
            for paths in (references, foils)
        ]
        self._forward = SimilarityForward(
            prepared.encoder, cast(Tensor, embeddings[0]), embeddings[1]
        )
        self._grad_cam = prepared.recipe.grad_cam(self._forward, **prepared.layer)
        # Which the similarity is highest for.
        self._alone = None if foils else F.normalize(cast(Tensor, embeddings[0])).mean(0)[None]

    def of(self, picture: Image.Image) -> tuple[Tensor, dict[str, Any]]:
        image = self._prepared.tensor(picture)
        with torch.no_grad():
            score = float(self._forward(image))
        attribution = self._grad_cam.attribute(image)
        same = self._alone is not None and same_embedding(
            self._prepared.embedding(picture), self._alone
        )
        # At its highest the similarity has no slope: what is left of the map is noise.
        return attribution * (not same), {"similarity": score, "same": same}


class _BankMaps:
    """Maps by the weights of a bank."""

    def __init__(self, prepared: Prepared, bank: WeightBank, parsed: argparse.Namespace) -> None:
        self._prepared, self._bank = prepared, bank
        self._grad_cam = bank_grad_cam(prepared, bank, parsed.explains or "match")
        exclude = excluded(bank, parsed.exclude)
        count = parsed.num_neighbors or default_num_neighbors(prepared.recipe, bank, exclude)
        self._settings: dict[str, Any] = {"num_neighbors": count, "exclude": exclude}
        self._classes = class_names(bank)

    def of(self, picture: Image.Image) -> tuple[Tensor, dict[str, Any]]:
        image = self._prepared.tensor(picture)
        neighbors = cast(Neighbors, self._grad_cam.neighbors(image, **self._settings))
        attribution = self._grad_cam.attribute(image, **self._settings)
        return attribution, {"neighbors": described(neighbors, self._classes)}


def bank_grad_cam(prepared: Prepared, bank: WeightBank, explains: Any) -> EmbeddingLayerGradCam:
    """The attribution with a bank's weights.

    Raises:
        BankMismatchError: The bank explains the other direction, or is of another layer.
    """
    built = bank.metadata.get("explains")
    if built not in (None, explains):
        raise BankMismatchError(
            f"the bank explains the {built}, and asked for is the {explains}: the maps would show "
            f"the opposite; give --explains {built}, or build a bank with --explains {explains}"
        )
    forward = TripletForward(prepared.encoder, explains=explains)
    return prepared.recipe.grad_cam(forward, weight_bank=bank, **prepared.layer)


def _plain(name: str) -> str:
    """A name that is safe on any disk and in any page."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:40] or "image"


def _overlay(picture: Image.Image, values: Tensor) -> Image.Image:
    colours = signed_overlay(picture, values)
    return Image.fromarray((colours * 255).round().astype(np.uint8))


def _summary_text(images: list[dict[str, Any]], folder: Path) -> str:
    lines = [
        f"{printable(image['image'])}: {summary(record)}; {printable(folder / record['overlay'])}"
        for image in images
        for record in image["maps"].values()
    ]
    return "\n".join([*lines, f"Look at {printable(folder / 'index.html')}"])


def summary(record: Mapping[str, Any]) -> str:
    """One map in words."""
    if record.get("same"):
        return "the same as the references to the network, so no place makes a difference"
    if "similarity" in record:
        return f"similarity {record['similarity']:.3f}"
    nearest = record["neighbors"][0]
    name = nearest["key"] or f"entry {nearest['index']}"
    return f"nearest {printable(name)} at {nearest['distance']:.3f}"
