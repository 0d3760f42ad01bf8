"""The variants of the ablation: one axis at a time around the recommended recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from captum_embed import channel_filters
from captum_embed.encoder_forward import Distance, Explains
from captum_embed.errors import InputError
from captum_embed.map_functions import (
    MapFunction,
    background_contrast,
    background_distance,
    border_mean,
    weighted_norm,
    weighted_sum,
)
from captum_embed.recipes import LOCALIZE, PAPER, TRANSFER

LAST, BLOCK, STRIDE_16 = "last", "blocks", "blocks.10"
View = Literal["plain", "flipped", "enlarged"]


@dataclass(frozen=True)
class BankVariant:
    """How a bank's grad-weights come about; equal ones share a bank.

    Args:
        layer (str): ``"last"``, the last activation; ``"blocks"``, the last block, in front of
            the final 1x1 convolution; ``"blocks.10"``, the last block at stride 16.
        num_tuples (int, optional): per image, where not all count.
        mining (str): ``"all"``, ``"hardest"`` or ``"random"``.
        explains (str): ``"match"`` or ``"loss"``.
        distance (str): of the triplet loss.
        norm (str): ``"differentiated"``: the gradient passes the L2 norm; ``"constant"``: it is
            taken in front of it, the norm held fixed.
        pooling (str): of the embedding head; the network is not trained anew for it.
        roles (str): ``"anchor"``: gradients of an image as the anchor of its tuples; ``"all"``:
            also as their positive and as a negative.
    """

    layer: str = BLOCK
    num_tuples: int | None = None
    mining: Literal["all", "hardest", "random"] = LOCALIZE.mining
    explains: Explains = "match"
    distance: Distance = "squared_euclidean"
    norm: Literal["differentiated", "constant"] = "differentiated"
    pooling: Literal["average", "max"] = "average"
    roles: Literal["anchor", "all"] = "anchor"


@dataclass(frozen=True)
class Variant:
    """One setting of everything, named by what it changes.

    Args:
        axis (str): what is varied.
        name (str): its value.
        bank (BankVariant): where the grad-weights come from.
        entry_filter (Callable, optional): applied to the bank's weights, before averaging.
        class_mean (bool): each entry's weights are the mean of its class.
        num_neighbors (int, optional): entries averaged; None: all.
        nearer_counts_more (bool): weigh neighbours by one over their distance.
        channel_filter (Callable, optional): applied to the averaged weights.
        uniform (bool): all weights equal, the control.
        map_func (MapFunction): from weights and activations to the map.
        views (tuple of str): forwards whose maps are averaged.
        fused_with (str, optional): a second layer, whose map is multiplied in.
        percentile (float): of the map at which it is cut off.
        power (float): exponent of the finished map.
    """

    axis: str
    name: str
    bank: BankVariant = field(default_factory=BankVariant)
    entry_filter: Callable[[Tensor], Tensor] | None = channel_filters.absolute
    class_mean: bool = False
    num_neighbors: int | None = LOCALIZE.num_neighbors
    nearer_counts_more: bool = False
    channel_filter: Callable[[Tensor], Tensor] | None = None
    uniform: bool = False
    map_func: MapFunction = LOCALIZE.map_func or weighted_sum
    views: tuple[View, ...] = ("plain",)
    fused_with: str | None = None
    percentile: float = 100.0
    power: float = 1.0

    @property
    def key(self) -> str:
        return f"{self.axis}: {self.name}"


BASE = Variant("recipe", "localize")
PAPER_VARIANT = Variant(
    "recipe",
    "paper",
    bank=BankVariant(LAST, PAPER.num_tuples, PAPER.mining),
    entry_filter=None,
    num_neighbors=1,
    channel_filter=PAPER.channel_filter,
    map_func=weighted_sum,
)
CONTROL = Variant("recipe", "localize, uniform weights", uniform=True)
TRANSFER_VARIANT = replace(
    BASE,
    name="transfer",
    entry_filter=None,
    num_neighbors=TRANSFER.num_neighbors,
    map_func=TRANSFER.map_func or weighted_sum,
)
TRANSFER_CONTROL = replace(TRANSFER_VARIANT, name="transfer, uniform weights", uniform=True)
FINAL = (BASE, PAPER_VARIANT, CONTROL, TRANSFER_VARIANT, TRANSFER_CONTROL)


def _of(axis: str, base: Variant = BASE, **named: dict[str, object]) -> list[Variant]:
    of = "" if base is BASE else f"{base.name}, "
    return [
        replace(base, axis=axis, name=of + name.replace("_", " ").strip(), **changes)  # type: ignore[arg-type]
        for name, changes in named.items()
    ]


def _bank(**changes: object) -> dict[str, object]:
    return {"bank": replace(BankVariant(), **changes)}  # type: ignore[arg-type]


def _against_the_border(weights: Tensor, activations: Tensor) -> Tensor:
    """The signed sum, each channel measured from its mean along the border."""
    return weighted_sum(weights, activations - border_mean(activations))


def _layers() -> list[Variant]:
    variants = []
    for layer, words in (
        (LAST, "last activation"),
        (BLOCK, "last block"),
        (STRIDE_16, "stride 16"),
    ):
        for map_words, map_func in (
            ("weighted sum", weighted_sum),
            ("weighted norm", weighted_norm),
            ("background distance", BASE.map_func),
        ):
            variants.append(
                replace(
                    BASE,
                    axis="layer and map",
                    name=f"{words}, {map_words}",
                    bank=BankVariant(layer),
                    map_func=map_func,
                )
            )
    return variants


def _channels() -> list[Variant]:
    """The k channels of largest mean grad-weights: of the recipe, and as the paper sums them."""
    of_the_block = [
        replace(
            BASE,
            axis="channels",
            name=f"{count} of 320, last block",
            channel_filter=channel_filters.top_channels(count),
        )
        for count in (10, 50, 200)
    ]
    of_the_last_activation = [
        replace(
            BASE,
            axis="channels",
            name=f"{count} of 1280, last activation, weighted sum",
            bank=BankVariant(LAST),
            entry_filter=None,
            channel_filter=channel_filters.top_channels(count),
            map_func=weighted_sum,
        )
        for count in (10, 50, 200, 640)
    ]
    return of_the_block + of_the_last_activation


VARIANTS: tuple[Variant, ...] = (
    *FINAL,
    *_layers(),
    *_of(
        "layer and map",
        last_block_times_stride_16={"fused_with": STRIDE_16},
        last_block_times_last_activation={"fused_with": LAST},
    ),
    *_of(
        "background",
        mean_of_the_border={"map_func": background_contrast(1.3)},
        nearest_10_percent_of_the_border={"map_func": background_distance(2.6, 0.1)},
        nearest_60_percent_of_the_border={"map_func": background_distance(2.6, 0.6)},
        the_whole_border={"map_func": background_distance(2.6, 1.0)},
    ),
    *_of(
        "background",
        TRANSFER_VARIANT,
        no_reference={"map_func": weighted_sum},
        mean_of_the_border={"map_func": _against_the_border},
    ),
    *_of(
        "direction",
        paper_of_the_loss={
            "bank": replace(PAPER_VARIANT.bank, explains="loss"),
            "entry_filter": None,
            "num_neighbors": PAPER.num_neighbors,
            "channel_filter": PAPER.channel_filter,
            "map_func": weighted_sum,
        },
    ),
    *_of("direction", TRANSFER_VARIANT, of_the_loss=_bank(explains="loss")),
    *_of(
        "filter and sign",
        absolute_after_averaging={
            "entry_filter": None,
            "channel_filter": channel_filters.absolute,
        },
        positive={"entry_filter": channel_filters.positive},
        negative={"entry_filter": channel_filters.negative},
        signed_sum_of_the_last_activation={
            "bank": BankVariant(LAST),
            "entry_filter": None,
            "map_func": weighted_sum,
        },
        signed_sum_with_the_norm_held_constant={
            "bank": BankVariant(LAST, norm="constant"),
            "entry_filter": None,
            "map_func": weighted_sum,
        },
        positive_sum_of_the_last_activation={
            "bank": BankVariant(LAST),
            "entry_filter": channel_filters.positive,
            "map_func": weighted_sum,
        },
    ),
    *_channels(),
    *_of(
        "tuples",
        hardest_1=_bank(num_tuples=1, mining="hardest"),
        hardest_10=_bank(num_tuples=10, mining="hardest"),
        hardest_50=_bank(num_tuples=50, mining="hardest"),
        hardest_200=_bank(num_tuples=200, mining="hardest"),
        random_1=_bank(num_tuples=1, mining="random"),
        random_50=_bank(num_tuples=50, mining="random"),
        random_200=_bank(num_tuples=200, mining="random"),
    ),
    *_of("tuples", TRANSFER_VARIANT, hardest_50=_bank(num_tuples=50, mining="hardest")),
    *_of(
        "loss",
        euclidean=_bank(distance="euclidean", num_tuples=50, mining="hardest"),
        cosine=_bank(distance="cosine"),
        norm_held_constant=_bank(norm="constant"),
        image_in_all_roles=_bank(roles="all", num_tuples=50),
        max_pooled_embedding=_bank(pooling="max"),
    ),
    *_of(
        "neighbours",
        _1={"num_neighbors": 1},
        _5={"num_neighbors": 5},
        _20={"num_neighbors": 20},
        _50={"num_neighbors": 50},
        all={"num_neighbors": None},
        _10_nearer_count_more={"nearer_counts_more": True},
        class_means={"class_mean": True},
    ),
    *_of("neighbours", TRANSFER_VARIANT, _10={"num_neighbors": 10}, all={"num_neighbors": None}),
    *_of(
        "views",
        and_flipped={"views": ("plain", "flipped")},
        and_enlarged={"views": ("plain", "enlarged")},
        and_both={"views": ("plain", "flipped", "enlarged")},
    ),
    *_of(
        "normalisation",
        cut_at_the_99th_percentile={"percentile": 99.0},
        cut_at_the_95th_percentile={"percentile": 95.0},
        square_root={"power": 0.5},
        no_power={"map_func": background_distance(1.0)},
    ),
)


def of_axes(variants: Sequence[Variant], axes: Sequence[str]) -> list[Variant]:
    """The variants of some axes, and `FINAL`; without axes all of them.

    Raises:
        InputError: an axis that none of them varies; those varied are listed.
    """
    varied = list(dict.fromkeys(variant.axis for variant in variants))
    if unknown := [axis for axis in axes if axis not in varied]:
        raise InputError(f"--axes {','.join(unknown)} is not varied; known: {', '.join(varied)}")
    return [v for v in variants if not axes or v in FINAL or v.axis in axes]
