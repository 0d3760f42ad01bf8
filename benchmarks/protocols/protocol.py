"""The interface of a protocol: items are shown, explained and measured.

A protocol is one file: a class that derives from `EvaluationProtocol`, with its figures of merit
beside it, and an entry in `benchmarks.protocols.registry`. The way of an item:

1. `items` says what is measured. By default each test image is an item. Another protocol makes
   its own: mosaics of several images, or an image with a part replaced. An item is sent to a
   worker process, which has its own instance of the protocol: it names its images, and holds
   the embeddings that it is compared with.
2. `frame` loads an item: one image as the network sees it, its ground truth, and the questions.
   There is one `Question` for each heatmap. A question without references asks for the loss of
   the tuples mined for a test image; one with references for the similarity to those embeddings,
   minus that to the foils where there are any.
3. Every method answers every question with a heatmap. `measure` takes them together, in the order
   of the questions, and returns what is kept of them: JSON values by name.
4. The figures say how the measures of all items become numbers. Nothing else knows the figures:
   the summary, intervals, differences, CSV, JSON, Markdown and page follow from them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from benchmarks.core.seeding import sample
from benchmarks.datasets.records import Box, ImageRecord
from benchmarks.metrics.figures import Curve, Figure
from benchmarks.metrics.floors import centre_box
from benchmarks.metrics.pointing import pointing_game, pointing_game_mask

Measures = dict[str, Any]
# Images (N, 3, H, W) to embeddings (N, D), both on the CPU.
Embed = Callable[[Tensor], Tensor]


class Item(Protocol):
    """What a protocol measures in one go; a test image is one."""

    @property
    def key(self) -> str:
        """Of its own among all items of a run."""

    @property
    def label(self) -> int:
        """Class."""


@dataclass(frozen=True)
class Source:
    """What items are made from.

    Args:
        records (sequence of ImageRecord): all test images.
        limit (int, optional): items at most, drawn at random.
        seed (int): of the draw.
        embed (Callable, optional): the network, for protocols that choose by its embeddings.
        num_mosaics (int): items of the mosaic protocol, which `limit` does not touch.
        train_records (sequence of ImageRecord): all training images.
    """

    records: Sequence[ImageRecord]
    limit: int | None = None
    seed: int = 0
    embed: Embed | None = None
    num_mosaics: int = 200
    train_records: Sequence[ImageRecord] = ()


@dataclass(frozen=True)
class Question:
    """What one heatmap is asked for.

    Args:
        references (Tensor, optional): (M, D), embeddings the similarity to which is explained;
            None: the loss of the tuples mined for the image.
        foils (Tensor, optional): (F, D), embeddings the similarity to which counts against it.
    """

    references: Tensor | None = None
    foils: Tensor | None = None


@dataclass(frozen=True)
class Frame:
    """One item as a protocol shows it; protocols with other ground truth derive their own.

    Args:
        image (Tensor): (3, H, W), normalised.
        box (Box): ground truth in this frame's pixels.
        mask (np.ndarray, optional): ground truth (H, W), bool.
        questions (tuple of Question): one for each heatmap.
        reference (Tensor, optional): (3, H, W), an image of which the embedding, by whatever
            network is asked, is the reference of the one question.
        foils (Tensor, optional): (F, 3, H, W), likewise the foils.
    """

    image: Tensor
    box: Box
    mask: np.ndarray | None = None
    questions: tuple[Question, ...] = (Question(),)
    reference: Tensor | None = None
    foils: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.shape[1], self.image.shape[2]


class EvaluationProtocol(ABC):
    """How items are shown and heatmaps are measured.

    Attributes:
        name (str): on the command line and in the records.
        title (str): in words.
        shows (str): protocols of which this is the same show the same pixels, and share what is
            prepared from them.
        signed (bool): heatmaps keep their signs; without it they go through a ReLU.
        question (str): ``"where"`` the object is, or ``"why"``, what the match rests on; which
            reductions of the attributions are used was chosen for each.
        brings_references (bool): its questions have references of their own, and no tuples are
            mined for it.
        networks (tuple of str): those that it compares, which are trained for it; the maps of
            each come to `measure` one after the other. Empty: the network of the run.
        figures (tuple of Figure): in the order of the table.
        curves (tuple of Curve): means over images that are drawn.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    shows: str
    signed: ClassVar[bool] = False
    question: ClassVar[str] = "where"
    brings_references: ClassVar[bool] = False
    networks: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    curves: tuple[Curve, ...] = ()

    @abstractmethod
    def show(self, image: Image.Image) -> Tensor:
        """The image (3, H, W) as the network sees it; banks and tuples are made from these."""

    def items(self, source: Source) -> Sequence[Item]:
        """What is measured; by default the test images, or some of them."""
        return sample(source.records, source.limit, source.seed)

    def num_tried(self, items: Sequence[Any]) -> int | None:
        """How many were drawn until these could be measured; None: all can be measured."""
        return None

    @abstractmethod
    def frame(self, item: Any) -> Frame | None:
        """The item with its ground truth; None where there is nothing to find in the frame."""

    @abstractmethod
    def measure(
        self, heatmaps: Sequence[np.ndarray], frame: Frame, embed: Embed | None = None
    ) -> Measures:
        """What is kept of an item's heatmaps, each (H, W); zero or more, unless `signed`.

        Args:
            heatmaps (sequence of np.ndarray): one for each question of the frame.
            frame (Frame): of the item.
            embed (Callable, optional): the network, for protocols that need it.
        """

    @abstractmethod
    def floors(self, frame: Frame, embed: Embed | None = None) -> dict[str, Measures]:
        """The same of what needs no explanation, by name."""


class CropProtocol(EvaluationProtocol):
    """A protocol that shows images as another one does.

    Args:
        crops (EvaluationProtocol): the other one.
    """

    def __init__(self, crops: EvaluationProtocol) -> None:
        self.crops = crops
        self.shows = crops.shows

    def show(self, image: Image.Image) -> Tensor:
        return self.crops.show(image)


def centred_heatmap(size: tuple[int, int]) -> np.ndarray:
    """1 in the centre box, its sides rounded to pixels, and 0 around it, (H, W)."""
    height, width = size
    heatmap = np.zeros(size, dtype=np.float32)
    x0, y0, x1, y1 = (round(side) for side in centre_box(width, height))
    heatmap[y0:y1, x0:x1] = 1
    return heatmap


def pointing(heatmap: np.ndarray, frame: Frame) -> Measures:
    """Whether the heatmap's maximum is on the object: its box, and its mask where there is one."""
    measures = {"pointing": pointing_game(heatmap, frame.box)}
    if frame.mask is not None:
        measures["mask_pointing"] = pointing_game_mask(heatmap, frame.mask)
    return measures


def pointing_figures(what: str, *, in_terminal: bool = True) -> tuple[Figure, Figure]:
    """The figures of `pointing`.

    Args:
        what (str): the maps, in words.
        in_terminal (bool): the first also in the table that a run prints.
    """
    return (
        Figure(
            "pointing", "pointing, box", f"{what} whose maximum lies in the box, %", "higher",
            in_terminal=in_terminal,
        ),
        Figure(
            "mask_pointing", "pointing, mask", f"{what} whose maximum lies on the mask, %",
            "higher", in_terminal=False, masked=True,
        ),
    )  # fmt: skip
