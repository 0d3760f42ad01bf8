"""Which tuples of training images each anchor is explained with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from captum_embed.encoder_forward import MetricForward
from captum_embed.errors import InputError
from captum_embed.weight_bank.tuples import Block, HardestTuples, require_closed_form

PAIR = ("any",)
TRIPLET = ("same", "different")
QUADRUPLET = ("same", "different", "different")

# (anchor index, embeddings (B, D), labels (B,), num_tuples, generator) -> indices (M, R)
Miner = Callable[[int, Tensor, Tensor, int, torch.Generator], Tensor]
Mining = Literal["all", "hardest", "random"] | Miner

NUM_TUPLES = 50
REFERENCE_POOL = 8192

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
    reference_pool: int = REFERENCE_POOL,
    anchors: Tensor | None = None,
    progress: bool = False,
) -> MinedTuples:
    """Chooses the tuples of each image from the embeddings of all of them.

    Args:
        forward: Gives the loss of a tuple, and the roles of its references.
        embeddings: Shape (B, D).
        labels: Shape (B,), int64; see :func:`require_minable`.
        num_tuples: Number of tuples M per anchor. One that has fewer gets all it has.
        mining: As in :func:`build_weight_bank`, but not ``"all"``.
        seed: Of the draws. Each anchor has a generator of its own, so its tuples depend on
            nothing but the seed and its place in the data set.
        reference_pool: As in :func:`build_weight_bank`; the same for all anchors.
        anchors: Indices of the images whose tuples are wanted; None: all.
        progress: Show a bar.

    Returns:
        The tuples, on the device of the embeddings.

    Raises:
        InputError: A callable returned something else than tuples of this anchor.
    """
    # Half precision has too few digits for differences of distances.
    wide = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    if mining == "hardest":
        generator = torch.Generator().manual_seed(seed)
        pool = draw_pool(labels.cpu(), reference_pool, generator)
        blocks = _hardest(forward, wide, labels, pool, num_tuples, anchors)
    else:
        blocks = _one_by_one(forward, wide, labels, num_tuples, mining, seed, anchors)
    everyone = torch.arange(len(labels)) if anchors is None else anchors
    shape = (len(labels), num_tuples)
    references = labels.new_zeros((*shape, len(forward.reference_roles)))
    exists = torch.zeros(shape, dtype=torch.bool, device=labels.device)
    with (
        torch.no_grad(),
        tqdm(total=len(everyone), desc="mining tuples", unit="image", disable=not progress) as bar,
    ):
        for block, mined, real in blocks:
            references[block, : mined.shape[1]] = mined
            exists[block, : mined.shape[1]] = real
            bar.update(len(block))
        for block in everyone.to(labels.device).split(_ANCHORS_AT_ONCE):
            losses = tuple_losses(forward, wide[block], wide, labels, block, references)
            exists[block] &= losses != 0
    return MinedTuples(references, exists)


def tuple_losses(
    forward: MetricForward,
    anchor_embeddings: Tensor,
    embeddings: Tensor,
    labels: Tensor,
    anchors: Tensor,
    references: Tensor,
) -> Tensor:
    """Losses (A, M) of the tuples of anchors (A,), differentiable in ``anchor_embeddings`` (A, D).

    ``embeddings`` (B, D), ``labels`` (B,) and ``references`` (B, M, R) are those of all images.
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


