"""A bank and its queries: whether they fit, and the entries from which each query borrows."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from captum_embed.encoders import known_fingerprint, unwrapped
from captum_embed.errors import BankMismatchError, InputError, LayerError
from captum_embed.layer_executions import layer_name
from captum_embed.weight_bank.bank import WeightBank
from captum_embed.weight_bank.filtered import FilteredBank

# A query this many times farther from the bank than its entries are from each other is not of
# their kind.
_FAR = 10
_SPACING_SAMPLE = 256
# Entries that are looked at for every bank; all of them only for a query that may be far.
_SPACING_AMONG = 2048
# For each bank its spacing, or infinity once it has been warned of; and whether it is exact.
_spacing_of: WeakKeyDictionary[WeightBank, tuple[float, bool]] = WeakKeyDictionary()


def require_compatible(
    bank: WeightBank,
    forward_func: Callable[..., Any],
    encoder: Any,
    layer: nn.Module,
    layout: str = "channels_first",
    prefix_tokens: int | None = None,
) -> None:
    """Refuses a bank of another direction, layout or layer; warns of other network weights.

    What the bank's metadata or the network do not say is not compared.

    Args:
        bank: The weight bank; one without metadata passes.
        forward_func: What is explained. Its ``explains`` is ``"match"`` or ``"loss"``.
        encoder: What embeds the queries; only modules can be compared.
        layer: The layer to be explained.
        layout: Where the layer has its channels: ``"channels_first"``, ``"channels_last"`` or
            ``"tokens"``.
        prefix_tokens: Tokens before those of the image, such as CLS.

    Raises:
        BankMismatchError: The bank explains the other direction, or was built for another
            layout, or for another layer of this encoder.
        InputError: It is no bank.
    """
    if not isinstance(bank, WeightBank):
        raise InputError(
            f"weight_bank is of type {type(bank).__name__}; expected a WeightBank, such as "
            "WeightBank.load(path)"
        )
    _require_direction(bank, forward_func)
    # A bank that was built says its layer; one made by hand may say nothing.
    silent = "channels_first" if "layer" in bank.metadata else layout
    built_for = bank.metadata.get("layout", silent)
    if built_for != layout:
        raise BankMismatchError(
            f"the weight bank was built for a layer in layout '{built_for}', and the layout given "
            f"is '{layout}'; give layout='{built_for}', or build a bank for this layer"
        )
    tokens = bank.metadata.get("prefix_tokens", "0" if "layout" in bank.metadata else None)
    if None not in (prefix_tokens, tokens) and tokens != str(prefix_tokens):
        raise BankMismatchError(
            f"the weight bank was built with prefix_tokens={tokens}, and given is {prefix_tokens}; "
            "give that number, or build a bank for this one"
        )
    if isinstance(encoder, nn.Module):
        _require_network(bank, encoder, layer)


def _require_direction(bank: WeightBank, forward_func: Callable[..., Any]) -> None:
    wrapped = getattr(forward_func, "module", forward_func)
    asked = getattr(forward_func, "explains", getattr(wrapped, "explains", None))
    explains = bank.metadata.get("explains")
    if explains is not None and isinstance(asked, str) and explains != asked:
        raise BankMismatchError(
            f"the weight bank explains the {explains}, and the forward function the {asked}: the "
            f"maps would show the opposite; give the forward function explains='{explains}', or "
            f"build a bank with explains='{asked}'"
        )


def _require_network(bank: WeightBank, encoder: nn.Module, layer: nn.Module) -> None:
    built_for, chosen = bank.metadata.get("layer"), layer_name(unwrapped(encoder), layer)
    if built_for is not None and chosen is not None and built_for != chosen:
        raise BankMismatchError(
            f"the weight bank was built for layer '{built_for}', and the layer given is "
            f"'{chosen}'; give that layer, or build a bank for this one"
        )
    fingerprint = bank.metadata.get("encoder_fingerprint")
    if fingerprint is not None and fingerprint != known_fingerprint(encoder):
        warnings.warn(
            "the weight bank was built with other weights than this encoder has: its "
            "embeddings are not comparable with the queries' if the network was trained "
            "further; rebuild the bank (a change of precision alone is harmless)",
            stacklevel=5,
        )


def require_fit(
    bank: WeightBank,
    embeddings: Any,
    batch: int,
    activations: Sequence[Tensor] | None = None,
    named: str = "",
) -> None:
    """Refuses embeddings or activations of other dimensions than the bank's.

    Args:
        bank: The weight bank, embeddings (B, D), weights (B, C).
        embeddings: What the embedding function returned for the queries; expected (Q, D).
        batch: Number of queries Q.
        activations: The layer's tensors (Q, C_i, ...), their C_i together C; or None.
        named: Name of the layer, for the message.

    Raises:
        BankMismatchError: Widths differ; it says which, what was given and what to do.
        LayerError: The layer has another number of rows than there are queries.
    """
    rows = {len(tensor) for tensor in activations or ()}
    if activations is not None and rows != {batch}:
        raise LayerError(
            f"the layer{named} puts out {sorted(rows)} rows for {batch} queries: which weights are "
            "theirs is unknown; choose a layer with one row per query"
        )
    shape = tuple(embeddings.shape) if isinstance(embeddings, Tensor) else None
    if shape != (batch, bank.embedding_dim):
        given = f"shape {shape}" if shape else type(embeddings).__name__
        raise BankMismatchError(
            f"the embedding function returned {given} for {batch} queries, and the weight bank "
            f"holds embeddings of {bank.embedding_dim} numbers; expected "
            f"({batch}, {bank.embedding_dim}): use the network that the bank was built with"
        )
    channels = sum(tensor.shape[1] for tensor in activations or ())
    if activations is not None and channels != bank.num_channels:
        built_for = f" ('{bank.metadata['layer']}')" if "layer" in bank.metadata else ""
        raise BankMismatchError(
            f"the layer has {channels} channels, and the weight bank holds weights of "
            f"{bank.num_channels}; use the layer that the bank was built for{built_for}"
        )


class Neighbors(NamedTuple):
    """The bank entries from which queries borrow, nearest first.

    Args:
        keys: Names of the entries, for each query k; None where the bank has none.
        labels: Their classes, (N, k); None where the bank has none.
        distances: Euclidean distances of the embeddings, (N, k).
        indices: Their places in the bank, (N, k).
    """

    keys: list[list[str]] | None
    labels: Tensor | None
    distances: Tensor
    indices: Tensor


def nearest_entries(
    bank: WeightBank, embeddings: Tensor, k: int, exclude: Collection[Any] | None = None
) -> Neighbors:
    """The k entries nearest to each query; warns, once for a bank, of queries far from all.

    Far is ten times the largest distance between an entry (of a sample of 256) and the one
    nearest to it.

    Args:
        bank: The weight bank.
        embeddings: Queries (N, D).
        k: Number of neighbours.
        exclude: Keys or labels of entries that are left out.

    Returns:
        Keys, labels, distances and indices of the entries.

    Raises:
        InputError: As :meth:`WeightBank.search`.
        BankMismatchError: As :meth:`WeightBank.search`.

    Example::

        >>> import torch
        >>> bank = WeightBank(torch.eye(3), torch.rand(3, 5), keys=["a", "b", "c"])
        >>> nearest_entries(bank, torch.tensor([[0.0, 2.0, 0.0]]), 1).keys
        [['b']]
    """
    settings = {} if exclude is None else {"exclude": exclude}
    distances, indices = bank.search(embeddings, k, **settings)
    _warn_if_far(bank, float(distances[:, 0].max()))
    keys, labels, places = bank.keys, bank.labels, indices.tolist()
    return Neighbors(
        None if keys is None else [[keys[place] for place in row] for row in places],
        None if labels is None else labels[indices.to(labels.device)],
        distances,
        indices,
    )


def _warn_if_far(bank: WeightBank, distance: float) -> None:
    # Each recipe filters a bank anew; it is warned of once.
    bank = bank.unfiltered if isinstance(bank, FilteredBank) else bank
    spacing, exact = _spacing_of.get(bank) or (0.0, False)
    if not spacing:
        # Among fewer entries the nearest is no nearer: this is what the whole bank has, or more.
        spacing, exact = _spacing(bank, _SPACING_AMONG), len(bank) <= _SPACING_AMONG
    if distance > spacing and not exact:
        # It reads the whole bank, so only a query that may be far pays for it, once.
        spacing, exact = _spacing(bank, len(bank)), True
    if exact:
        spacing = spacing or float("inf")
    if distance > _FAR * spacing:
        warnings.warn(
            f"a query is {distance:.3g} from its nearest bank entry, and the bank's entries at "
            f"most {spacing:.3g} from theirs: the borrowed weights say little about it; are its "
            "images scaled and normalised as the bank's were?",
            stacklevel=2,
        )
        spacing = float("inf")
    _spacing_of[bank] = spacing, exact


def _spacing(bank: WeightBank, among: int) -> float:
    """Largest distance from one of a sample to the nearest other; 0 where none differ."""
    if len(bank) < 2:
        return 0.0
    others = bank[:: -(-len(bank) // among)] if among < len(bank) else bank
    sample = others[:: -(-len(others) // _SPACING_SAMPLE)].embeddings
    return float(others.search(sample, 2)[0][:, 1].max())
