"""The work of a build, in the order in which its processes do and gather it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_embed.encoder_forward import MetricForward
from captum_embed.encoders import encoder_fingerprint
from captum_embed.errors import InputError
from captum_embed.weight_bank.bank import WeightBank
from captum_embed.weight_bank.build_job import BuildJob, BuildRows
from captum_embed.weight_bank.encoder_runs import EncoderRuns
from captum_embed.weight_bank.files import library_versions
from captum_embed.weight_bank.images import ImageSource
from captum_embed.weight_bank.mining import mixed_batches, require_minable
from captum_embed.weight_bank.objectives import objective, require_kept, require_spread
from captum_embed.weight_bank.passes import (
    KeptRuns,
    embed_all,
    layer_column,
    weigh_all,
    weigh_batches,
)


@dataclass(frozen=True)
class Rows:
    """What a bank of each layer is made of.

    Args:
        embeddings: Of all images, (B, D).
        labels: Of all images, (B,).
        weights: For each layer (B, C), on the CPU; those of the own images are there.
        own: Images whose entries this process makes.
    """

    embeddings: Tensor
    labels: Tensor
    weights: list[Tensor]
    own: range


@dataclass(frozen=True)
class BuildWork:
    """What all parts of a build work with.

    Args:
        runs: The encoder and its layers.
        source: The data set.
        job: The processes, and the files for a later run.
        names: Of the images, or None.
        progress: Show bars.
    """

    runs: EncoderRuns
    source: ImageSource
    job: BuildJob
    names: Sequence[str] | None
    progress: bool

    def settings(self, labels: Tensor | None, facts: Mapping[str, str]) -> dict[str, str]:
        """What tells this build from another, so that no other is taken for its beginning."""
        if self.job.folder is None and self.job.processes.count == 1:
            return {}
        if self.source.length is None:
            raise InputError(
                "the data set does not tell its length, which is needed to share its images among "
                "processes and to go on after an interruption; give it a __len__, or leave out path"
            )
        listed = [self.names, None if labels is None else labels.tolist()]
        return {
            **facts,
            "layers": str(self.runs.layer_names),
            "tokens": str((self.runs.prefix_tokens, self.runs.grid)),
            "images": f"{self.source.length} in {self.source.num_blocks} blocks",
            "names": hashlib.sha256(json.dumps(listed).encode()).hexdigest(),
            "encoder_fingerprint": encoder_fingerprint(self.runs.encoder),
        }

    def of_tuples(self, forward: MetricForward, budget: int, **options: Any) -> Rows:
        """Embeds all images, chooses their tuples, and takes the gradients of the own ones."""
        job, source, processes = self.job, self.source, self.job.processes
        kept, rows, own = KeptRuns(budget), None, None
        if source.length is not None:
            own = source.block_range(processes.share(source.num_blocks))
            rows = job.rows(source.length, "embeddings", own)
        with processes.together("embedding the images"):
            rows = embed_all(self.runs, source, kept, rows, own, self.progress)
        own = range(len(rows.done)) if own is None else own
        embeddings, labels = (
            processes.rows(_rows_of(rows, name, own)).to(self.runs.device)
            for name in ("embeddings", "labels")
        )
        self._require_names(labels)
        require_minable(forward, labels)
        require_spread(embeddings)
        with processes.together("choosing tuples"):
            anchors = torch.arange(own.start, own.stop)
            explained, wanted = objective(
                forward, embeddings, labels, anchors=anchors, progress=self.progress, **options
            )
        if not processes.total(int(wanted.any())):
            require_kept(0, len(labels), forward)
        rows = job.rows(len(labels), "weights", own)
        with processes.together("taking gradients"):
            weigh_all(
                self.runs, source, kept, explained, wanted, embeddings, labels, rows, self.progress
            )
        weights = [self._column(rows, position) for position in range(len(self.runs.layer_names))]
        if job.folder is None and processes.count > 1:
            weights = [processes.rows(each[own.start : own.stop]) for each in weights]
            own = range(len(labels))
        return Rows(embeddings, labels, weights, own)

    def of_batches(self, forward: Any, batch_size: int, seed: int) -> Rows:
        """Runs a forward function that makes its own tuples, on batches of mixed classes."""
        processes, labels = self.job.processes, self.source.labels()
        self._require_names(labels)
        groups = mixed_batches(labels, batch_size, torch.Generator().manual_seed(seed))
        own = [groups[number] for number in processes.share(len(groups))]
        rows = self.job.rows(len(labels), "batches")
        with processes.together("taking gradients"):
            weigh_batches(self.runs, self.source, forward, own, rows, self.progress)
        names = ["embeddings", *map(layer_column, range(len(self.runs.layer_names)))]
        columns = [rows.columns.get(name) for name in names]
        if processes.count > 1:
            images = torch.cat(own) if own else torch.empty(0, dtype=torch.int64)
            # Groups are shared in order, so that the rows come in the order of the groups.
            order = torch.cat(groups).argsort()
            columns = [
                processes.rows(None if each is None or not own else each[images])[order]
                for each in columns
            ]
        embeddings, *weights = (each for each in columns if each is not None)
        require_spread(embeddings)
        several = self.job.folder is not None
        all_of_them = range(len(labels))
        own_images = processes.share(len(labels)) if several else all_of_them
        return Rows(embeddings, labels, weights, own_images)

    def network_facts(self) -> dict[str, str]:
        """What the bank says of the network."""
        if self.runs.layout == "tokens" and self.runs.prefix_tokens is None:
            # An earlier run did all of the work, or other processes.
            with torch.no_grad():
                self.runs.embed(next(iter(self.source.batches(torch.tensor([0])))))
        tokens = self.runs.prefix_tokens
        return {
            **({"prefix_tokens": str(tokens)} if tokens else {}),
            "encoder_fingerprint": encoder_fingerprint(self.runs.encoder),
        }

    def banks(
        self, forward: Any, rows: Rows, facts: Mapping[str, str], keep_all: bool
    ) -> list[WeightBank]:
        """The bank of each layer."""
        parts = []
        for name, weights in zip(self.runs.layer_names, rows.weights, strict=True):
            part = self._bank(forward, rows, weights, {"layer": name, **facts}, keep_all)
            parts.append(part)
        if self.job.folder is not None:
            return self.job.saved(parts)
        return [part for part in parts if part is not None]

    def _bank(
        self,
        forward: Any,
        rows: Rows,
        weights: Tensor,
        facts: dict[str, str],
        keep_all: bool,
    ) -> WeightBank | None:
        span, count = slice(rows.own.start, rows.own.stop), len(rows.labels)
        everything = len(rows.own) == count
        kept = (weights[span] != 0).any(1)
        number = int(kept.sum())
        # All processes ask, also one that has all images: with few batches the others have none.
        if self.job.folder is not None and self.job.processes.count > 1:
            number = self.job.processes.total(number)
        if not number or not keep_all:
            require_kept(number, count, forward)
        if keep_all:
            kept.fill_(True)
            number = count
        indices = kept.nonzero()[:, 0] + rows.own.start
        if not len(indices):
            return None
        everything &= len(indices) == count
        return WeightBank(
            (rows.embeddings if everything else rows.embeddings.cpu()[indices]).cpu(),
            weights if everything else weights[indices],
            labels=rows.labels.cpu()[indices],
            keys=None if self.names is None else [self.names[i] for i in indices.tolist()],
            metadata={
                **facts,
                "num_images": str(count),
                "num_skipped": str(count - number),
                **{f"{name}_version": value for name, value in library_versions().items()},
            },
        )

    def _column(self, rows: BuildRows, position: int) -> Tensor:
        """A layer's weights; zeros where no image of this process is wanted."""
        own = rows.columns.get(layer_column(position))
        kind = None if own is None else [own.shape[1], str(own.dtype)]
        kinds = map(json.loads, self.job.processes.exchange(json.dumps(kind)))
        width, dtype = next(each for each in kinds if each is not None)
        if own is not None:
            return own
        return torch.zeros(
            (len(rows.done), width), dtype=getattr(torch, dtype.removeprefix("torch."))
        )

    def _require_names(self, labels: Tensor) -> None:
        if self.names is not None and len(self.names) != len(labels):
            raise InputError(f"keys are {len(self.names)} names for {len(labels)} images")


def _rows_of(rows: BuildRows, name: str, own: range) -> Tensor | None:
    column = rows.columns.get(name)
    return None if column is None or not own else column[own.start : own.stop]
