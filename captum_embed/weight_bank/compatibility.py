"""Whether a weight bank belongs to the network, layer and queries it is used with."""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from captum_embed.errors import BankMismatchError, InputError
from captum_embed.layer_executions import layer_name
from captum_embed.weight_bank.bank import WeightBank
from captum_embed.weight_bank.entries import version_of

_known_fingerprints: WeakKeyDictionary[nn.Module, tuple[Hashable, str]] = WeakKeyDictionary()
_lock = threading.Lock()
# Numbers per tensor that are looked at to tell whether a network has changed.
_SAMPLE = 16


def require_compatible(
    bank: WeightBank,
    forward_func: Callable[..., Any],
    encoder: Any,
    layer: nn.Module,
    *,
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
    """
    _require_direction(bank, forward_func)
    # A bank that was built says its layer; one made by hand may say nothing.
    silent = "channels_first" if "layer" in bank.metadata else layout
    built_for = bank.metadata.get("layout", silent)
    if built_for != layout:
        raise BankMismatchError(
            f"the weight bank was built for a layer in layout '{built_for}', and the layout given "
            f"is '{layout}'; give layout='{built_for}', or build a bank for this layer"
        )
    tokens = bank.metadata.get("prefix_tokens", "0")
    if prefix_tokens is not None and tokens != str(prefix_tokens):
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
    if fingerprint is not None and fingerprint != _known_fingerprint(encoder):
        warnings.warn(
            "the weight bank was built with other weights than this encoder has: its "
            "embeddings are not comparable with the queries' if the network was trained "
            "further; rebuild the bank (a change of precision alone is harmless)",
            stacklevel=5,
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


def encoder_fingerprint(module: nn.Module) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of a module's state dict.

    Networks of equal weights have equal fingerprints, on whatever device they are; wrappers
    (``DataParallel``, ``DistributedDataParallel``, ``torch.compile``) make no difference.

    Args:
        module: Network whose parameters and buffers are initialised.

    Returns:
        64 hexadecimal digits.

    Raises:
        InputError: A lazy parameter has no value yet.

    Example::

        >>> from torch import nn
        >>> layer = nn.Linear(2, 3)
        >>> fingerprint = encoder_fingerprint(layer)
        >>> _ = nn.init.zeros_(layer.weight)
        >>> len(fingerprint), encoder_fingerprint(layer) == fingerprint
        (64, False)
    """
    digest = hashlib.sha256()
    for name, value in _state(module):
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(_bytes(value.detach().reshape(-1)))
    return digest.hexdigest()


def _state(module: nn.Module) -> list[tuple[str, Tensor]]:
    # A module's extra state is of any type; weights are tensors.
    state = [
        (name, value)
        for name, value in sorted(unwrapped(module).state_dict().items())
        if isinstance(value, Tensor)
    ]
    for name, value in state:
        if is_lazy(value):
            raise InputError(
                f"parameter '{name}' is not initialised; run the network once before taking its "
                "fingerprint"
            )
    return state


def _bytes(flat: Tensor) -> bytes | memoryview:
    return flat.cpu().contiguous().view(torch.uint8).numpy().data


def _known_fingerprint(module: nn.Module) -> str:
    """The fingerprint, computed once per network and again when its weights have changed."""
    network = unwrapped(module)
    state = _state(network)
    # Changes through ``.data`` do not count as a version: a sample of the values shows them.
    version = tuple(
        (name, value.data_ptr(), value.dtype, value.shape, version_of(value))
        for name, value in state
    )
    sample = b"".join(
        _bytes(value.detach().flatten()[:: max(1, value.numel() // _SAMPLE)]) for _, value in state
    )
    key = version, sample
    with _lock:
        known = _known_fingerprints.get(network)
    if known is None or known[0] != key:
        known = key, encoder_fingerprint(network)
        with _lock:
            _known_fingerprints[network] = known
    return known[1]


def unwrapped(module: nn.Module) -> nn.Module:
    """The network inside ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile``."""
    inner = getattr(module, "_orig_mod", None)
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner = module.module
    return unwrapped(inner) if isinstance(inner, nn.Module) else module
