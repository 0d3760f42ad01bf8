"""Protocol F: does a map's signed mass in a patch predict what the patch's removal does?

For each patch of a grid, the similarity to a reference is taken with and without the patch. The
figure is Spearman's correlation of that drop with the map's signed mass in the patch, averaged
over grids of 4x4, 7x7 and 14x14 patches and over two references: the image itself, and another
image of its class. A map that says the same of all patches scores 0.

Beside it stands the symmetric relevance gain: the area under the similarity while the patches of
a 14x14 grid go least relevant first, minus that while the most relevant go first. Chance is 0.

In a patch's place comes the mean colour of the crop: nothing of the patch is left, however large
it is, and the crop's brightness stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from benchmarks.core.seeding import sample
from benchmarks.datasets.records import ImageRecord
from benchmarks.metrics.figures import Figure
from benchmarks.metrics.floors import uniform_heatmap
from benchmarks.metrics.single_deletion import (
    GRIDS,
    enlarged,
    most_first,
    patch_masks,
    patch_sums,
    rank_correlation,
    relevance_gain,
)
from benchmarks.protocols.protocol import (
    CropProtocol,
    Embed,
    Frame,
    Measures,
    Question,
    Source,
    centred_heatmap,
)
from benchmarks.protocols.references import another_of_class, as_references, unit_embeddings
from captum_embed.errors import InputError

BATCH = 32
REFERENCES = ("itself", "another")

FIGURES = (
    Figure(
        "deletion_spearman", "single deletion",
        "Spearman's correlation of the map's signed mass in a patch with the drop of the "
        "similarity when the patch is removed; chance is 0",
        "higher", unit="", lead=True,
    ),
    Figure(
        "srg", "relevance gain",
        "Area under the similarity while the least relevant patches are removed first, minus that "
        "while the most relevant are; chance is 0",
        "higher", unit="",
    ),
    *(
        Figure(
            f"deletion_spearman_{name}", f"single deletion, {name}",
            f"Single deletion where the reference is {words}", "higher", unit="",
            in_terminal=False,
        )
        for name, words in zip(REFERENCES, ("the image", "another of its class"), strict=True)
    ),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class ImageWithReferences:
    """A test image, and what it is compared with.

    Args:
        record (ImageRecord): of the image.
        other (ImageRecord): another image of its class.
        embeddings (np.ndarray): (2, D), unit embeddings of both.
    """

    record: ImageRecord
    other: ImageRecord
    embeddings: NDArray[np.float32]

    @property
    def key(self) -> str:
        return self.record.key

    @property
    def label(self) -> int:
        return self.record.label


@dataclass(frozen=True)
class DeletionFrame(Frame):
    """A crop, with the drops of its patches, which are the same for all methods.

    Args:
        drops (dict): filled when the first map is measured: by patches along a side, the drops
            (2, patches * patches) of the similarity to each reference.
    """

    drops: dict[int, NDArray[np.float64]] = field(default_factory=dict, compare=False)


class DeletionProtocol(CropProtocol):
    """F: single deletion and symmetric relevance gain on the attention protocol's crops."""

    name = "deletion"
    title = "what the removal of a patch does to the similarity, 224 crop"
    signed = True
    question = "why"
    brings_references = True
    figures = FIGURES

    def items(self, source: Source) -> Sequence[ImageWithReferences]:
        """The test images, or some, each with another one of its class drawn for it.

        Raises:
            InputError: a class with a single image.
        """
        pairs = [
            (record, another_of_class(record, source, self.name))
            for record in sample(source.records, source.limit, source.seed)
        ]
        needed = list({record.key: record for pair in pairs for record in pair}.values())
        row = {record.key: index for index, record in enumerate(needed)}
        embeddings = unit_embeddings(needed, self.show, source.embed)
        return [
            ImageWithReferences(record, other, embeddings[[row[record.key], row[other.key]]])
            for record, other in pairs
        ]

    def frame(self, item: ImageWithReferences) -> Frame | None:
        frame = self.crops.frame(item.record)
        if frame is None:
            return None
        asked = tuple(Question(as_references(embedding)) for embedding in item.embeddings)
        return DeletionFrame(frame.image, frame.box, frame.mask, asked)

    def measure(
        self, heatmaps: Sequence[np.ndarray], frame: Frame, embed: Embed | None = None
    ) -> Measures:
        if embed is None or not isinstance(frame, DeletionFrame):
            raise InputError("single deletion needs the network and its own frame: give embed")
        drops = patch_drops(frame, embed)
        correlations = [
            np.mean([rank_correlation(patch_sums(pixels, n), drops[n][which]) for n in GRIDS])
            for which, pixels in enumerate(heatmaps)
        ]
        gains = [gain(pixels, frame, which, embed) for which, pixels in enumerate(heatmaps)]
        return {
            "empty": not any(np.any(pixels) for pixels in heatmaps),
            "deletion_spearman": float(np.mean(correlations)),
            "srg": float(np.mean(gains)),
            **{
                f"deletion_spearman_{name}": float(value)
                for name, value in zip(REFERENCES, correlations, strict=True)
            },
        }

    def floors(self, frame: Frame, embed: Embed | None = None) -> dict[str, Measures]:
        height, width = frame.size
        return {
            "centre_box": self.measure([centred_heatmap(frame.size)] * 2, frame, embed),
            "uniform_heatmap": self.measure([uniform_heatmap(width, height)] * 2, frame, embed),
        }


def patch_drops(frame: DeletionFrame, embed: Embed) -> dict[int, NDArray[np.float64]]:
    """See `DeletionFrame`; computed once for a frame."""
    if not frame.drops:
        whole = similarities(frame, np.zeros((1, *frame.size), dtype=bool), embed)
        for patches in GRIDS:
            without = similarities(frame, patch_masks(patches, *frame.size), embed)
            frame.drops[patches] = whole - without
    return frame.drops


def gain(pixels: np.ndarray, frame: Frame, which: int, embed: Embed) -> float:
    """Symmetric relevance gain of a signed map; 0 where it says the same of all patches.

    Args:
        pixels (np.ndarray): (H, W).
        frame (Frame): of the image.
        which (int): the question that the map answers.
        embed (Callable): the network.
    """
    sums = patch_sums(pixels, GRIDS[-1])
    if np.ptp(sums) == 0:
        return 0.0
    most = most_first(sums)
    least = ~most[::-1]
    # Nothing and all removed are the same for both orders.
    removed = enlarged(np.concatenate([most, least[1:-1]]), *frame.size)
    scores = similarities(frame, removed, embed)[which]
    steps = len(most)
    middle = scores[steps:]
    return relevance_gain([scores[0], *middle, scores[steps - 1]], scores[:steps])


def similarities(frame: Frame, removed: NDArray[np.bool_], embed: Embed) -> NDArray[np.float64]:
    """Cosine similarity to each question's reference, with pixels in the crop's mean colour.

    Args:
        frame (Frame): of Q questions, with one reference each.
        removed (np.ndarray): (N, H, W).
        embed (Callable): the network.

    Returns:
        (Q, N).
    """
    plain = frame.image.mean((1, 2), keepdim=True)
    embeddings = torch.cat(
        [
            embed(torch.where(torch.from_numpy(part)[:, None], plain, frame.image))
            for part in np.split(removed, range(BATCH, len(removed), BATCH))
        ]
    )
    given = [question.references for question in frame.questions]
    references = torch.cat([one for one in given if one is not None])
    products = F.normalize(references.double()) @ F.normalize(embeddings.double()).T
    cosines: NDArray[np.float64] = products.numpy()
    return cosines
