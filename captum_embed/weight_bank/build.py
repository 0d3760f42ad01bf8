"""From a network and its training images to a weight bank.

With tuples: embed every image; choose the tuples of each from the embeddings; then take the
gradient of their mean loss down to the layer, batch by batch, from graphs kept in the first pass
or from a second one. With a loss that makes its own tuples within a batch: one pass over batches
of mixed classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from captum_embed.encoder_forward import MetricForward, mean_of_nonzero
from captum_embed.encoders import encoder_fingerprint, evaluation_mode
from captum_embed.errors import InputError
from captum_embed.layouts import Layout
from captum_embed.metric_forwards import SimilarityForward
from captum_embed.weight_bank.bank import WeightBank
from captum_embed.weight_bank.encoder_runs import EncoderRuns
from captum_embed.weight_bank.entries import checked_keys
from captum_embed.weight_bank.files import library_versions
from captum_embed.weight_bank.images import ImageSource
from captum_embed.weight_bank.mining import (
    NUM_TUPLES,
    REFERENCE_POOL,
    Mining,
    mine_tuples,
    mixed_batches,
    require_minable,
    require_mining,
    tuple_losses,
)
from captum_embed.weight_bank.passes import (
    KeptRuns,
    Objective,
    embed_all,
    weigh_all,
    weigh_batches,
)
from captum_embed.weight_bank.tuples import AllTuples

# Above this share of images without an entry there is a warning.
_MANY_SKIPPED = 0.1
# Spread of embeddings, as a share of their norm, that is no more than rounding.
_COLLAPSED = 1e-6


@overload
def build_weight_bank(
    forward: Callable[..., Any], layer: nn.Module, dataset: Any, **settings: Any
) -> WeightBank: ...


@overload
def build_weight_bank(
    forward: Callable[..., Any], layer: Sequence[nn.Module], dataset: Any, **settings: Any
) -> tuple[WeightBank, ...]: ...


def build_weight_bank(  # type: ignore[misc]
    forward: Callable[..., Any],
    layer: nn.Module | Sequence[nn.Module],
    dataset: Any,
    *,
    mining: Mining = "all",
    num_tuples: int | None = None,
    reference_pool: int | None = None,
    layout: Layout = "channels_first",
    prefix_tokens: int | None = None,
    grid: tuple[int, int] | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    seed: int = 0,
    device: torch.device | str | None = None,
    keys: Sequence[str] | None = None,
    activation_budget: int = 2**30,
    progress: bool = True,
) -> WeightBank | tuple[WeightBank, ...]:
    """Builds a weight bank: for each image, its embedding and its averaged grad-weights.

    The weights of an image are the spatial mean of the gradient, by the layer's output, of the
    mean over its tuples of what ``forward`` explains. That mean is a single scalar, so a batch
    costs one partial backward pass from the embeddings to the layer, whatever the number of
    tuples; nothing below the layer is backpropagated through. The encoder runs in evaluation
    mode, and is left in the mode it was in.

    Args:
        forward: What is explained, with the encoder: :class:`TripletForward`,
            :class:`PairForward`, :class:`QuadrupletForward`, or a :class:`MetricForward` of your
            own. Or any callable ``(images, labels)`` with ``.encoder`` and ``.explains``, such as
            :class:`LossForward`, that makes its own tuples within a batch: then there is one
            pass, over batches of ``batch_size`` that are drawn with the seed, in pairs of one
            class and over all classes.
        layer: The layer to explain, a module of ``forward.encoder`` that runs once per image
            batch. Of one that returns several tensors, the channels are concatenated. Or a list
            of layers, which share the passes.
        dataset: Training images: a torch ``Dataset``, a list, or an iterable that starts anew
            each time, of (image tensor, integer label). Images may differ in size; those of one
            size within ``batch_size`` are encoded together. It must give the same images in
            both passes: no random augmentation.
        mining: ``"all"``: every tuple there is, without the hinge, in closed form (squared
            Euclidean and cosine distances); ``"hardest"``: those of largest loss; ``"random"``:
            drawn uniformly; or a callable ``(anchor_index, embeddings, labels, num_tuples,
            generator)`` that returns reference indices (M, R), one column for each of
            ``forward.reference_roles``. With other mining than ``"all"``, the mean is over the
            tuples whose loss is not zero.
        num_tuples: Number of tuples mined per image, by default 50; not with ``"all"``.
        reference_pool: From how many images the references of the hardest tuples come, by
            default 8,192: two of each class at least, the rest drawn with the seed. Smaller data
            sets are searched exactly, and cost grows linearly beyond.
        layout: Of the layer's output; see :class:`EmbeddingLayerGradCam`.
        prefix_tokens: As in :class:`EmbeddingLayerGradCam`.
        grid: As in :class:`EmbeddingLayerGradCam`.
        batch_size: Number of images read at once.
        num_workers: Processes that read images.
        seed: Of the draws.
        device: Where images are put; default: where the encoder's parameters are.
        keys: One name per image, in the data set's order. Default: its path below the root,
            where the data set lists paths as torchvision's ``ImageFolder`` does; otherwise none.
        activation_budget: Bytes of activations, at and above the layer, that may be kept between
            the passes; the images that fit are not run a second time.
        progress: Show progress bars.

    Returns:
        A bank on the CPU, entries in the data set's order; a tuple of banks where ``layer`` is a
        list. With ``mining="all"`` every image has an entry. Otherwise images without a
        gradient (as a rule because none of their tuples has a loss) get none: they are counted
        in ``metadata``, and warned about when they are more than a tenth.

    Raises:
        InputError: The data set is empty, has too few classes, a class of a single image, or
            other items than (image tensor, integer label); an argument does not fit; images
            change between the passes; embeddings are not a finite (N, D) matrix, or all the
            same; there is no gradient at all.
        LayerError: The layer is not in the encoder, does not run once, or gives activations
            that are not finite.

    Source: Chen et al., Adapting Grad-CAM for Embedding Networks, WACV 2020, sections 3.2, 3.3.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from captum_embed import TripletForward, build_weight_bank
        >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> dataset = [(torch.rand(3, 8, 8 + i), i % 2) for i in range(6)]
        >>> build_weight_bank(TripletForward(encoder), encoder[0], dataset, progress=False)
        WeightBank(6 entries, embedding_dim=4, num_channels=4, layer='0', labels, ...)
    """
    _require_forward(forward)
    if isinstance(forward, MetricForward):
        require_mining(forward, num_tuples, mining, seed, reference_pool)
    else:
        _require_own_tuples(forward, mining, num_tuples, reference_pool, seed)
    if isinstance(activation_budget, bool) or not isinstance(activation_budget, int):
        raise InputError(f"activation_budget is {activation_budget!r}; expected a number of bytes")
    several = isinstance(layer, (list, tuple))
    layers: Sequence[Any] = layer if several else [layer]  # type: ignore[assignment]
    if not layers or not all(isinstance(one, nn.Module) for one in layers):
        raise InputError(f"layer is {layer!r}; expected a module of the encoder, or a list of them")
    source = ImageSource(dataset, batch_size, num_workers)
    if keys is not None:
        keys = checked_keys(keys, len(keys) if source.length is None else source.length)
    names = source.known_names() if keys is None else keys
    encoder: nn.Module = forward.encoder  # type: ignore[attr-defined]
    runs = EncoderRuns(encoder, layers, device, names, layout, prefix_tokens, grid)
    known = source.known_labels()
    if known is not None and isinstance(forward, MetricForward):
        require_minable(forward, known)
    facts = {
        "explains": str(forward.explains),  # type: ignore[attr-defined]
        "layout": layout,
        "seed": str(seed),
        **_loss_settings(forward),
    }
    with evaluation_mode(encoder), evaluation_mode(forward):
        if isinstance(forward, MetricForward):
            facts["mining"] = mining if isinstance(mining, str) else _name(mining)
            if mining != "all":
                facts["num_tuples"] = str(num_tuples or NUM_TUPLES)
            kept = KeptRuns(activation_budget)
            embeddings, labels = embed_all(runs, source, kept, progress)
            _require_names(names, labels)
            require_minable(forward, labels)
            _require_spread(embeddings)
            objective, wanted = _objective(
                forward,
                embeddings,
                labels,
                mining=mining,
                num_tuples=num_tuples or NUM_TUPLES,
                reference_pool=reference_pool or REFERENCE_POOL,
                seed=seed,
                progress=progress,
            )
            weights = weigh_all(runs, source, kept, objective, wanted, embeddings, labels, progress)
        else:
            facts["mining"], facts["batch_size"] = "batch", str(batch_size)
            labels = source.labels()
            _require_names(names, labels)
            groups = mixed_batches(labels, batch_size, torch.Generator().manual_seed(seed))
            embeddings, weights = weigh_batches(runs, source, forward, groups, progress)
            _require_spread(embeddings)
    if runs.prefix_tokens:
        facts["prefix_tokens"] = str(runs.prefix_tokens)
    facts["encoder_fingerprint"] = encoder_fingerprint(encoder)
    keep_all = isinstance(forward, MetricForward) and mining == "all"
    banks = tuple(
        _bank(embeddings, labels, each, names, forward, {"layer": name, **facts}, keep_all)
        for name, each in zip(runs.layer_names, weights, strict=True)
    )
    return banks if several else banks[0]


def _bank(
    embeddings: Tensor,
    labels: Tensor,
    weights: Tensor,
    names: Sequence[str] | None,
    forward: Any,
    facts: dict[str, str],
    keep_all: bool,
) -> WeightBank:
    has_gradient = (weights != 0).any(1)
    count = int(has_gradient.sum())
    if not count or not keep_all:
        _require_kept(count, len(labels), forward)
    if keep_all:
        has_gradient.fill_(True)
    kept = has_gradient.nonzero()[:, 0]
    everything = len(kept) == len(labels)
    return WeightBank(
        embeddings.cpu() if everything else embeddings[kept.to(embeddings.device)].cpu(),
        weights if everything else weights[kept],
        labels=labels.cpu()[kept],
        keys=None if names is None else [names[index] for index in kept.tolist()],
        metadata={
            **facts,
            "num_images": str(len(labels)),
            "num_skipped": str(len(labels) - len(kept)),
            **{f"{name}_version": value for name, value in library_versions().items()},
        },
    )


def _objective(
    forward: MetricForward,
    embeddings: Tensor,
    labels: Tensor,
    *,
    mining: Mining,
    num_tuples: int,
    reference_pool: int,
    seed: int,
    progress: bool,
) -> tuple[Objective, Tensor]:
    """The mean over each image's tuples, and which images have any, (B,)."""
    if mining == "all":
        every = AllTuples(forward, embeddings, labels)
        return (
            lambda own, indices: forward.directed(every.losses(own, indices)),
            torch.ones(len(labels), dtype=torch.bool),
        )
    tuples = mine_tuples(
        forward,
        embeddings,
        labels,
        num_tuples=num_tuples,
        mining=mining,
        seed=seed,
        reference_pool=reference_pool,
        progress=progress,
    )

    def mean(own: Tensor, indices: Tensor) -> Tensor:
        losses = tuple_losses(forward, own, embeddings.to(own), labels, indices, tuples.references)
        losses = torch.where(tuples.active[indices], losses, torch.zeros_like(losses))
        return forward.directed(mean_of_nonzero(losses))

    wanted = tuples.active.any(1)
    if not wanted.any():
        _require_kept(0, len(labels), forward)
    return mean, wanted.cpu()


