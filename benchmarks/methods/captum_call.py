"""Calls of Captum's methods that leave no hook or attribute behind."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor, nn

from benchmarks.core.seeding import seeded
from benchmarks.methods.method import Explainer, Query, Subject

Attribute = Callable[[Query], Tensor]


def explainer(
    subject: Subject,
    attribute: Attribute,
    *,
    network: nn.Module | None = None,
) -> Explainer:
    """A method of Captum as an explainer.

    Args:
        subject (Subject): what is explained.
        attribute (Callable): a query to attributions (1, C, h, w). It is given a copy of the
            image that requires gradients, which several methods need where the parameters are
            frozen.
        network (nn.Module, optional): what Captum hooks, where it is not the subject's network.

    Returns:
        Explainer: deterministic per image; leaves the global generators and the network's modules
        as they were. Without references there is nothing to explain, and the map is empty.
    """
    hooked = subject.forward if network is None else network

    def explain(query: Query) -> Tensor:
        if not _num_tuples(query):
            return query.image.new_zeros(1, 1, 1, 1)
        image = query.image.detach().clone().requires_grad_()
        with quiet(), seeded_by(subject.seed, query.image), _nothing_kept(hooked):
            return attribute(replace(query, image=image)).detach()

    return explain


def _num_tuples(query: Query) -> int:
    return query.references[0].shape[1] if query.references else 0


@contextmanager
def quiet() -> Iterator[None]:
    """Captum announces its hooks at every call, and that it switches requires_grad on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*Setting (forward|backward)")
        warnings.filterwarnings("ignore", "Input Tensor 0 did not already require gradients")
        warnings.filterwarnings("ignore", "Internal batch size cannot be less than")
        yield


@contextmanager
def seeded_by(seed: int, image: Tensor) -> Iterator[None]:
    """The global generators, which Captum draws from, seeded by an image and then put back."""
    pixels = image.detach().cpu().contiguous().numpy().tobytes()
    digest = hashlib.blake2b(pixels, digest_size=6, key=str(seed).encode()).digest()
    number = int.from_bytes(digest, "big")
    with seeded(number, image.device):
        yield


@contextmanager
def _nothing_kept(network: nn.Module) -> Iterator[None]:
    """Takes off the modules what Captum left on them.

    LRP leaves the activations of a whole pass, and DeepLift, where it fails, its records.
    """
    before = {module: set(vars(module)) for module in network.modules()}
    try:
        yield
    finally:
        for module, names in before.items():
            for name in set(vars(module)) - names:
                delattr(module, name)
