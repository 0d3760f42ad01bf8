"""The passes over a data set from which a bank's embeddings and grad-weights come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from captum_embed.errors import InputError
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
    """Counts the bytes that graphs keep alive: those of freed ones are counted off again."""

    def __init__(self) -> None:
        self.alive = 0

    def pack(self, tensor: Tensor) -> Any:
        return tensor if isinstance(tensor, nn.Parameter) else _Saved(tensor, self)

    @staticmethod
    def unpack(saved: Any) -> Tensor:
        return saved if isinstance(saved, Tensor) else saved.tensor


class _Saved:
    def __init__(self, tensor: Tensor, total: _SavedBytes) -> None:
        self.tensor, self._total = tensor, total
        self._size = tensor.numel() * tensor.element_size()
        total.alive += self._size

    def __del__(self) -> None:
        self._total.alive -= self._size


def embed_all(
    runs: EncoderRuns, source: ImageSource, kept: KeptRuns, progress: bool
) -> tuple[Tensor, Tensor]:
    """Embeddings (B, D) and labels (B,) of a data set, in its order."""
    parts = []
    with (
        torch.enable_grad(),
        tqdm(
            total=source.length, desc="embedding images", unit="image", disable=not progress
        ) as bar,
    ):
        for batch in source.batches():
            run = kept.run(runs, batch)
            parts.append((run.batch.indices, run.embeddings.detach(), run.batch.labels))
            bar.update(len(run.embeddings))
    if not parts:
        raise InputError("dataset is empty; expected (image, label) pairs")
    indices, embeddings, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    order = indices.argsort()
    return embeddings[order], labels[order]


def weigh_all(
    runs: EncoderRuns,
    source: ImageSource,
    kept: KeptRuns,
    objective: Objective,
    wanted: Tensor,
    embeddings: Tensor,
    labels: Tensor,
    progress: bool,
) -> list[Tensor]:
    """For each layer the weights (B, C), on the CPU; zero of images that are not wanted."""
    table = _WeightTable(len(labels))
    left = wanted.clone()
    with tqdm(total=len(labels), desc="grad-weights", unit="image", disable=not progress) as bar:
        for run in _runs(runs, source, kept, left, embeddings, labels):
            with torch.enable_grad():
                wide = torch.promote_types(run.embeddings.dtype, torch.float32)
                values = objective(run.embeddings.to(wide), run.batch.indices)
                table.put(run, runs.weights(run, values))
            bar.update(len(run.embeddings))
    return table.tables


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


class _WeightTable:
    """Weights of all images, by layer, filled batch by batch."""

    def __init__(self, count: int) -> None:
        self.tables: list[Tensor] = []
        self._count = count

    def put(self, run: EncoderRun, weights: list[Tensor]) -> None:
        if not self.tables:
            self.tables = [
                torch.zeros((self._count, each.shape[1]), dtype=each.dtype) for each in weights
            ]
        for table, each in zip(self.tables, weights, strict=True):
            table[run.batch.indices.cpu()] = each.cpu()


def weigh_batches(
    runs: EncoderRuns,
    source: ImageSource,
    forward: Callable[..., Any],
    groups: Sequence[Tensor],
    progress: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Embeddings (B, D) and weights of one pass, in which each batch is its own tuples."""
    total = sum(len(group) for group in groups)
    table = _WeightTable(total)
    embeddings: Tensor | None = None
    with tqdm(total=total, desc="grad-weights", unit="image", disable=not progress) as bar:
        for group, batch in zip(groups, source.batches_of(groups), strict=False):
            if len(batch.indices) != len(group):
                raise InputError(
                    f"image '{runs.name_of(int(batch.indices[0]))}' has shape "
                    f"{tuple(batch.images.shape[1:])}, unlike others of its batch; the loss of a "
                    "batch needs images of one size: resize or crop them in the data set"
                )
            with torch.enable_grad():
                run = runs.call(forward, batch)
                if embeddings is None:
                    runs.require_influence(run)
                table.put(run, runs.weights(run, run.value))
            if embeddings is None:
                embeddings = run.embeddings.detach().new_zeros((total, run.embeddings.shape[1]))
            embeddings[run.batch.indices] = run.embeddings.detach()
            bar.update(len(group))
    assert embeddings is not None
    return embeddings, table.tables


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
