"""Whether a weight bank belongs to the network, layer and queries it is used with."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

from captum_embed.errors import BankMismatchError
from captum_embed.layer_executions import layer_name
from captum_embed.weight_bank.bank import WeightBank
from captum_embed.weight_bank.fingerprint import encoder_fingerprint, unwrapped


def require_same_layer(bank: WeightBank, encoder: Any, layer: nn.Module) -> None:
    """Refuses a bank of another layer, and warns of one built with other network weights.

    Args:
        bank: The weight bank; one without metadata passes.
        encoder: What embeds the queries; only modules can be compared.
        layer: The layer to be explained.

    Raises:
        BankMismatchError: The bank was built for another layer of this encoder.
    """
    if not isinstance(encoder, nn.Module):
        return
    built_for, chosen = bank.metadata.get("layer"), layer_name(unwrapped(encoder), layer)
    if built_for is not None and chosen is not None and built_for != chosen:
        raise BankMismatchError(
            f"the weight bank was built for layer '{built_for}', and the layer given is "
            f"'{chosen}'; give that layer, or build a bank for this one"
        )
    fingerprint = bank.metadata.get("encoder_fingerprint")
    if fingerprint is not None and fingerprint != encoder_fingerprint(encoder):
        warnings.warn(
            "the weight bank was built with other weights than this encoder has: its "
            "embeddings are not comparable with the queries' if the network was trained "
            "further; rebuild the bank (a change of precision alone is harmless)",
            stacklevel=4,
        )


def require_fit(bank: WeightBank, embeddings: Any, channels: int, batch: int) -> None:
    """Refuses embeddings or activations of other dimensions than the bank's.

    Args:
        bank: The weight bank, embeddings (B, D), weights (B, C).
        embeddings: What the embedding function returned for the queries; expected (Q, D).
        channels: Number of channels of the layer; expected C.
        batch: Number of queries Q.

    Raises:
        BankMismatchError: Either differs; it says which, what was given and what to do.
    """
    shape = tuple(embeddings.shape) if isinstance(embeddings, Tensor) else None
    if shape != (batch, bank.embedding_dim):
        given = f"shape {shape}" if shape else type(embeddings).__name__
        raise BankMismatchError(
            f"the embedding function returned {given} for {batch} queries, and the weight bank "
            f"holds embeddings of {bank.embedding_dim} numbers; expected "
            f"({batch}, {bank.embedding_dim}): use the network that the bank was built with"
        )
    if channels != bank.num_channels:
        built_for = f" ('{bank.metadata['layer']}')" if "layer" in bank.metadata else ""
        raise BankMismatchError(
            f"the layer has {channels} channels, and the weight bank holds weights of "
            f"{bank.num_channels}; use the layer that the bank was built for{built_for}"
        )
