"""Does the embedding depend on what a heatmap highlights? Deletion and insertion.

On the crops of the attention protocol. Deletion replaces the most highlighted pixels by those of
the blurred image, 10% of all pixels at a time, until the whole image is blurred; insertion
replaces the least highlighted ones, so that the most highlighted are the first to come back. The
score of each image is the cosine similarity of its embedding to that of the unchanged image, and
the figure is the area under it: low for deletion and high for insertion where the heatmap
highlights what the embedding depends on. Blurring, and not a plain colour, keeps the changed
image close to the images that the network knows.

Equal pixels go in one random order, so that the uniform heatmap is the floor of random pixels;
an empty heatmap scores as that does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from benchmarks.datasets.records import ImageRecord
from benchmarks.metrics.figures import Curve, Figure
from benchmarks.metrics.floors import uniform_heatmap
from benchmarks.metrics.removal import SHARES, area_under_curve, removal_masks
from benchmarks.protocols.protocol import (
    CropProtocol,
    Embed,
    Frame,
    Measures,
    centred_heatmap,
)
from captum_embed.errors import InputError

# Pixels of the 224 crop; as Fong & Vedaldi (ICCV 2017) blur.
BLUR_SIGMA = 10.0


def blurred(image: Tensor) -> Tensor:
    """The image (3, H, W) without its details: Gaussian blur, reflected at the border."""
    # Three deviations to each side, less where a small image has not that much to reflect.
    reach = min(round(3 * BLUR_SIGMA), min(image.shape[1:]) - 1)
    return gaussian_blur(image, [2 * reach + 1] * 2, [BLUR_SIGMA] * 2)


def similarity_curves(
    image: Tensor, heatmap: np.ndarray, embed: Embed
) -> tuple[list[float], list[float]]:
    """Cosine similarities to the unchanged image's embedding, at `SHARES` of changed pixels.

    Args:
        image (Tensor): (3, H, W).
        heatmap (np.ndarray): (H, W), zero or more.
        embed (Callable): images (N, 3, H, W) to embeddings (N, D).

    Returns:
        tuple: of deletion, and of insertion; there the share is of the pixels that are as they
            were.
    """
    gone = torch.from_numpy(removal_masks(heatmap))[:, None]
    plain = blurred(image)
    # The ends, nothing changed and all blurred, are the same for both: one batch, all images.
    deleted = torch.where(gone, plain, image)
    inserted = torch.where(gone[1:-1], image, plain)
    embeddings = embed(torch.cat([deleted, inserted])).double()
    similarities = torch.cosine_similarity(embeddings, embeddings[:1]).tolist()
    deletion, middle = similarities[: len(SHARES)], similarities[len(SHARES) :]
    return deletion, [deletion[-1], *middle, deletion[0]]


FIGURES = (
    Figure(
        "deletion", "deletion",
        "Area under the embedding's cosine similarity to that of the unchanged crop while the "
        "most highlighted pixels are blurred, times 100",
        "lower",
    ),
    Figure(
        "insertion", "insertion", "The same while the least highlighted pixels are blurred",
        "higher", lead=True,
    ),
)  # fmt: skip
CURVES = (
    Curve("deletion", SHARES, lambda measures: measures["deletion_curve"]),
    Curve("insertion", SHARES, lambda measures: measures["insertion_curve"]),
)


class FaithfulnessProtocol(CropProtocol):
    """Deletion and insertion on the attention protocol's crops; needs the network."""

    name = "faithfulness"
    title = "deletion and insertion on the similarity of embeddings, 224 crop"
    figures = FIGURES
    curves = CURVES

    def frame(self, item: ImageRecord) -> Frame | None:
        return self.crops.frame(item)

    def measure(
        self, heatmaps: Sequence[np.ndarray], frame: Frame, embed: Embed | None = None
    ) -> Measures:
        if embed is None:
            raise InputError("deletion and insertion need the network's embeddings: give embed")
        (heatmap,) = heatmaps
        deletion, insertion = similarity_curves(frame.image, heatmap, embed)
        return {
            "empty": not heatmap.max() > 0,
            "deletion": area_under_curve(deletion),
            "insertion": area_under_curve(insertion),
            "deletion_curve": [round(similarity, 5) for similarity in deletion],
            "insertion_curve": [round(similarity, 5) for similarity in insertion],
        }

    def floors(self, frame: Frame, embed: Embed | None = None) -> dict[str, Measures]:
        height, width = frame.size
        return {
            "centre_box": self.measure([centred_heatmap(frame.size)], frame, embed),
            "uniform_heatmap": self.measure([uniform_heatmap(width, height)], frame, embed),
        }
