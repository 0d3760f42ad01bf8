"""Protocol E: does a map tell a network that rests on a mark from one that does not?

Three networks are trained from one start on the same photographs (`benchmarks.runs.marked`), each
photograph once as it is and once without its object, so that a mark that is of use is used:

- absent: no marks;
- tied: each with a mark that is that of its class;
- random: each with a mark drawn at random, so that it says nothing of the class.

The test images are photographs of other classes, each with one of the marks. Explained is the
match: the similarity to a reference that shares both with it, another photograph of its class with
the same mark elsewhere, less the mean similarity to foils that share neither. The network trained
with the tied marks rests on the mark, the one trained with marks at random on the object. With c,
the share of a map in the mark, the figures are the mean of c(tied) - c(random), and how well c
tells the two networks apart (AUROC). What does not look at the network, such as an edge filter,
scores 0 and 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.core.seeding import sample, seed_of
from benchmarks.datasets.marks import mark, place_beside
from benchmarks.datasets.preprocess import to_tensor
from benchmarks.datasets.records import Box, ImageRecord
from benchmarks.metrics.attention import attention_score
from benchmarks.metrics.bootstrap import paired_auroc
from benchmarks.metrics.figures import Figure
from benchmarks.metrics.floors import edge_heatmap, uniform_heatmap
from benchmarks.protocols.exchange import background
from benchmarks.protocols.protocol import (
    CropProtocol,
    Embed,
    EvaluationProtocol,
    Frame,
    Measures,
    Source,
    centred_heatmap,
)
from benchmarks.protocols.references import another_of_class
from benchmarks.protocols.swap import photograph
from captum_embed.errors import InputError

NETWORKS = ("absent", "tied", "random")
NUM_FOILS = 4

FIGURES = (
    Figure(
        "mark_difference", "mark, difference",
        "Share of the map in the mark for the network that rests on it, less that for the network "
        "that does not; chance is 0",
        "higher", unit="", lead=True,
        value=lambda measures: measures["mark_tied"] - measures["mark_random"],
    ),
    Figure(
        "mark_auroc", "mark, AUROC",
        "How often the share of the map in the mark is higher for the network that rests on it; "
        "chance is 0.5",
        "higher", unit="", aggregate=paired_auroc,
        value=lambda measures: [measures["mark_tied"], measures["mark_random"]],
    ),
    *(
        Figure(
            f"mark_{name}", f"in the mark, {name}",
            f"Share of the map in the mark, %; the network that was trained with marks {name}",
            "higher" if name == "tied" else "lower", in_terminal=False,
        )
        for name in NETWORKS
    ),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class MarkedImage:
    """A test image with a mark, and what it is compared with.

    Args:
        record (ImageRecord): of the image.
        other (ImageRecord): another image of its class.
        number (int): of the mark, which both have.
        foils (tuple): images of other classes, and the number of each one's mark, which is another.
        seed (int): of the marks' places.
    """

    record: ImageRecord
    other: ImageRecord
    number: int
    foils: tuple[tuple[ImageRecord, int], ...]
    seed: int

    @property
    def key(self) -> str:
        return f"marked {self.record.key}"

    @property
    def label(self) -> int:
        return self.record.label


class MarkProtocol(CropProtocol):
    """E: maps of three networks on the same marked crops of the attention protocol.

    Args:
        crops (EvaluationProtocol): shows the images.
    """

    name = "mark"
    title = "share in a mark that the network rests on, or not, 224 crop"
    question = "why"
    brings_references = True
    networks = NETWORKS
    figures = FIGURES

    def __init__(self, crops: EvaluationProtocol) -> None:
        super().__init__(crops)
        # What is prepared of a network is that network's.
        self.shows = self.name

    def items(self, source: Source) -> Sequence[MarkedImage]:
        """The test images, or some, each with a mark that is not its own class's.

        Raises:
            InputError: a class with a single image, or fewer than two training classes.
        """
        tied = marks_of(source.train_records)
        return [
            self._item(record, tied, source)
            for record in sample(source.records, source.limit, source.seed)
        ]

    def _item(self, record: ImageRecord, tied: dict[int, int], source: Source) -> MarkedImage:
        draw = np.random.default_rng(seed_of(source.seed, self.name, "foils", record.key))
        number = foreign_mark(record, tied, seed_of(source.seed, self.name, record.key))
        strangers = [one for one in source.records if one.label != record.label]
        others = [other for other in tied.values() if other != number]
        if not strangers:
            raise InputError(
                "the mark protocol takes two test classes or more: foils are of another class; "
                "choose more classes, or leave the mark protocol out"
            )
        foils = tuple(
            (strangers[index], others[draw.integers(len(others))])
            for index in draw.integers(len(strangers), size=NUM_FOILS)
        )
        other = another_of_class(record, source, self.name)
        return MarkedImage(record, other, number, foils, source.seed)

    def marked(
        self,
        record: ImageRecord,
        number: int | None,
        seed: int,
        what: str,
        *,
        without_object: bool = False,
    ) -> tuple[Tensor, Box] | None:
        """The crop of an image with a mark, and where the mark lies.

        Args:
            record (ImageRecord): of the image.
            number (int, optional): of the mark; None: no mark is drawn.
            seed (int): of the place, with `what`.
            what (str): the image is shown as.
            without_object (bool): background lies in the object's place.

        Returns:
            None where the object lies outside the crop.
        """
        frame = self.crops.frame(record)
        if frame is None:
            return None
        generator = np.random.default_rng(seed_of(seed, self.name, what, record.key))
        shown = photograph(frame)
        box = place_beside(shown.mask, generator)
        pixels = background(shown) if without_object else shown.pixels.clone()
        if number is None:
            return pixels, box
        x0, y0, x1, y1 = (int(side) for side in box)
        drawn = to_tensor(Image.fromarray(mark(number)))
        pixels[:, y0:y1, x0:x1] = drawn[:, : y1 - y0, : x1 - x0]
        return pixels, box

    def frame(self, item: MarkedImage) -> Frame | None:
        own = self.marked(item.record, item.number, item.seed, "test")
        other = self.marked(item.other, item.number, item.seed, "reference")
        foils = [self.marked(one, number, item.seed, "foil") for one, number in item.foils]
        shown = [foil[0] for foil in foils if foil is not None]
        if own is None or other is None or not shown:
            return None
        return Frame(own[0], own[1], reference=other[0], foils=torch.stack(shown))

    def measure(
        self, heatmaps: Sequence[np.ndarray], frame: Frame, embed: Embed | None = None
    ) -> Measures:
        """Of the maps of the three networks, in the order of `NETWORKS`."""
        return {
            "empty": not all(np.any(pixels) for pixels in heatmaps),
            **{
                f"mark_{name}": float(attention_score(pixels, frame.box))
                for name, pixels in zip(NETWORKS, heatmaps, strict=True)
            },
        }

    def floors(self, frame: Frame, embed: Embed | None = None) -> dict[str, Measures]:
        height, width = frame.size
        maps = {
            "centre_box": centred_heatmap(frame.size),
            "uniform_heatmap": uniform_heatmap(width, height),
            "edge_filter": edge_heatmap(frame.image.numpy()),
        }
        return {
            name: self.measure([pixels] * len(NETWORKS), frame) for name, pixels in maps.items()
        }


def marks_of(records: Sequence[ImageRecord]) -> dict[int, int]:
    """The mark that is tied to each training class.

    Raises:
        InputError: fewer than two classes.
    """
    labels = sorted({record.label for record in records})
    if len(labels) < 2:
        raise InputError(
            f"the mark protocol trains on two classes or more, and there are {len(labels)}; choose "
            "more --train-classes, or leave the mark protocol out"
        )
    return {label: number for number, label in enumerate(labels)}


def foreign_mark(record: ImageRecord, tied: dict[int, int], seed: int) -> int:
    """A mark at random that is not tied to the image's own class."""
    numbers = [number for label, number in tied.items() if label != record.label]
    return numbers[int(np.random.default_rng(seed).integers(len(numbers)))]


