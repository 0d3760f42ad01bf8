"""Protocol D: does a map find the region in which a probe and its twin differ?

A probe x and its twin x' differ in a region R alone: the object, or the background, is another
photograph's. The mate shows what x shows in R, the non-mate what x' shows there:

- Object: the mate is another image of the class of x, the non-mate one of the class that the new
  object comes from.
- Background: mate and non-mate show one other object, before the background of x and before that
  of x'; both are mirrored, so that no pixel of them lies where it lies in the probe.

A game is played only where the network decides both rightly: x is nearer to its mate, and x' to
its non-mate. Explained is the similarity of x to the mate less that to the non-mate. Then pixels
of x' come into x in the order of the signed map, and only those of R change anything. The figure
is the probability that the decision has flipped when 1% (5%) of the pixels outside R are taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.core.seeding import sample, seed_of
from benchmarks.datasets.pets import tight_box
from benchmarks.datasets.records import ImageRecord, load_rgb
from benchmarks.metrics.figures import Curve, Figure
from benchmarks.metrics.floors import edge_heatmap, uniform_heatmap
from benchmarks.metrics.swap import flipped, taken
from benchmarks.protocols.exchange import (
    Photograph,
    mirrored,
    with_background_of,
    with_object_of,
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
from benchmarks.protocols.references import as_references
from captum_embed.errors import InputError

Kind = Literal["object", "background"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# Twins that are made of an image for each kind, until one is fit to be played.
MOST_TRIES = 3
# Least share of the crop in the region, and outside it.
LEAST_SHARE = 0.01
# Of the pixels outside the region, when it is looked whether the decision has flipped.
SHARES = (0.0, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05)
PERCENTS = {"swap_1": 0.01, "swap_5": 0.05}


def _flips(key: str, kind: Kind | None = None) -> Figure:
    percent = round(100 * PERCENTS[key])
    what = "" if kind is None else f", {kind}"
    return Figure(
        key if kind is None else f"{key}_{kind}",
        f"swap, {percent}%{what}",
        f"Probability that the decision has flipped to the twin's when {percent}% of the pixels "
        f"that they share are taken{f'; the {kind} differs' if kind else ''}, %",
        "higher",
        lead=key == "swap_5" and kind is None,
        in_terminal=kind is None,
    )


FIGURES = (
    *(_flips(key) for key in PERCENTS),
    *(_flips(key, kind) for kind in KINDS for key in PERCENTS),
)
CURVES = (Curve("swap", SHARES, lambda measures: measures["swap_curve"]),)


@dataclass(frozen=True, eq=False)
class Game:
    """A probe, its twin, and whom they are told from.

    Args:
        kind (str): what differs.
        record (ImageRecord): of the probe.
        other (ImageRecord): what the twin's region comes from; of another class.
        embeddings (np.ndarray): (2, D), unit embeddings of mate and non-mate.
        num_tried (int): twins that were made until all games of the run were chosen.
    """

    kind: Kind
    record: ImageRecord
    other: ImageRecord
    embeddings: NDArray[np.float32]
    num_tried: int

    @property
    def key(self) -> str:
        return f"swap {self.kind} {self.record.key}"

    @property
    def label(self) -> int:
        return self.record.label


@dataclass(frozen=True)
class SwapFrame(Frame):
    """A probe; its mask is the region R.

    Args:
        twin (Tensor): (3, H, W), the probe with the region replaced.
        kind (str): what differs.
    """

    twin: Tensor | None = None
    kind: Kind = "object"


class SwapProtocol(CropProtocol):
    """D: the swap game on the attention protocol's crops.

    The object is where the mask is, or the box where an image has no mask.
    """

    name = "swap"
    title = "swap game: object or background replaced, 224 crop"
    signed = True
    question = "why"
    brings_references = True
    figures = FIGURES
    curves = CURVES

    def items(self, source: Source) -> Sequence[Game]:
        """For each test image, or some, a game of each kind that is fit to be played.

        Raises:
            InputError: no network, a single class, or no game is fit.
        """
        if source.embed is None:
            raise InputError("the swap game is chosen by the network's embeddings: give an embed")
        if len({record.label for record in source.records}) < 2:
            raise InputError(
                "the swap game takes two test classes or more: what is replaced comes from another "
                "class; choose more classes, or leave the swap protocol out"
            )
        games: list[tuple[Kind, ImageRecord, ImageRecord, NDArray[np.float32]]] = []
        num_tried = 0
        for record in sample(source.records, source.limit, source.seed):
            for kind in KINDS:
                for other, embeddings in self._tries(kind, record, source, source.embed):
                    num_tried += 1
                    if embeddings is not None:
                        games.append((kind, record, other, embeddings))
                        break
        if not games:
            raise InputError(
                f"none of {num_tried} twins is fit for the swap game: the network does not tell "
                "them from the images; train it, or leave the swap protocol out"
            )
        return [Game(*game, num_tried) for game in games]

    def num_tried(self, items: Sequence[Game]) -> int:
        return items[0].num_tried

    def _tries(
        self, kind: Kind, record: ImageRecord, source: Source, embed: Embed
    ) -> Iterator[tuple[ImageRecord, NDArray[np.float32] | None]]:
        """Twins, each with the embeddings of mate and non-mate, or None where it is not fit."""
        generator = np.random.default_rng(seed_of(source.seed, self.name, kind, record.key))
        others = [one for one in source.records if one.label != record.label]
        for number in generator.permutation(len(others))[:MOST_TRIES]:
            other = others[number]
            pair = self._pair(record, other)
            if pair is None:
                yield other, None
                continue
            probe, twin = pair[0], exchanged(kind, *pair)
            if kind == "background":
                mates: tuple[Tensor, ...] | None = tuple(
                    mirrored(with_object_of(Photograph(shown, probe.mask), pair[1])).pixels
                    for shown in (probe.pixels, twin.pixels)
                )
            else:
                mates = self._other_images((record, other), source, generator)
            if mates is None or not LEAST_SHARE <= twin.mask.mean() <= 1 - LEAST_SHARE:
                yield other, None
                continue
            shown = embed(torch.stack([probe.pixels, twin.pixels, *mates]))
            if not torch.isfinite(shown).all():
                raise InputError(f"{record.path}: its embedding, or its twin's, is NaN or infinite")
            yield other, fit(F.normalize(shown.float()).numpy())

    def _other_images(
        self, images: Sequence[ImageRecord], source: Source, draw: np.random.Generator
    ) -> tuple[Tensor, ...] | None:
        """Another image of each one's class; None where there is none."""
        others = []
        for one in images:
            same = [r for r in source.records if r.label == one.label and r.key != one.key]
            if not same:
                return None
            others.append(self.show(load_rgb(same[draw.integers(len(same))])))
        return tuple(others)

    def _pair(
        self, record: ImageRecord, other: ImageRecord
    ) -> tuple[Photograph, Photograph] | None:
        frames = [self.crops.frame(one) for one in (record, other)]
        shown = [photograph(frame) for frame in frames if frame is not None]
        return (shown[0], shown[1]) if len(shown) == 2 else None

    def frame(self, item: Game) -> Frame | None:
        pair = self._pair(item.record, item.other)
        if pair is None:
            return None
        twin = exchanged(item.kind, *pair)
        mate, non_mate = (as_references(one) for one in item.embeddings)
        return SwapFrame(
            pair[0].pixels,
            tight_box(twin.mask),
            twin.mask,
            (Question(mate, non_mate),),
            twin=twin.pixels,
            kind=item.kind,
        )

    def measure(
        self, heatmaps: Sequence[np.ndarray], frame: Frame, embed: Embed | None = None
    ) -> Measures:
        if embed is None or not isinstance(frame, SwapFrame) or frame.mask is None:
            raise InputError("the swap game needs the network and its own frame: give embed")
        (signed_map,) = heatmaps
        curve = flipped(margins(taken(signed_map, frame.mask, SHARES), frame, embed))
        at = {key: float(curve[SHARES.index(share)]) for key, share in PERCENTS.items()}
        return {
            "empty": not np.any(signed_map),
            **at,
            **{f"{key}_{frame.kind}": value for key, value in at.items()},
            "swap_curve": curve.astype(float).tolist(),
        }

    def floors(self, frame: Frame, embed: Embed | None = None) -> dict[str, Measures]:
        height, width = frame.size
        maps = {
            "centre_box": centred_heatmap(frame.size),
            "uniform_heatmap": uniform_heatmap(width, height),
            "edge_filter": edge_heatmap(frame.image.numpy()),
        }
        return {name: self.measure([pixels], frame, embed) for name, pixels in maps.items()}


