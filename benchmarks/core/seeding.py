"""Random seeds: blocks with a seed, seeds from names, random samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

import numpy as np
import torch

CPU = torch.device("cpu")


@contextmanager
def seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """All draws inside come from a seed; the global generators are as they were afterwards.

    Args:
        seed (int): 0 or more.
        device (torch.device): of the network; default: the CPU. On CUDA its generator is seeded
            too.
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


def seed_of(seed: int, *names: str) -> int:
    """A seed that depends on nothing but the run's seed and the names.

    Example:
        >>> seed_of(0, "boxes", "a.jpg") == seed_of(0, "boxes", "a.jpg") != seed_of(0, "boxes", "b")
        True
    """
    digest = hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:6], "big")


class Named(Protocol):
    """Anything with a key of its own."""

    @property
    def key(self) -> str:
        """Of its own among all that it is drawn from."""


NamedT = TypeVar("NamedT", bound=Named)


def sample(items: Sequence[NamedT], limit: int | None, seed: int) -> list[NamedT]:
    """At most `limit` items at random, in their order; a smaller limit takes a subset."""
    if limit is None or limit >= len(items):
        return list(items)
    drawn = sorted(items, key=lambda item: seed_of(seed, item.key))[:limit]
    keys = {item.key for item in drawn}
    return [item for item in items if item.key in keys]
