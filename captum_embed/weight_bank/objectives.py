"""What a build explains of each image, and what of a network and its tuples cannot be explained."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from captum_embed.encoder_forward import MetricForward, mean_of_nonzero
from captum_embed.errors import InputError
from captum_embed.metric_forwards import SimilarityForward
from captum_embed.weight_bank.mining import Mining, mine_tuples, tuple_losses
from captum_embed.weight_bank.passes import Objective
from captum_embed.weight_bank.tuples import AllTuples

# Above this share of images without an entry there is a warning.
_MANY_SKIPPED = 0.1
# Spread of embeddings, as a share of their norm, that is no more than rounding.
_COLLAPSED = 1e-6


def objective(
    forward: MetricForward,
    embeddings: Tensor,
    labels: Tensor,
    *,
    mining: Mining,
    num_tuples: int,
    reference_pool: int,
    seed: int,
    anchors: Tensor,
    progress: bool,
) -> tuple[Objective, Tensor]:
    """The mean over each image's tuples, and which of the anchors (A,) have any, (B,)."""
    if mining == "all":
        every = AllTuples(forward, embeddings, labels)
        return (
            lambda own, indices: forward.directed(every.losses(own, indices)),
            torch.zeros(len(labels), dtype=torch.bool).index_fill(0, anchors, True),
        )
    tuples = mine_tuples(
        forward,
        embeddings,
        labels,
        num_tuples=num_tuples,
        mining=mining,
        seed=seed,
        reference_pool=reference_pool,
        anchors=anchors,
        progress=progress,
    )

    def mean(own: Tensor, indices: Tensor) -> Tensor:
        losses = tuple_losses(forward, own, embeddings.to(own), labels, indices, tuples.references)
        losses = torch.where(tuples.active[indices], losses, torch.zeros_like(losses))
        return forward.directed(mean_of_nonzero(losses))

    return mean, tuples.active.any(1).cpu()


def require_forward(forward: Any) -> None:
    """Refuses what is no forward function with an encoder and a stated direction."""
    states = (
        callable(forward)
        and isinstance(getattr(forward, "encoder", None), nn.Module)
        and getattr(forward, "explains", None) in ("match", "loss")
    )
    if not states or isinstance(forward, SimilarityForward):
        raise InputError(
            f"forward is {type(forward).__name__}; expected a TripletForward, PairForward, "
            "QuadrupletForward or LossForward, or a callable (images, labels) that states "
            ".encoder and .explains ('match' or 'loss')"
        )


def require_own_tuples(
    forward: Any, mining: Any, num_tuples: Any, reference_pool: Any, seed: Any
) -> None:
    """Refuses settings of mining for a forward function that makes its own tuples."""
    if mining != "all" or num_tuples is not None or reference_pool is not None:
        raise InputError(
            f"{type(forward).__name__} makes its own tuples within a batch; leave out mining, "
            "num_tuples and reference_pool (LossForward takes a miner)"
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed is {seed!r}; expected an integer of at least 0")


def require_spread(embeddings: Tensor) -> None:
    """Refuses embeddings that are all the same."""
    wide = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    spread = float((wide - wide.mean(0)).norm(dim=1).max())
    if spread <= _COLLAPSED * float(wide.norm(dim=1).max()):
        raise InputError(
            f"the embeddings of all {len(wide)} images are the same (they differ by {spread:.1e} "
            "at most): the encoder has collapsed, or does not see its input, so nothing tells "
            "images apart; look at its training, and at how images are normalised"
        )


def require_kept(num_kept: int, num_images: int, forward: Any) -> None:
    """Refuses a bank without entries, and warns where many images have none."""
    settings = ", ".join(f"{name} {value}" for name, value in loss_settings(forward).items())
    advice = "take mining='all', which has no hinge, give forward a larger margin, or mine more"
    if num_kept == 0:
        raise InputError(
            f"none of the {num_images} images has a gradient to keep ({settings}): either no tuple "
            f"has a loss, because the network keeps them all apart ({advice}), or nothing passes "
            "from the embedding to the layer (dead units, or tokens of which only the class token "
            "is read: choose another layer)"
        )
    if num_images - num_kept > _MANY_SKIPPED * num_images:
        warnings.warn(
            f"{num_images - num_kept} of {num_images} images carry no gradient (as a rule because "
            f"none of their tuples has a loss) and get no entry ({settings}); for more {advice}",
            stacklevel=4,
        )


def loss_settings(forward: Any) -> dict[str, str]:
    """The settings of a loss, as the bank's metadata say them."""
    settings = {"forward": type(forward).__name__}
    for name in ("distance", "loss", "miner", "margin", "second_margin"):
        value = getattr(forward, name, None)
        if value is not None:
            settings[name] = name_of(value) if callable(value) else str(value)
    return settings


def name_of(function: Any) -> str:
    """What metadata call a function or an object that is called; text is itself."""
    if isinstance(function, str):
        return function
    return getattr(function, "__qualname__", type(function).__name__)