def require_mining(
    forward: MetricForward, num_tuples: Any, mining: Any, seed: Any, reference_pool: Any = None
) -> None:
    """Refuses settings that no tuples can be chosen with.

    Raises:
        InputError: Which one, and what was expected.
    """
    if mining not in ("all", "hardest", "random") and not callable(mining):
        raise InputError(
            f"mining is {mining!r}; expected 'all', 'hardest', 'random' or a callable "
            "(anchor_index, embeddings, labels, num_tuples, generator) -> reference indices (M, R)"
        )
    for name, value, least, applies in (
        ("num_tuples", num_tuples, 1, mining != "all"),
        ("seed", seed, 0, True),
        ("reference_pool", reference_pool, 2, mining == "hardest"),
    ):
        if value is None and name != "seed":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name} is {value!r}; expected an integer of at least {least}")
        if not applies:
            raise InputError(
                f"{name} is {value}, and mining={mining!r} has no use for it; leave it out, or "
                "pass mining='hardest'"
            )
    roles = forward.reference_roles
    if mining == "all":
        require_closed_form(forward)
    elif not roles or (roles not in (PAIR, TRIPLET, QUADRUPLET) and not callable(mining)):
        raise InputError(
            f"{type(forward).__name__} has reference_roles {roles}, and mining {mining!r} knows "
            f"{PAIR}, {TRIPLET} and {QUADRUPLET}; for others pass a callable as mining"
        )