def photograph(frame: Frame) -> Photograph:
    """The image of a frame with its object, which fills the box where there is no mask."""
    if frame.mask is not None:
        return Photograph(frame.image, frame.mask)
    x0, y0, x1, y1 = frame.box
    mask = np.zeros(frame.size, dtype=bool)
    mask[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = True
    return Photograph(frame.image, mask)


def exchanged(kind: Kind, probe: Photograph, other: Photograph) -> Photograph:
    """The twin; its mask is the region that differs."""
    return (with_object_of if kind == "object" else with_background_of)(probe, other)


def fit(embeddings: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """The mates of a game that the network decides rightly, and None of another.

    Args:
        embeddings (np.ndarray): (4, D), unit embeddings of probe, twin, mate and non-mate.

    Returns:
        (2, D), of mate and non-mate.
    """
    (probe_mate, probe_non_mate), (twin_mate, twin_non_mate) = embeddings[:2] @ embeddings[2:].T
    return embeddings[2:] if probe_mate > probe_non_mate and twin_non_mate > twin_mate else None


def margins(masks: NDArray[np.bool_], frame: SwapFrame, embed: Embed) -> NDArray[np.float64]:
    """Cosine similarity to the mate minus that to the non-mate, with some pixels of the twin.

    Args:
        masks (np.ndarray): (S, H, W), the pixels that come from the twin; each mask holds those
            before it.
        frame (SwapFrame): of the game.
        embed (Callable): the network.

    Returns:
        (S,).
    """
    (question,) = frame.questions
    assert frame.twin is not None
    assert question.references is not None
    assert question.foils is not None
    # Where nothing has come since the step before, the network says the same.
    _, first, step = np.unique(masks.sum((1, 2)), return_index=True, return_inverse=True)
    chosen = torch.from_numpy(masks[first])[:, None]
    embeddings = embed(torch.where(chosen, frame.twin, frame.image)).double()
    mates = torch.cat([question.references, question.foils]).double()
    similarities = F.normalize(embeddings) @ F.normalize(mates).T
    margins: NDArray[np.float64] = (similarities[:, 0] - similarities[:, 1]).numpy()[step]
    return margins
