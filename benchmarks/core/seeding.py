"""Draws that come from a seed, and global generators that do not notice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """All draws inside come from a seed; the global generators are as they were afterwards.

    Args:
        seed (int): 0 or more.
        device (torch.device): of the network; on CUDA its generator is seeded too.
    """
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        state = np.random.get_state()  # noqa: NPY002 - Captum's samplers use it
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002