def draw_pool(labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Indices, ascending, of two images of each class and of more at random, ``size`` in all.

    Example::

        >>> import torch
        >>> labels = torch.tensor([0, 0, 0, 1, 1, 1])
        >>> pool = draw_pool(labels, 5, torch.Generator())
        >>> len(pool), labels[pool].bincount().min() >= 2
        (5, tensor(True))
    """
    rank = rank_in_class(labels, generator)
    order = torch.where(rank < 2, -1.0, torch.rand(len(labels), generator=generator)).argsort()
    return order[: max(size, int((rank < 2).sum()))].sort().values


def mixed_batches(labels: Tensor, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Batches of indices in which each image meets one of its class and all classes are spread.

    The images of a class go in twos (or threes), evenly over the batches, which are of nearly
    equal size.

    Example::

        >>> import torch
        >>> labels = torch.arange(3).repeat_interleave(4)  # sorted by class
        >>> [labels[batch].unique().tolist() for batch in mixed_batches(
        ...     labels, 6, torch.Generator().manual_seed(0))]
        [[0, 1, 2], [0, 1, 2]]
    """
    _, class_of, sizes = labels.unique(return_inverse=True, return_counts=True)
    pairs = (sizes // 2).clamp(min=1)
    offset = torch.rand(len(sizes), generator=generator, dtype=torch.float64)
    pair = rank_in_class(labels, generator) * pairs[class_of] // sizes[class_of]
    _, group = ((pair + offset[class_of]) / pairs[class_of]).unique(return_inverse=True)
    count = int(group.max()) + 1
    for number in range(-(-len(labels) // batch_size), count + 1):
        batch_of = group * number // count
        lengths = batch_of.bincount(minlength=number)
        if lengths.max() <= batch_size:
            break
    return list(batch_of.argsort(stable=True).split(lengths.tolist()))


def rank_in_class(labels: Tensor, generator: torch.Generator) -> Tensor:
    """The place of each image in a random order of its class, from 0, (B,)."""
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    _, sizes = labels.unique(return_counts=True)
    starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return torch.empty_like(by_class).scatter_(0, by_class, torch.arange(len(labels)) - starts)


def _hardest(
    forward: MetricForward,
    embeddings: Tensor,
    labels: Tensor,
    pool: Tensor,
    num_tuples: int,
    anchors: Tensor | None,
) -> Iterator[Block]:
    # Apple's GPUs have no float64.
    device = torch.device("cpu") if embeddings.device.type == "mps" else embeddings.device
    search = HardestTuples(
        forward, embeddings.to(device), labels.to(device), pool.to(device), num_tuples, anchors
    )
    by_roles = {PAIR: search.pairs, TRIPLET: search.triplets, QUADRUPLET: search.quadruplets}
    for block, references, real in by_roles[forward.reference_roles]():
        yield block.to(labels.device), references.to(labels.device), real.to(labels.device)


def _one_by_one(
    forward: MetricForward,
    embeddings: Tensor,
    labels: Tensor,
    num_tuples: int,
    mining: Mining,
    seed: int,
    anchors: Tensor | None,
) -> Iterator[Block]:
    draw = RandomTuples(labels.cpu(), forward.reference_roles) if mining == "random" else None
    for anchor in range(len(labels)) if anchors is None else anchors.tolist():
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


class RandomTuples:
    """Numbers all tuples of an anchor from 0, draws numbers, and decodes them into images.

    Args:
        labels: Shape (B,), on the CPU.
        roles: Of the references: a pair's, triplet's or quadruplet's, see
            above.

    Example::

        >>> import torch
        >>> draw = RandomTuples(torch.tensor([7, 7, 8, 8]), ("same", "different"))
        >>> draw(0, 10, torch.Generator()).tolist()  # there are only two
        [[1, 2], [1, 3]]
    """

    def __init__(self, labels: Tensor, roles: tuple[str, ...]) -> None:
        self._roles = roles
        # Images class by class: those of class c stand at starts[c] .. starts[c] + sizes[c] - 1.
        self._images = labels.argsort(stable=True)
        self._place_of = self._images.argsort()
        _, self._class_of, self._sizes = labels.unique(return_inverse=True, return_counts=True)
        self._starts = self._sizes.cumsum(0) - self._sizes

    def __call__(self, anchor: int, count: int, generator: torch.Generator) -> Tensor:
        """``count`` different tuples of an anchor, or all where it has fewer.

        Args:
            anchor: Index of the image.
            count: Number of tuples.
            generator: Source of the draws, on the CPU.

        Returns:
            Reference indices (M, R).
        """
        others = len(self._images) - 1
        if len(self._roles) == 1:
            drawn = _distinct(others, count, generator)
            return self._images[_skip(drawn, int(self._place_of[anchor]), 1)][:, None]
        own = int(self._class_of[anchor])
        start, size = int(self._starts[own]), int(self._sizes[own])
        pairs = self._negative_pairs(own)
        combinations = others + 1 - size if len(self._roles) == 2 else int(pairs.sum())
        drawn = _distinct((size - 1) * combinations, count, generator)
        positive = start + _skip(drawn // combinations, int(self._place_of[anchor]) - start, 1)
        rest = drawn % combinations
        if len(self._roles) == 2:
            places = [positive, _skip(rest, start, size)]
        else:
            places = [positive, *self._negatives(rest, own, pairs)]
        return self._images[torch.stack(places, dim=1)]

    def _negative_pairs(self, own: int) -> Tensor:
        """For each class, how many ordered pairs of negatives have their first in it."""
        second = len(self._images) - self._sizes - self._sizes[own]
        return (self._sizes * second).index_fill(0, torch.tensor([own]), 0)

    def _negatives(self, number: Tensor, own: int, pairs: Tensor) -> tuple[Tensor, Tensor]:
        ends = pairs.cumsum(0)
        first_class = torch.searchsorted(ends, number, right=True)
        number = number - (ends - pairs)[first_class]
        num_second = len(self._images) - self._sizes[first_class] - self._sizes[own]
        first = self._starts[first_class] + number // num_second
        second = number % num_second
        taken = torch.stack([first_class, torch.full_like(first_class, own)]).sort(dim=0).values
        for each in taken:
            second = _skip(second, self._starts[each], self._sizes[each])
        return first, second


def _skip(number: Tensor, start: Tensor | int, size: Tensor | int) -> Tensor:
    """Counts on past ``size`` places from ``start``."""
    return torch.where(number < start, number, number + size)


def _distinct(total: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` different integers below ``total``, or all of them."""
    if total <= count:
        return torch.arange(total)
    if total <= 4 * count:
        return torch.randperm(total, generator=generator)[:count]
    drawn: dict[int, None] = {}
    while len(drawn) < count:
        more = torch.randint(total, (2 * count,), generator=generator)
        drawn.update(dict.fromkeys(more.tolist()))
    return torch.tensor(list(drawn)[:count])