def _require_forward(forward: Any) -> None:
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


def _require_own_tuples(
    forward: Any, mining: Any, num_tuples: Any, reference_pool: Any, seed: Any
) -> None:
    if mining != "all" or num_tuples is not None or reference_pool is not None:
        raise InputError(
            f"{type(forward).__name__} makes its own tuples within a batch; leave out mining, "
            "num_tuples and reference_pool (LossForward takes a miner)"
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed is {seed!r}; expected an integer of at least 0")


def _require_names(names: Sequence[str] | None, labels: Tensor) -> None:
    if names is not None and len(names) != len(labels):
        raise InputError(f"keys are {len(names)} names for {len(labels)} images")


def _require_spread(embeddings: Tensor) -> None:
    wide = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    spread = float((wide - wide.mean(0)).norm(dim=1).max())
    if spread <= _COLLAPSED * float(wide.norm(dim=1).max()):
        raise InputError(
            f"the embeddings of all {len(wide)} images are the same (they differ by {spread:.1e} "
            "at most): the encoder has collapsed, or does not see its input, so nothing tells "
            "images apart; look at its training, and at how images are normalised"
        )


def _require_kept(num_kept: int, num_images: int, forward: Any) -> None:
    settings = ", ".join(f"{name} {value}" for name, value in _loss_settings(forward).items())
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


def _loss_settings(forward: Any) -> dict[str, str]:
    settings = {"forward": type(forward).__name__}
    for name in ("distance", "loss", "miner", "margin", "second_margin"):
        value = getattr(forward, name, None)
        if value is not None:
            settings[name] = _name(value) if callable(value) else str(value)
    return settings


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__name__)
