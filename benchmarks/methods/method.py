"""The interface of an attribution method: what it is given, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from benchmarks.methods.match import Match
from benchmarks.methods.reductions import ABSOLUTE, SIGNED, Reduction
from captum_embed import WeightBank
from captum_embed.encoder_forward import Explains


class MethodUnavailableError(Exception):
    """This method cannot serve this network; the message is the reason, shown in the table."""


DEFAULT_BUDGET = 200
CHOSEN_LAYER = "chosen"
RECOMMENDED_LAYER = "recommended"


@dataclass(frozen=True)
class BankSpec:
    """Which weight bank a method borrows from; equal specs share one bank.

    Args:
        layer (str): ``"chosen"``, the layer of the run; ``"recommended"``, the one that the
            recommended recipe is meant for; or a dotted name.
        num_tuples (int, optional): per training image; None: as the run says.
        mining (str, optional): ``"all"``, ``"hardest"`` or ``"random"``; None: as the run says.
        explains (str): ``"match"`` or ``"loss"``.
    """

    layer: str = CHOSEN_LAYER
    num_tuples: int | None = None
    mining: Literal["all", "hardest", "random"] | None = None
    explains: Explains = "match"

    @property
    def folder_name(self) -> str:
        """Of the bank in the cache."""
        parts = [self.layer, self.num_tuples, self.mining, self.explains]
        return "-".join(["bank", *(str(part) for part in parts if part is not None)])


@dataclass(frozen=True)
class Subject:
    """What is explained: the same for every method of a run.

    Args:
        forward (Match): the one scalar that all methods explain; its encoder is the network.
        layer (nn.Module): the layer that layer methods explain, output (N, C, h, w).
        bank (WeightBank, optional): grad-weights of the training images at that layer.
        other_banks (Mapping): banks of other layers or tuples, by what was asked for.
        other_layers (Mapping): the layers of those banks, by name.
        budget (int): evaluations per image of the methods that take many, see
            `benchmarks.methods.budget`.
        seed (int): of the methods that draw; each image's draws depend on it and on the image.
    """

    forward: Match
    layer: nn.Module
    bank: WeightBank | None = None
    other_banks: Mapping[BankSpec, WeightBank] = field(default_factory=dict)
    other_layers: Mapping[str, nn.Module] = field(default_factory=dict)
    budget: int = DEFAULT_BUDGET
    seed: int = 0

    @property
    def network(self) -> nn.Module:
        return self.forward.encoder

    def needed_bank(self, spec: BankSpec | None = None) -> WeightBank:
        bank = self.bank if spec in (None, BankSpec()) else self.other_banks.get(spec)
        if bank is None:
            raise MethodUnavailableError("no weight bank was built for this run")
        return bank

    def layer_of(self, spec: BankSpec) -> nn.Module:
        return self.layer if spec.layer == CHOSEN_LAYER else self.other_layers[spec.layer]


@dataclass(frozen=True)
class Query:
    """One image, and what its match is explained with.

    Args:
        image (Tensor): (1, 3, H, W), normalised as the network expects.
        references (tuple of Tensor): embeddings (1, R, D) of the references, which it should
            match, and (1, F, D) of the foils, which it should not; F may be 0.
        asked (bool): the references were asked for, and are not the image's own class: transfer
            then takes the neighbours of the references instead of the image's.
    """

    image: Tensor
    references: tuple[Tensor, ...] = ()
    asked: bool = False


# Attributions (1, C, h, w) of a query, at whatever resolution the method has.
Explainer = Callable[[Query], Tensor]

Family = Literal["ours", "control", "captum: layer", "captum: input", "rival"]


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
        bank (BankSpec, optional): the bank it borrows from, if it does.
        layers (tuple of str): layers besides the run's that it explains, as in `BankSpec`.
        needs_tuples (bool): uses `Query.references`, which are mined with labels.
        shares_forward (bool): runs the network on the image, and takes no gradient below the
            layers explained: it can do with the pass of another method.
        customary (Reduction): of its channels or colours, where nothing was chosen.
        reductions (Mapping): those chosen on training classes, by the protocol's question.
    """

    name: str
    title: str
    family: Family
    explains: str
    build: Callable[[Subject], Explainer]
    cost: Literal["fast", "slow"] = "fast"
    bank: BankSpec | None = None
    layers: tuple[str, ...] = ()
    needs_tuples: bool = True
    shares_forward: bool = False
    customary: Reduction = SIGNED
    reductions: Mapping[str, Reduction] = field(default_factory=dict)

    @property
    def all_layers(self) -> tuple[str, ...]:
        """The layers that it explains besides the run's, as in `BankSpec`."""
        return self.layers if self.bank is None else (*self.layers, self.bank.layer)

    @property
    def all_reductions(self) -> dict[str, str]:
        """The customary one and those chosen, by the question, in words."""
        return {"customary": str(self.customary), **{q: str(r) for q, r in self.reductions.items()}}

    def reduction(self, question: str, *, signed: bool = False) -> Reduction:
        """Of its attributions; where signs are asked for, nothing is made absolute or smoothed."""
        if signed:
            return SIGNED if self.customary == ABSOLUTE else self.customary
        return self.reductions.get(question, self.customary)


def distinct_banks(methods: Iterable[Method]) -> list[BankSpec]:
    """The banks that methods borrow from, each once."""
    return list(dict.fromkeys(method.bank for method in methods if method.bank is not None))
