"""Protocol C: does a map of the similarity to one cell's class lie in that cell?

Four crops of four classes stand in a two by two mosaic. For each cell, the similarity of the whole
mosaic to another image of that cell's class is explained. A map that does not depend on what it is
asked for scores 1/4, whatever else it shows. In the variant with foils the similarity to the
references of the other three cells, averaged, counts against.

A mosaic is measured only if the network, shown each crop alone, finds every reference's cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.core.seeding import seed_of
from benchmarks.datasets.records import ImageRecord, load_rgb
from benchmarks.metrics.figures import Figure
from benchmarks.metrics.floors import uniform_heatmap
from benchmarks.metrics.mosaic import CELLS, mosaic_mass, mosaic_pointing, told_apart
from benchmarks.protocols.protocol import (
    CropProtocol,
    Embed,
    Frame,
    Measures,
    Question,
    Source,
)
from benchmarks.protocols.references import as_references, unit_embeddings
from captum_embed.errors import InputError

# Draws for each mosaic that is asked for, at most. By chance one of 256 is fit.
MOST_TRIES = 1000

FIGURES = (
    Figure(
        "mosaic_mass", "mosaic mass",
        "Share of the map in the cell of the reference's class, mosaics of four classes, %; "
        "chance is 25",
        "higher", lead=True,
    ),
    Figure(
        "mosaic_pointing", "mosaic pointing",
        "Maps whose maximum lies in the cell of the reference's class, %; chance is 25", "higher",
    ),
    Figure(
        "mosaic_foil_mass", "mosaic mass, foils",
        "Mosaic mass where the similarity to the other cells' references counts against, %",
        "higher",
    ),
    Figure(
        "mosaic_foil_pointing", "mosaic pointing, foils",
        "Mosaic pointing where the similarity to the other cells' references counts against, %",
        "higher",
    ),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Mosaic:
    """Four images of four classes, and another image of each class.

    Args:
        number (int): of the draw, from 1; draws that were not fit are numbered as well.
        cells (tuple of ImageRecord): in reading order.
        references (tuple of ImageRecord): of the cells' classes.
        embeddings (np.ndarray): (4, D), unit embeddings of the references.
    """

    number: int
    cells: tuple[ImageRecord, ...]
    references: tuple[ImageRecord, ...]
    embeddings: NDArray[np.float32]

    @property
    def key(self) -> str:
        return f"mosaic {self.number}"

    @property
    def label(self) -> int:
        """Class of the first cell."""
        return self.cells[0].label


class MosaicProtocol(CropProtocol):
    """C: two by two crops of the attention protocol; mass and pointing in the asked cell."""

    name = "mosaic"
    title = "cell of the reference's class in mosaics of four 224 crops"
    question = "why"
    brings_references = True
    figures = FIGURES

    def items(self, source: Source) -> Sequence[Mosaic]:
        """The first `source.num_mosaics` fit draws; fewer are the first of more.

        Raises:
            InputError: fewer than four classes of two images, or no draw is fit.
        """
        by_class = _classes_with_pairs(source.records)
        embeddings = unit_embeddings(source.records, self.show, source.embed)
        mosaics: list[Mosaic] = []
        for number in range(1, source.num_mosaics * MOST_TRIES + 1):
            cells, references = _draw(by_class, seed_of(source.seed, self.name, str(number)))
            if told_apart(embeddings[cells], embeddings[references]):
                shown, asked = (
                    tuple(source.records[index] for index in indices)
                    for indices in (cells, references)
                )
                mosaics.append(Mosaic(number, shown, asked, embeddings[references]))
                if len(mosaics) == source.num_mosaics:
                    break
        if not mosaics:
            raise InputError(
                f"none of {number} mosaics is fit to be measured: the network does not tell the "
                "classes apart; train it, or leave the mosaic protocol out"
            )
        return mosaics

    def num_tried(self, items: Sequence[Mosaic]) -> int:
        return items[-1].number

    def frame(self, item: Mosaic) -> Frame:
        first, second, third, fourth = (self.show(load_rgb(record)) for record in item.cells)
        rows = torch.cat([first, second], 2), torch.cat([third, fourth], 2)
        image = torch.cat(rows, 1)
        height, width = image.shape[1:]
        return Frame(image, (0.0, 0.0, width, height), questions=questions(item.embeddings))

    def measure(
        self, heatmaps: Sequence[np.ndarray], frame: Frame, embed: Embed | None = None
    ) -> Measures:
        maps = np.stack(heatmaps)
        plain, against = maps[:CELLS], maps[CELLS:]
        return {
            # One at least of the maps without foils; it scores 0.
            "empty": not plain.any((1, 2)).all(),
            "mosaic_mass": mosaic_mass(plain),
            "mosaic_pointing": mosaic_pointing(plain),
            "mosaic_foil_mass": mosaic_mass(against),
            "mosaic_foil_pointing": mosaic_pointing(against),
        }

    def floors(self, frame: Frame, embed: Embed | None = None) -> dict[str, Measures]:
        height, width = frame.size
        uniform = [uniform_heatmap(width, height)] * len(frame.questions)
        return {"uniform_heatmap": self.measure(uniform, frame)}


def questions(embeddings: NDArray[np.float32]) -> tuple[Question, ...]:
    """For each cell the reference alone, then for each cell the reference against the others.

    Args:
        embeddings (np.ndarray): (4, D), of the references.
    """
    plain = [Question(as_references(own)) for own in embeddings]
    against = [
        Question(as_references(own), as_references(np.delete(embeddings, cell, axis=0)))
        for cell, own in enumerate(embeddings)
    ]
    return (*plain, *against)


def _classes_with_pairs(records: Sequence[ImageRecord]) -> Mapping[int, Sequence[int]]:
    by_class: dict[int, list[int]] = {}
    for index, record in enumerate(records):
        by_class.setdefault(record.label, []).append(index)
    paired = {label: indices for label, indices in sorted(by_class.items()) if len(indices) > 1}
    if len(paired) < CELLS:
        raise InputError(
            f"a mosaic takes {CELLS} test classes of two or more images, and there are "
            f"{len(paired)}; choose other classes, or leave the mosaic protocol out"
        )
    return paired


def _draw(
    by_class: Mapping[int, Sequence[int]], seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices (4,) of cells and of references."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(list(by_class), CELLS, replace=False)
    pairs = [generator.choice(by_class[label], 2, replace=False) for label in labels]
    cells, references = np.array(pairs).T
    return cells, references