def followed(embeddings: Tensor, labels: Sequence[int], marks: Sequence[int]) -> dict[str, float]:
    """Whether retrieval follows the mark or the class, where it cannot follow both.

    Args:
        embeddings (Tensor): (N, D), of marked images.
        labels (sequence of int): N classes.
        marks (sequence of int): N marks.

    Returns:
        dict: ``"mark"`` and ``"class"``, shares of the images whose nearest other image has the
        same mark, or the same class; images that share both with the query are left out.

    Raises:
        InputError: no image has another that shares not both with it.

    Example:
        >>> points = torch.tensor([[0.0], [0.1], [1.0], [1.1]])
        >>> followed(points, [1, 2, 1, 2], [0, 0, 1, 1])
        {'mark': 1.0, 'class': 0.0}
    """
    classes, drawn = torch.tensor(labels), torch.tensor(marks)
    same_class, same_mark = classes[:, None] == classes, drawn[:, None] == drawn
    distances = torch.cdist(embeddings.double(), embeddings.double())
    distances = distances.masked_fill(same_class & same_mark, torch.inf)
    asked = distances.isfinite().any(1)
    if not asked.any():
        raise InputError("all images have one class and one mark: retrieval has no choice")
    nearest = distances.argmin(1)
    rows = torch.arange(len(nearest))
    return {
        name: float(same[rows, nearest][asked].float().mean())
        for name, same in (("mark", same_mark), ("class", same_class))
    }
