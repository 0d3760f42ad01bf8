"""A checksum of a network's weights, by which a bank knows the encoder it was built with."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from captum_embed.errors import InputError


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
    for name, value in sorted(unwrapped(module).state_dict().items()):
        if not isinstance(value, Tensor):
            continue  # A module's extra state is of any type; weights are tensors.
        if is_lazy(value):
            raise InputError(
                f"parameter '{name}' is not initialised; run the network once before taking its "
                "fingerprint"
            )
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def unwrapped(module: nn.Module) -> nn.Module:
    """The network inside ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile``."""
    inner = getattr(module, "_orig_mod", None)
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner = module.module
    return unwrapped(inner) if isinstance(inner, nn.Module) else module
