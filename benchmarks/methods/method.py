"""What a method of the benchmark is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from captum_embed import TripletForward, WeightBank


class MethodUnavailableError(Exception):
    """This method cannot serve this network; the message is the reason, shown in the table."""


@dataclass(frozen=True)
class Subject:
    """What is explained: the same for every method of a run.

    Args:
        forward (TripletForward): the metric loss; ``forward.encoder`` is the network.
        layer (nn.Module): the layer that layer methods explain, output (N, C, h, w).
        bank (WeightBank, optional): grad-weights of the training images.
        num_neighbors (int): bank entries that a query borrows from, unless a method says.
    """

    forward: TripletForward
    layer: nn.Module
    bank: WeightBank | None = None
    num_neighbors: int = 1

    @property
    def network(self) -> nn.Module:
        return self.forward.encoder

    def needed_bank(self) -> WeightBank:
        if self.bank is None:
            raise MethodUnavailableError("no weight bank was built for this run")
        return self.bank


@dataclass(frozen=True)
class Query:
    """One image, and the tuples whose loss is explained.

    Args:
        image (Tensor): (1, 3, H, W), normalised as the network expects.
        references (tuple of Tensor): embeddings (1, M, D) of the M positives and M negatives;
            the loss is the mean over the tuples with non-zero loss. Sorted, hardest tuple first.
    """

    image: Tensor
    references: tuple[Tensor, ...] = ()

    def first(self, count: int) -> tuple[Tensor, ...]:
        """The references of the `count` hardest tuples."""
        return tuple(reference[:, :count] for reference in self.references)


# A signed map (1, 1, h, w) of a query, at whatever resolution the method has.
Explainer = Callable[[Query], Tensor]

Family = Literal["ours", "captum: layer", "captum: input", "rival"]


@dataclass(frozen=True)
class Method:
    """An entry of the registry.

    Args:
        name (str): on the command line and in the JSON.
        title (str): in tables and figures.
        family (str): where it comes from.
        explains (str): what its map is, in a line.
        build (Callable): a `Subject` to an `Explainer`; raises `MethodUnavailableError` where it
            cannot serve the network.
        cost (str): ``"fast"``: a few passes per image; ``"slow"``: tens to thousands.
        needs_bank (bool): uses `Subject.bank`.
        needs_tuples (bool): uses `Query.references`, which are mined with labels.
        map_power (float): exponent of the map after ReLU, resizing and division by its maximum;
            0.5 is the square root.
    """

    name: str
    title: str
    family: Family
    explains: str
    build: Callable[[Subject], Explainer]
    cost: Literal["fast", "slow"] = "fast"
    needs_bank: bool = False
    needs_tuples: bool = True
    map_power: float = 1.0
