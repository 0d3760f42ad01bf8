"""Whether a method works with a network, tried on a small image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.methods.method import Explainer, MethodUnavailableError, Query, Subject

# The smallest side first; some networks take 224 and nothing else.
TRIAL_SIDES = (64, 224)
TRIAL_BUDGET = 16


def tried(build: Callable[[Subject], Explainer]) -> Callable[[Subject], Explainer]:
    """`build`, with a trial before: what goes wrong there is the reason why it is unavailable.

    Args:
        build (Callable): a subject to an explainer.

    Returns:
        Callable: the same, raising `MethodUnavailableError` where the method fails on the network
        or gives no map, or one with NaN. A network that takes none of the `TRIAL_SIDES` is not
        tried.
    """

    def build_and_try(subject: Subject) -> Explainer:
        try:
            small = build(replace(subject, budget=min(TRIAL_BUDGET, subject.budget)))
            query = trial_query(subject)
            if query is not None:
                _require_map(small(query))
        except MethodUnavailableError:
            raise
        except Exception as error:  # Whatever a method raises on a network it was not made for.
            reason = " ".join(str(error).split()) or "no message"
            raise MethodUnavailableError(f"{type(error).__name__}: {reason}") from error
        return build(subject)

    return build_and_try


def trial_query(subject: Subject) -> Query | None:
    """A small random image, two references and two foils; None where no size will do."""
    device = next((p.device for p in subject.network.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for side in TRIAL_SIDES:
        # Coarse noise, smoothly enlarged: its neighbouring pixels are alike, as in an image.
        coarse = torch.randn(1, 3, 8, 8, generator=generator)
        image = F.interpolate(coarse, (side, side), mode="bilinear").to(device)
        try:
            with torch.no_grad():
                embedding = subject.network(image)
        except (RuntimeError, ValueError, AssertionError):
            continue
        spread = embedding.norm() / embedding.shape[1] ** 0.5
        noise = torch.randn(2, 1, 2, embedding.shape[1], generator=generator).to(embedding)
        near, far = embedding[:, None] + 0.5 * spread * noise
        return Query(image, (near, far))
    return None


def _require_map(signed_map: Tensor) -> None:
    if signed_map.ndim != 4 or len(signed_map) != 1:
        raise MethodUnavailableError(f"it gives shape {tuple(signed_map.shape)}, which is no map")
    if not torch.isfinite(signed_map).all():
        raise MethodUnavailableError("its map of a random image holds NaN or infinite numbers")
