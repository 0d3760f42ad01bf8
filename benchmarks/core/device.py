"""The device a command runs on."""

from __future__ import annotations

import torch

from captum_embed.errors import InputError


def chosen_device(name: str) -> torch.device:
    """``auto`` is the GPU where there is one.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: not available here ({error})") from error
    return device
