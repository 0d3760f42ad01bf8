"""From a network and its training images to a weight bank, in two passes.

Embed every image; choose the tuples of each from the embeddings; then, batch by batch, run the
images once more and take the gradient of their mean losses down to the layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from captum_embed.errors import InputError, LayerError
from captum_embed.layer_executions import (
    LayerExecution,
    layer_gradients,
    layer_name,
    run_layer,
)
from captum_embed.metric_forwards import MetricForward, mean_of_nonzero
from captum_embed.weight_bank.bank import WeightBank
from captum_embed.weight_bank.compatibility import encoder_fingerprint, unwrapped
from captum_embed.weight_bank.entries import checked_keys
from captum_embed.weight_bank.images import ImageBatch, ImageSource
from captum_embed.weight_bank.mining import (
    MinedTuples,
    Mining,
    mine_tuples,
    require_minable,
    require_mining,
    tuple_losses,
)
from captum_embed.weight_bank.storage import library_versions

# Above this share of images without an entry there is a warning.
_MANY_SKIPPED = 0.1


def build_weight_bank(
    forward: MetricForward,
    layer: nn.Module,
    dataset: Any,
    *,
    num_tuples: int = 50,
    mining: Mining = "hardest",
    batch_size: int = 32,
    num_workers: int = 0,
    seed: int = 0,
    device: torch.device | str | None = None,
    keys: Sequence[str] | None = None,
    progress: bool = True,
) -> WeightBank:
    """Builds a weight bank: for each image, its embedding and its averaged grad-weights.

    The weights of an image are the spatial mean of the gradient, by the layer's output, of the
    mean loss over those of its tuples that have one. That mean is a single scalar, so a batch
    costs one partial backward pass from the embeddings to the layer, whatever ``num_tuples``
    is; nothing below the layer is backpropagated through. The encoder runs in evaluation mode,
    and is left in the mode it was in.

    Args:
        forward: The metric loss, with the encoder: :class:`TripletForward`,
            :class:`PairForward`, :class:`QuadrupletForward`, or a :class:`MetricForward` of
            your own.
        layer: The layer to explain, a module of ``forward.encoder`` that runs once per image
            batch. Of one that returns several tensors, the channels are concatenated.
        dataset: Training images: a torch ``Dataset``, a list, or an iterable that starts anew
            each time, of (image tensor, integer label). Images may differ in size; those of one
            size within ``batch_size`` are encoded together. It must give the same images in
            both passes: no random augmentation.
        num_tuples: Number of tuples mined per image.
        mining: ``"hardest"``: the tuples of largest loss; ``"random"``: drawn uniformly; or a
            callable ``(anchor_index, embeddings, labels, num_tuples, generator)`` that returns
            reference indices (M, R), one column for each of ``forward.reference_roles``.
        batch_size: Number of images read at once.
        num_workers: Processes that read images.
        seed: Of random mining.
        device: Where images are put; default: where the encoder's parameters are.
        keys: One name per image, in the data set's order, such as its path. Default: its index
            in the data set, as text; images without an entry make the bank's own indices
            differ from the data set's.
        progress: Show progress bars.

    Returns:
        A bank on the CPU, entries in the data set's order. Images none of whose tuples has a
        loss carry no gradient and get no entry: they are counted in ``metadata``, and warned
        about when they are more than a tenth.

    Raises:
        InputError: The data set is empty, has too few classes, a class of a single image, or
            other items than (image tensor, integer label); an argument does not fit; images
            change between the passes; embeddings are not a finite (N, D) matrix; no tuple at
            all has a loss.
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
        WeightBank(6 entries, embedding_dim=4, num_channels=4, layer='0', labels, keys, ...)
    """
    if not isinstance(forward, MetricForward):
        raise InputError(
            f"forward is {type(forward).__name__}; expected a TripletForward, PairForward, "
            "QuadrupletForward or other MetricForward, which says what a tuple costs"
        )
    require_mining(forward, num_tuples, mining, seed)
    source = ImageSource(dataset, batch_size, num_workers)
    if keys is not None:
        keys = checked_keys(keys, len(keys) if source.length is None else source.length)
    known = source.known_labels()
    if known is not None:
        require_minable(forward, known)
    network = _Network(forward.encoder, layer, device, keys)
    with _evaluation_mode(forward):
        embeddings, labels = _embed_all(network, source, progress)
        if keys is not None and len(keys) != len(labels):
            raise InputError(f"keys are {len(keys)} names for {len(labels)} images")
        require_minable(forward, labels)
        tuples = mine_tuples(
            forward,
            embeddings,
            labels,
            num_tuples=num_tuples,
            mining=mining,
            seed=seed,
            progress=progress,
        )
        if not tuples.active.any():
            _check_skipped(0, len(labels), forward)
        kept, weights = _weigh_all(network, source, forward, embeddings, labels, tuples, progress)
    _check_skipped(len(kept), len(labels), forward)
    return WeightBank(
        embeddings[kept].cpu(),
        weights,
        labels=labels[kept].cpu(),
        keys=[network.name_of(index) for index in kept.tolist()],
        metadata={
            "layer": network.layer_name,
            "encoder_fingerprint": encoder_fingerprint(forward.encoder),
            "num_images": str(len(labels)),
            "num_skipped": str(len(labels) - len(kept)),
            "num_tuples": str(num_tuples),
            "mining": mining if isinstance(mining, str) else _name(mining),
            "seed": str(seed),
            **_loss_settings(forward),
            **{f"{name}_version": value for name, value in library_versions().items()},
        },
    )


class _Network:
    """Runs the encoder on a batch, and refuses what cannot become an entry."""

    def __init__(
        self,
        encoder: nn.Module,
        layer: nn.Module,
        device: torch.device | str | None,
        keys: Sequence[str] | None,
    ) -> None:
        name = layer_name(unwrapped(encoder), layer)
        if name is None:
            raise LayerError(
                f"the layer ({type(layer).__name__}) is not a module of forward.encoder "
                f"({type(encoder).__name__}); choose one from its named_modules(), of this very "
                "object and not of a copy"
            )
        self.layer_name = name
        self.encoder = encoder
        self.layer = layer
        homes = [each.device for each in (*encoder.parameters(), *encoder.buffers())]
        home = homes[0] if homes else torch.device("cpu")
        # "cuda" is whichever of them the encoder is on.
        self.device = home if device in (None, home.type) else torch.device(str(device))
        if homes and self.device not in homes:
            raise InputError(
                f"device is {self.device}, and the encoder is on {home}; move it there first, with "
                "forward.to(device)"
            )
        self._keys = keys

    def name_of(self, index: int) -> str:
        return str(index) if self._keys is None else self._keys[index]

    def run(self, batch: ImageBatch) -> tuple[Tensor, list[LayerExecution]]:
        """Embeddings (N, D), and the one execution of the layer."""
        embeddings, executions = run_layer(self.encoder, self.layer, (batch.images,))
        count = len(batch.images)
        if len(executions) != 1:
            raise LayerError(
                f"the layer '{self.layer_name}' runs {len(executions)} times in one pass of the "
                "encoder; a bank keeps the weights of one: choose a layer that runs once"
            )
        for tensor in executions[0].tensors:
            if tensor.dim() < 2 or len(tensor) != count:
                raise LayerError(
                    f"the layer '{self.layer_name}' gives shape {tuple(tensor.shape)} for {count} "
                    "images; expected (N, C, ...): choose another layer"
                )
            self.require_finite(f"the activations of layer '{self.layer_name}'", tensor, batch)
        shape = tuple(embeddings.shape) if isinstance(embeddings, Tensor) else None
        if shape is None or len(shape) != 2 or shape[0] != count:
            raise InputError(
                f"the encoder returned {shape or type(embeddings).__name__} for {count} images; "
                f"expected embeddings ({count}, D): pool and flatten in the encoder"
            )
        self.require_finite("the embedding", embeddings, batch)
        return embeddings, executions

    def require_influence(self, embeddings: Tensor, executions: list[LayerExecution]) -> None:
        """Refuses a layer that the embeddings do not depend on, given a run with gradients."""
        tensors = [tensor for shard in executions[0].shards for tensor in shard]
        if embeddings.requires_grad:
            gradients = torch.autograd.grad(embeddings.sum(), tensors, allow_unused=True)
            if any(gradient is not None for gradient in gradients):
                return
        raise LayerError(
            f"the embedding does not depend on the layer '{self.layer_name}' through a graph; "
            "choose a layer between image and embedding, and see that the encoder neither runs "
            "under torch.no_grad() nor detaches"
        )

    def require_finite(self, what: str, tensor: Tensor, batch: ImageBatch) -> None:
        finite = torch.isfinite(tensor.detach()).flatten(1).all(1)
        if not finite.all():
            index = int(batch.indices[~finite][0])
            raise LayerError(
                f"{what} of image '{self.name_of(index)}' (number {index}) holds NaN or infinite "
                "values; look for them in the image and the network's parameters"
            )


def _embed_all(network: _Network, source: ImageSource, progress: bool) -> tuple[Tensor, Tensor]:
    found = []
    with tqdm(
        total=source.length, desc="embedding images", unit="image", disable=not progress
    ) as bar:
        for number, batch in enumerate(source.batches()):
            batch = batch.to(network.device)
            # A first batch with gradients shows at once whether the layer has any.
            with torch.set_grad_enabled(number == 0):
                embeddings, executions = network.run(batch)
                if number == 0:
                    network.require_influence(embeddings, executions)
            found.append((batch.indices, embeddings.detach(), batch.labels))
            bar.update(len(embeddings))
    if not found:
        raise InputError("dataset is empty; expected (image, label) pairs")
    indices, embeddings, labels = (torch.cat(column) for column in zip(*found, strict=True))
    order = indices.argsort()
    return embeddings[order], labels[order]


def _weigh_all(
    network: _Network,
    source: ImageSource,
    forward: MetricForward,
    embeddings: Tensor,
    labels: Tensor,
    tuples: MinedTuples,
    progress: bool,
) -> tuple[Tensor, Tensor]:
    """Indices (K,) of the images that have a gradient, on the CPU, and their weights (K, C)."""
    anchors = tuples.active.any(1).nonzero()[:, 0].cpu()
    weights: Tensor | None = None
    with tqdm(total=len(anchors), desc="grad-weights", unit="image", disable=not progress) as bar:
        for batch in source.batches(only=anchors):
            batch = batch.to(network.device)
            found = _grad_weights(network, batch, forward, embeddings, labels, tuples).cpu()
            if weights is None:
                weights = found.new_zeros((len(anchors), found.shape[1]))
            weights[torch.searchsorted(anchors, batch.indices.cpu())] = found
            bar.update(len(found))
    assert weights is not None
    has_gradient = (weights != 0).any(1)
    if has_gradient.all():
        return anchors, weights
    return anchors[has_gradient], weights[has_gradient]


def _grad_weights(
    network: _Network,
    batch: ImageBatch,
    forward: MetricForward,
    embeddings: Tensor,
    labels: Tensor,
    tuples: MinedTuples,
) -> Tensor:
    with torch.enable_grad():
        own, executions = network.run(batch)
        _require_same_images(network, batch, own.detach(), embeddings, labels)
        dtype = torch.promote_types(own.dtype, torch.float32)
        losses = tuple_losses(
            forward,
            own.to(dtype),
            embeddings.to(dtype),
            labels,
            batch.indices,
            tuples.references,
        )
        active = tuples.active[batch.indices]
        mean = mean_of_nonzero(torch.where(active, losses, torch.zeros_like(losses)))
        gradients = layer_gradients(mean, executions, {"materialize_grads": True})[0]
    weights = [
        (gradient.flatten(2).mean(2, dtype=dtype) if gradient.dim() > 2 else gradient.to(dtype))
        for gradient in gradients
    ]
    joined = torch.cat(weights, dim=1)
    network.require_finite("the grad-weights", joined, batch)
    return joined


def _require_same_images(
    network: _Network, batch: ImageBatch, own: Tensor, embeddings: Tensor, labels: Tensor
) -> None:
    before = embeddings[batch.indices]
    # Far above what another batch composition or reduced precision changes.
    tolerance = 0.05 if own.dtype in (torch.float16, torch.bfloat16) else 0.01
    changed = (own - before).norm(dim=1) > tolerance * before.norm(dim=1)
    changed |= labels[batch.indices] != batch.labels
    if changed.any():
        index = int(batch.indices[changed][0])
        raise InputError(
            f"image '{network.name_of(index)}' (number {index}) was another one in the second "
            "pass; the data set must give the same images twice: switch off shuffling and random "
            "augmentation, and layers that are random in evaluation mode"
        )


def _check_skipped(num_kept: int, num_images: int, forward: MetricForward) -> None:
    settings = ", ".join(f"{name} {value}" for name, value in _loss_settings(forward).items())
    advice = "give forward a larger margin, mine the hardest tuples, or mine more of them"
    if num_kept == 0:
        raise InputError(
            f"none of the {num_images} images has a tuple with a loss, so there is no gradient to "
            f"keep ({settings}): the network already keeps all of them apart; {advice}"
        )
    if num_images - num_kept > _MANY_SKIPPED * num_images:
        warnings.warn(
            f"{num_images - num_kept} of {num_images} images carry no gradient (as a rule because "
            f"none of their tuples has a loss) and get no entry ({settings}); for more {advice}",
            stacklevel=3,
        )


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    modes = [(each, each.training) for each in module.modules()]
    try:
        for each, _ in modes:
            # Not eval(): some modules do more in it than they would undo.
            each.training = False
        yield
    finally:
        for each, training in modes:
            each.training = training


def _loss_settings(forward: MetricForward) -> dict[str, str]:
    settings = {"forward": type(forward).__name__, "distance": forward.distance}
    for name in ("loss", "margin", "second_margin"):
        if hasattr(forward, name):
            settings[name] = str(getattr(forward, name))
    return settings


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__name__)
