"""Which tuples of training images each anchor is explained with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from captum_embed.errors import InputError
from captum_embed.metric_forwards import MetricForward
from captum_embed.weight_bank.hardest import (
    hardest_pairs,
    hardest_quadruplets,
    hardest_triplets,
)
from captum_embed.weight_bank.random_tuples import RandomTuples

PAIR = ("any",)
TRIPLET = ("same", "different")
QUADRUPLET = ("same", "different", "different")

# (anchor index, embeddings (B, D), labels (B,), num_tuples, generator) -> indices (M, R)
Miner = Callable[[int, Tensor, Tensor, int, torch.Generator], Tensor]
Mining = Literal["hardest", "random"] | Miner

_ANCHORS_AT_ONCE = 64


@dataclass(frozen=True)
class MinedTuples:
    """Tuples of each image as an anchor.

    Args:
        references: Image indices (B, M, R): R references for each of M tuples.
        active: Which tuples exist and have a loss that is not zero, (B, M).
    """

    references: Tensor
    active: Tensor


def mine_tuples(
    forward: MetricForward,
    embeddings: Tensor,
    labels: Tensor,
    *,
    num_tuples: int,
    mining: Mining,
    seed: int,
    progress: bool = False,
) -> MinedTuples:
    """Chooses the tuples of each image from the embeddings of all of them.

    Args:
        forward: Gives the loss of a tuple, and the roles of its references.
        embeddings: Shape (B, D).
        labels: Shape (B,), int64; see :func:`require_minable`.
        num_tuples: Number of tuples M per anchor. One that has fewer gets all it has.
        mining: ``"hardest"``, the tuples of largest loss, exactly, for every loss that grows
            with the distance to a positive and shrinks with distances to and between negatives;
            ``"random"``, tuples drawn uniformly, all different; or a callable
            ``(anchor_index, embeddings, labels, num_tuples, generator)`` that returns reference
            indices (M', R), M' <= M.
        seed: Of the draws. Each anchor has a generator of its own, so its tuples depend on
            nothing but the seed and its place in the data set.
        progress: Show a bar.

    Returns:
        The tuples, on the device of the embeddings.

    Raises:
        InputError: A callable returned something else than tuples of this anchor.
    """
    # Half precision has too few digits for differences of distances.
    wide = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    blocks = _blocks(forward, wide, labels, num_tuples, mining, seed)
    shape = (len(labels), num_tuples)
    references = labels.new_zeros((*shape, len(forward.reference_roles)))
    exists = torch.zeros(shape, dtype=torch.bool, device=labels.device)
    with (
        torch.no_grad(),
        tqdm(total=len(labels), desc="mining tuples", unit="image", disable=not progress) as bar,
    ):
        for anchors, found, real in blocks:
            references[anchors, : found.shape[1]] = found
            exists[anchors, : found.shape[1]] = real
            bar.update(len(anchors))
        everyone = torch.arange(len(labels), device=labels.device)
        for anchors in everyone.split(_ANCHORS_AT_ONCE):
            losses = tuple_losses(forward, wide[anchors], wide, labels, anchors, references)
            exists[anchors] &= losses != 0
    return MinedTuples(references, exists)


def tuple_losses(
    forward: MetricForward,
    anchor_embeddings: Tensor,
    embeddings: Tensor,
    labels: Tensor,
    anchors: Tensor,
    references: Tensor,
) -> Tensor:
    """Losses (A, M) of the anchors' tuples; differentiable in their own embeddings (A, D).

    Args:
        forward: Gives the loss of a tuple.
        anchor_embeddings: Shape (A, D).
        embeddings: Of all images, (B, D).
        labels: Of all images, (B,).
        anchors: Image indices (A,).
        references: Of all images, (B, M, R).
    """
    chosen = references[anchors]
    arguments = [embeddings[index] for index in chosen.unbind(2)]
    if forward.reference_roles == PAIR:
        arguments.append(labels[anchors, None] == labels[chosen[..., 0]])
    return forward.tuple_loss(anchor_embeddings[:, None], *arguments)


def require_minable(forward: MetricForward, labels: Tensor) -> None:
    """Refuses labels that leave an image without a tuple, naming the class.

    Args:
        forward: Says which references a tuple needs.
        labels: Shape (B,).

    Raises:
        InputError: There are too few classes, or a class has a single image.
    """
    roles = forward.reference_roles
    classes, counts = labels.unique(return_counts=True)
    needed = 3 if roles == QUADRUPLET else 1 + ("different" in roles)
    if len(classes) < needed:
        raise InputError(
            f"the data set has {len(classes)} class(es), {classes.tolist()}; tuples of roles "
            f"{roles} need {needed}: add images of other classes"
        )
    if len(labels) < 2:
        raise InputError("the data set has one image; a tuple needs two: add images")
    single = classes[counts == 1].tolist()
    if "same" in roles and single:
        raise InputError(
            f"class(es) {single[:10]} have a single image, and an anchor needs another of its "
            "class; leave them out, or add images"
        )


def require_mining(forward: MetricForward, num_tuples: Any, mining: Any, seed: Any) -> None:
    """Refuses settings that :func:`mine_tuples` cannot work with.

    Raises:
        InputError: Which one, and what was expected.
    """
    for name, value, least in (("num_tuples", num_tuples, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name} is {value!r}; expected an integer of at least {least}")
    if mining not in ("hardest", "random") and not callable(mining):
        raise InputError(
            f"mining is {mining!r}; expected 'hardest', 'random' or a callable (anchor_index, "
            "embeddings, labels, num_tuples, generator) -> reference indices (M, R)"
        )
    roles = forward.reference_roles
    if not roles or (roles not in (PAIR, TRIPLET, QUADRUPLET) and not callable(mining)):
        raise InputError(
            f"{type(forward).__name__} has reference_roles {roles}, and mining {mining!r} knows "
            f"{PAIR}, {TRIPLET} and {QUADRUPLET}; for others pass a callable as mining"
        )


def _blocks(
    forward: MetricForward,
    embeddings: Tensor,
    labels: Tensor,
    num_tuples: int,
    mining: Mining,
    seed: int,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    if mining == "hardest":
        mine: Any = {
            PAIR: hardest_pairs,
            TRIPLET: hardest_triplets,
            QUADRUPLET: hardest_quadruplets,
        }[forward.reference_roles]
        # Apple's GPUs have no float64.
        device = "cpu" if embeddings.device.type == "mps" else embeddings.device
        for block in mine(
            forward.tuple_loss,
            embeddings.to(device),
            labels.to(device),
            num_tuples,
            cosine=forward.distance == "cosine",
        ):
            anchors, references, real = (part.to(labels.device) for part in block)
            yield anchors, references, real
        return
    draw = RandomTuples(labels.cpu(), forward.reference_roles) if mining == "random" else None
    for anchor in range(len(labels)):
        generator = torch.Generator().manual_seed(_seed_of(seed, anchor))
        if draw is not None:
            drawn = draw(anchor, num_tuples, generator)
        else:
            drawn = mining(anchor, embeddings, labels, num_tuples, generator)  # type: ignore[operator]
            _require_tuples(drawn, anchor, labels, num_tuples, forward.reference_roles)
        references = drawn[None].to(labels)
        yield torch.tensor([anchor], device=labels.device), references, references[..., 0] >= 0


def _seed_of(seed: int, anchor: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {anchor}".encode()).digest()[:7], "big")


def _require_tuples(
    drawn: Any, anchor: int, labels: Tensor, num_tuples: int, roles: tuple[str, ...]
) -> None:
    fits = isinstance(drawn, Tensor) and drawn.dtype in (torch.int64, torch.int32)
    if not fits or drawn.dim() != 2 or drawn.shape[1] != len(roles) or len(drawn) > num_tuples:
        given = (
            f"{drawn.dtype} of shape {tuple(drawn.shape)}"
            if isinstance(drawn, Tensor)
            else type(drawn).__name__
        )
        raise InputError(
            f"mining returned {given} for image {anchor}; expected integers (M, {len(roles)}), "
            f"M at most num_tuples, which is {num_tuples}"
        )
    drawn = drawn.to(labels)
    if drawn.numel() and not 0 <= int(drawn.min()) <= int(drawn.max()) < len(labels):
        raise InputError(
            f"mining returned indices from {int(drawn.min())} to {int(drawn.max())} for image "
            f"{anchor}; expected 0 to {len(labels) - 1}"
        )
    if (drawn == anchor).any():
        raise InputError(f"mining returned image {anchor} as a reference of itself; leave it out")
    for place, role in enumerate(roles):
        same = labels[drawn[:, place]] == labels[anchor]
        if (role == "same" and not same.all()) or (role == "different" and same.any()):
            raise InputError(
                f"mining returned for image {anchor}, as reference {place + 1}, an image that is "
                f"not of the {role!r} role; see {roles}"
            )
