"""From a network and its training images to a weight bank.

With tuples: embed every image; choose the tuples of each from the embeddings; then take the
gradient of their mean loss down to the layer, batch by batch, from graphs kept in the first pass
or from a second one. With a loss that makes its own tuples within a batch: one pass over batches
of mixed classes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import torch
from torch import nn

from captum_embed.encoder_forward import MetricForward
from captum_embed.encoders import evaluation_mode
from captum_embed.errors import InputError
from captum_embed.layouts import Layout
from captum_embed.weight_bank.bank import WeightBank
from captum_embed.weight_bank.build_job import BuildJob
from captum_embed.weight_bank.build_work import BuildWork
from captum_embed.weight_bank.encoder_runs import EncoderRuns
from captum_embed.weight_bank.entries import checked_keys
from captum_embed.weight_bank.files import checked_folder
from captum_embed.weight_bank.images import ImageSource
from captum_embed.weight_bank.mining import (
    NUM_TUPLES,
    REFERENCE_POOL,
    Mining,
    require_minable,
    require_mining,
)
from captum_embed.weight_bank.objectives import (
    loss_settings,
    name_of,
    require_forward,
    require_own_tuples,
)
from captum_embed.weight_bank.processes import Processes

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


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
    metadata: Mapping[str, str] | None = None,
    path: Paths | None = None,
    process_group: Any = None,
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
        metadata: Further facts for the bank, such as the name of the network.
        path: Where the bank is saved; for a list of layers, a path for each. What is computed is
            also written to ``<path>.building`` about twice a minute, and a build that was
            interrupted goes on from there when it is started again with the same settings.
        process_group: Of ``torch.distributed``, where it is initialised; None: all processes.
        progress: Show progress bars.

    Where ``torch.distributed`` is initialised, its processes share the work, and all of them must
    call this, with the same arguments: each reads and runs its part of the data set, embeddings
    are gathered, each mines for its own images, and the result is that of one process. With a
    ``path``, in a directory that all of them see, each writes its shards and the first one the
    manifest; without, every process has the whole bank in memory. See
    :mod:`captum_embed.build_bank` for a command.

    Returns:
        A bank on the CPU, entries in the data set's order; a tuple of banks where ``layer`` is a
        list; with a path, mapped from the files. With ``mining="all"`` every image has an entry.
        Otherwise images without a gradient (as a rule because none of their tuples has a loss)
        get none: they are counted in ``metadata``, and warned about when more than a tenth.

    Raises:
        InputError: The data set is empty, has too few classes, a class of a single image, or
            other items than (image tensor, integer label); an argument does not fit; images
            change between the passes; embeddings are not a finite (N, D) matrix, or all the
            same; there is no gradient at all.
        ProcessError: Another process failed or ended.
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
    require_forward(forward)
    with_tuples = isinstance(forward, MetricForward)
    if isinstance(forward, MetricForward):
        require_mining(forward, num_tuples, mining, seed, reference_pool)
    else:
        require_own_tuples(forward, mining, num_tuples, reference_pool, seed)
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
        **loss_settings(forward),
        "mining": name_of(mining) if with_tuples else "batch",
    }
    if not with_tuples:
        facts["batch_size"] = str(batch_size)
    elif mining != "all":
        facts["num_tuples"] = str(num_tuples or NUM_TUPLES)
    processes = Processes(process_group)
    job = BuildJob(_checked_paths(path, len(layers), several), processes)
    work = BuildWork(runs, source, job, names, progress and processes.rank == 0)
    with (
        evaluation_mode(encoder),
        evaluation_mode(forward),
        job.running(work.settings(known, {**facts, "reference_pool": str(reference_pool)})),
    ):
        if isinstance(forward, MetricForward):
            options = {
                "mining": mining,
                "num_tuples": num_tuples or NUM_TUPLES,
                "reference_pool": reference_pool or REFERENCE_POOL,
                "seed": seed,
            }
            rows = work.of_tuples(forward, activation_budget, **options)
        else:
            rows = work.of_batches(forward, batch_size, seed)
        facts |= {**work.network_facts(), **(metadata or {})}
        banks = tuple(work.banks(forward, rows, facts, with_tuples and mining == "all"))
    return banks if several else banks[0]


def _checked_paths(
    path: Paths | None, count: int, several: bool
) -> list[str | os.PathLike[str]] | None:
    if path is None:
        return None
    alone = isinstance(path, (str, bytes)) or not isinstance(path, Sequence)
    paths: list[Any] = [path] if alone else [*path]  # type: ignore[misc]
    if len({os.path.realpath(checked_folder(one)) for one in paths}) != count or (
        isinstance(path, str) and several
    ):
        raise InputError(
            f"path is {path!r} for {count} layers; expected a directory for each, all different"
        )
    return paths
