"""The passes over a data set from which a bank's embeddings and grad-weights come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from tqdm import tqdm

from captum_embed.errors import InputError
from captum_embed.weight_bank.build_job import BuildRows
from captum_embed.weight_bank.encoder_runs import EncoderRun, EncoderRuns
from captum_embed.weight_bank.images import ImageBatch, ImageSource

# Own embeddings (A, D) of images (A,) to what is explained of each, (A,).
Objective = Callable[[Tensor, Tensor], Tensor]


class KeptRuns:
    """Runs whose graphs are kept for a second look, while they fit a budget of bytes.

    What a graph keeps is counted on the first run, and taken to grow with the size of the images.

    Args:
        budget: Bytes of activations, at and above the layers.
    """

    def __init__(self, budget: int) -> None:
        self.runs: list[EncoderRun] = []
        self._left = float(budget)
        self._per_number: float | None = None

    def run(self, runs: EncoderRuns, batch: ImageBatch) -> EncoderRun:
        """Embeds a batch: with a graph, kept, while there is room; otherwise without.

        The first run has a graph in any case; it shows whether the layers matter.
        """
        if self._per_number is None:
            saved = _SavedBytes()
            with torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack):
                run = runs.embed(batch)
            runs.require_influence(run)
            shards = (shard for execution in run.executions for shard in execution.shards)
            tensors = [run.embeddings, *(t for shard in shards for t in shard)]
            size = float(saved.alive + sum(t.numel() * t.element_size() for t in tensors))
            self._per_number = size / batch.images.numel()
            fits = size <= self._left
        else:
            size = self._per_number * batch.images.numel()
            fits = size <= self._left
            with torch.set_grad_enabled(fits):
                run = runs.embed(batch)
        # Once a batch did not fit none does, so that what is kept are the first images.
        self._left = self._left - size if fits else 0
        if fits:
            indices_only = replace(run.batch, images=run.batch.images.new_empty(0))
            self.runs.append(replace(run, batch=indices_only))
        return run


class _SavedBytes:
    """Counts the bytes that graphs keep alive: those of freed ones do not count."""

    def __init__(self) -> None:
        self._held: WeakSet[_Saved] = WeakSet()

    @property
    def alive(self) -> int:
        return sum(each.tensor.numel() * each.tensor.element_size() for each in self._held)

    def pack(self, tensor: Tensor) -> Any:
        if isinstance(tensor, nn.Parameter):
            return tensor
        self._held.add(saved := _Saved(tensor))
        return saved

    @staticmethod
    def unpack(saved: Any) -> Tensor:
        return saved if isinstance(saved, Tensor) else saved.tensor


class _Saved:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def embed_all(
    runs: EncoderRuns,
    source: ImageSource,
    kept: KeptRuns,
    rows: BuildRows | None,
    own: range | None,
    progress: bool,
) -> BuildRows:
    """Embeddings (B, D) and labels (B,) of a data set, in its order.

    Args:
        runs: The encoder.
        source: The data set.
        kept: Takes the runs that are worth keeping.
        rows: Filled; None: new ones, of a data set whose length is not known.
        own: Images that this process embeds; None: all.
        progress: Show a bar.
    """
    only = None
    if own is not None and rows is not None:
        images = torch.arange(own.start, own.stop)
        only = images[~source.whole_blocks(rows.done)[own.start : own.stop]]
    parts = []
    total = source.length if only is None else len(only)
    with (
        _writing(rows),
        torch.enable_grad(),
        tqdm(total=total, desc="embedding images", unit="image", disable=not progress) as bar,
    ):
        for batch in source.batches(only):
            run = kept.run(runs, batch)
            columns = {"embeddings": run.embeddings.detach(), "labels": run.batch.labels}
            if rows is None:
                parts.append((run.batch.indices, columns))
            else:
                rows.put(run.batch.indices, **columns)
            bar.update(len(run.embeddings))
    if rows is None:
        if not parts:
            raise InputError("dataset is empty; expected (image, label) pairs")
        rows = BuildRows(sum(len(indices) for indices, _ in parts))
        for indices, columns in parts:
            rows.put(indices, **columns)
    return rows


def weigh_all(
    runs: EncoderRuns,
    source: ImageSource,
    kept: KeptRuns,
    objective: Objective,
    wanted: Tensor,
    embeddings: Tensor,
    labels: Tensor,
    rows: BuildRows,
    progress: bool,
) -> None:
    """Fills in the weights (B, C) of each layer, of the images that are wanted."""
    left = wanted & ~source.whole_blocks(rows.done | ~wanted)
    total = int(left.sum())
    with (
        _writing(rows),
        tqdm(total=total, desc="grad-weights", unit="image", disable=not progress) as bar,
    ):
        for run in _runs(runs, source, kept, left, embeddings, labels):
            with torch.enable_grad():
                wide = torch.promote_types(run.embeddings.dtype, torch.float32)
                values = objective(run.embeddings.to(wide), run.batch.indices)
                rows.put(run.batch.indices, **_by_layer(runs.weights(run, values)))
            bar.update(len(run.embeddings))


def layer_column(position: int) -> str:
    """What the weights of the layer at this position are called in :class:`BuildRows`."""
    return f"layer{position}"


def _by_layer(weights: list[Tensor]) -> dict[str, Tensor]:
    return {layer_column(position): each for position, each in enumerate(weights)}


@contextmanager
def _writing(rows: BuildRows | None) -> Iterator[None]:
    """What there is is written, also when the work is interrupted."""
    try:
        yield
    finally:
        if rows is not None:
            rows.write()


def _runs(
    runs: EncoderRuns,
    source: ImageSource,
    kept: KeptRuns,
    left: Tensor,
    embeddings: Tensor,
    labels: Tensor,
) -> Iterator[EncoderRun]:
    """Runs with gradients: those kept in the first pass, then a second one over what is left."""
    while kept.runs:
        run = kept.runs.pop()
        left[run.batch.indices.cpu()] = False
        yield run
        del run
    if not left.any():
        return
    for batch in source.batches(only=left.nonzero()[:, 0]):
        with torch.enable_grad():
            run = runs.embed(batch)
        _require_same_images(runs, run, embeddings, labels)
        yield run
        del run


def weigh_batches(
    runs: EncoderRuns,
    source: ImageSource,
    forward: Callable[..., Any],
    groups: Sequence[Tensor],
    rows: BuildRows,
    progress: bool,
) -> None:
    """Fills in embeddings and weights in one pass, in which each batch is its own tuples."""
    groups = [group for group in groups if not rows.done[group].all()]
    total, first = sum(len(group) for group in groups), True
    with (
        _writing(rows),
        tqdm(total=total, desc="grad-weights", unit="image", disable=not progress) as bar,
    ):
        for group, batch in zip(groups, source.batches_of(groups), strict=False):
            if len(batch.indices) != len(group):
                raise InputError(
                    f"image '{runs.name_of(int(batch.indices[0]))}' has shape "
                    f"{tuple(batch.images.shape[1:])}, unlike others of its batch; the loss of a "
                    "batch needs images of one size: resize or crop them in the data set"
                )
            with torch.enable_grad():
                run = runs.call(forward, batch)
                if first:
                    runs.require_influence(run)
                    first = False
                weights = _by_layer(runs.weights(run, run.value))
            rows.put(run.batch.indices, embeddings=run.embeddings, **weights)
            bar.update(len(group))


def _require_same_images(
    runs: EncoderRuns, run: EncoderRun, embeddings: Tensor, labels: Tensor
) -> None:
    own, batch = run.embeddings.detach(), run.batch
    before = embeddings[batch.indices]
    # Far above what another batch composition or reduced precision changes.
    tolerance = 0.05 if own.dtype in (torch.float16, torch.bfloat16) else 0.01
    changed = (own - before).norm(dim=1) > tolerance * before.norm(dim=1)
    changed |= labels[batch.indices] != batch.labels
    if changed.any():
        index = int(batch.indices[changed][0])
        raise InputError(
            f"image '{runs.name_of(index)}' (number {index}) was another one in the second "
            "pass; the data set must give the same images twice: switch off shuffling and random "
            "augmentation, and layers that are random in evaluation mode"
        )
