"""Checkpoint files: read whole, and compared with the network before they are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from captum_embed.errors import InputError


class CheckpointError(InputError):
    """A checkpoint cannot be read, or belongs to another network."""


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        CheckpointError: no such file, or not a complete safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint file")
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file ({error}); pickled checkpoints are not "
            "loaded, convert them with safetensors.torch.save_file"
        ) from error


def refuse_mismatch(
    path: Path, given: Mapping[str, Tensor], needed: Mapping[str, Tensor], network: str
) -> None:
    """Compare a checkpoint with the state of the network that it is given for.

    Args:
        path (Path): of the checkpoint, for the error.
        given (Mapping): its tensors by name.
        needed (Mapping): the network's.
        network (str): its name, for the error.

    Raises:
        CheckpointError: names that are not the network's, other shapes, or NaN.
    """
    missing = sorted(set(needed) - set(given))
    unexpected = sorted(set(given) - set(needed))
    if missing or unexpected:
        parts = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise CheckpointError(
            f"{path}: this checkpoint is for another network; its tensors do not match "
            f"{network}'s: {'; '.join(parts)}"
        )
    for name, tensor in needed.items():
        if given[name].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(given[name].shape)}, this network needs "
                f"{tuple(tensor.shape)}"
            )
        if given[name].is_floating_point() and not torch.isfinite(given[name]).all():
            raise CheckpointError(f"{path}: {name} holds NaN or infinite numbers")


def checkpoint_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of an embedding network's file.

    Raises:
        CheckpointError: see `read_safetensors`; or another norm than L2.
    """
    tensors, metadata = read_safetensors(path)
    if metadata.get("normalize", "l2") != "l2":
        raise CheckpointError(
            f"{path}: its metadata says normalize={metadata['normalize']!r}; only l2 is supported"
        )
    return tensors


def refuse_head(path: Path, head: Tensor, num_channels: int) -> None:
    """Raise `CheckpointError` unless a head's weight is (D, num_channels)."""
    if head.ndim != 2 or head.shape[1] != num_channels:
        raise CheckpointError(
            f"{path}: head.weight has shape {tuple(head.shape)}, expected (D, {num_channels})"
        )
