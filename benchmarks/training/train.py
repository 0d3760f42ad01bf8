"""Training of an embedding network on labelled images with a triplet loss."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from tqdm import tqdm

from benchmarks.core.files import require_writable_folder, write_atomically
from benchmarks.core.seeding import seeded
from benchmarks.core.settings import (
    ClassNumbers,
    CommonSettings,
    DeviceSettings,
    as_json,
    differences,
    finite_number,
    positive_int,
    setting,
    whole_number,
)
from benchmarks.datasets.choice import DataSettings, open_data, refuse_split_conflict, split_data
from benchmarks.datasets.preprocess import to_tensor
from benchmarks.datasets.records import ImageRecord, ImageSet, UnreadableImageError, load_rgb
from benchmarks.networks.build import (
    DEFAULT_NETWORK,
    EMBEDDING_DIM,
    NETWORK_HELP,
    embedding_network,
    is_factory,
    packaged_state,
)
from benchmarks.networks.checkpoints import CheckpointError, read_safetensors
from benchmarks.training.retrieval import embed, readable_batch, recall_at_1
from benchmarks.training.triplets import MINING, ClassBalancedBatches, batch_triplet_loss
from captum_embed.command_line.networks import chosen_device
from captum_embed.errors import InputError


@dataclass(frozen=True, kw_only=True)
class TrainSettings(DataSettings, DeviceSettings, CommonSettings):
    output: Path = setting("checkpoint to write (.safetensors)", parse=Path, changes_results=False)
    network: str = setting(NETWORK_HELP, default=DEFAULT_NETWORK)
    initial: Path | None = setting(
        "checkpoint to start from, instead of the ImageNet weights", default=None, parse=Path
    )
    embedding_dim: int = setting(
        "width of a new head; --initial and a factory bring their own",
        default=EMBEDDING_DIM,
        parse=positive_int,
    )
    steps: int = setting("batches to train on", default=1000, parse=positive_int)
    classes_per_batch: int = setting("P of P x K batches", default=8, parse=positive_int)
    images_per_class: int = setting("K of P x K batches", default=4, parse=positive_int)
    mining: str = setting("triplets of a batch", default="semihard", choices=MINING)
    margin: float = setting("in squared Euclidean distance", default=0.2, parse=finite_number)
    learning_rate: float = setting("of AdamW, cosine to zero", default=1e-4, parse=finite_number)
    head_learning_rate: float = setting(
        "the same, of the head; of a factory's network: its module `head`, if there is one",
        default=1e-3,
        parse=finite_number,
    )
    weight_decay: float = setting("of AdamW", default=1e-4, parse=finite_number)
    smallest_crop: float = setting(
        "least area of the random crop", default=0.3, parse=finite_number
    )
    save_every: int = setting(
        "steps between saved training states",
        default=100,
        parse=positive_int,
        changes_results=False,
    )
    workers: int = setting(
        "processes that load images", default=0, parse=whole_number, changes_results=False
    )


class AugmentedImages(Dataset[tuple[Tensor | None, int]]):
    """Random resized crops of 224 and flips; an item is asked for as (index, seed)."""

    def __init__(self, records: Sequence[ImageRecord], smallest_crop: float) -> None:
        self.records = records
        self.augment = transforms.Compose(
            [
                transforms.RandomResizedCrop(224, scale=(smallest_crop, 1.0)),
                transforms.RandomHorizontalFlip(),
            ]
        )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor | None, int]:
        index, seed = item
        record = self.records[index]
        try:
            image = load_rgb(record)
        except UnreadableImageError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
            return None, record.label
        with seeded(seed, torch.device("cpu")):
            return to_tensor(self.augment(image)), record.label


class Trainer:
    """A network, its optimizer and the step they are at, saved without pickle."""

    def __init__(self, network: nn.Module, settings: TrainSettings) -> None:
        self.settings = settings
        self.device = chosen_device(settings.device)
        self.network = network.requires_grad_(True).to(self.device)
        self.step = 0
        self.losses: list[float] = []
        trunk = [p for name, p in network.named_parameters() if not name.startswith("head.")]
        head = [p for name, p in network.named_parameters() if name.startswith("head.")]
        groups: list[dict[str, Any]] = [
            {"params": trunk, "lr": settings.learning_rate},
            {"params": head, "lr": settings.head_learning_rate},
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
        self.full_rates = [group["lr"] for group in groups]

    def train_step(self, images: Tensor, labels: Tensor) -> float:
        """One update; batch normalisation keeps its ImageNet statistics, as batches are small."""
        self.network.eval()
        remaining = 0.5 * (1 + math.cos(math.pi * self.step / self.settings.steps))
        for group, rate in zip(self.optimizer.param_groups, self.full_rates, strict=True):
            group["lr"] = rate * remaining
        embeddings = self.network(images.to(self.device))
        if self.step == 0:
            _warn_of_lengths(embeddings, self.settings)
        loss = batch_triplet_loss(
            embeddings, labels.to(self.device), self.settings.margin, self.settings.mining
        )
        if not torch.isfinite(loss):
            raise InputError(
                f"the loss is {loss.item()} at step {self.step}; lower --learning-rate "
                f"(now {self.settings.learning_rate}) and --head-learning-rate"
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def save(self, path: Path) -> None:
        # A file cannot hold tensors that share their memory.
        state = {k: v.contiguous().clone() for k, v in self.network.state_dict().items()}
        tensors = {f"network.{k}": v for k, v in state.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v.contiguous() for k, v in state.items()}
        metadata = {
            "training_state": "1",
            "step": str(self.step),
            "losses": json.dumps(self.losses),
            "settings": json.dumps(as_json(self.settings, only_changing_results=True)),
        }
        write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))

    def load(self, path: Path) -> None:
        """Go on from a saved state.

        Raises:
            CheckpointError: not a training state, or one with other settings.
        """
        tensors, metadata = read_safetensors(path)
        if metadata.get("training_state") != "1":
            raise CheckpointError(f"{path}: not a training state of this program")
        ours = as_json(self.settings, only_changing_results=True)
        different = differences(ours, json.loads(metadata["settings"]))
        if different:
            raise CheckpointError(
                f"{path}: an unfinished training with other settings ({'; '.join(different)}); "
                "use those, delete the file, or choose another --output"
            )
        self.network.load_state_dict(_below(tensors, "network."))
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _below(tensors, "optimizer.").items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.step = int(metadata["step"])
        self.losses = json.loads(metadata["losses"])


def _warn_of_lengths(embeddings: Tensor, settings: TrainSettings) -> None:
    """A margin says little where embeddings are of any length; only a factory's may be."""
    length = float(embeddings.detach().norm(dim=1).mean())
    if abs(length - 1) > 1e-3:
        warnings.warn(
            f"the embeddings of --network {settings.network} have length {length:.3g} on average, "
            f"and --margin {settings.margin:g} is a squared Euclidean distance; let the network "
            "end with torch.nn.functional.normalize(embeddings, dim=1), or choose the margin",
            stacklevel=2,
        )


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def starting_network(settings: TrainSettings) -> nn.Module:
    """The network to train, from a checkpoint or from ImageNet weights and a new head."""
    brings_head = settings.initial is not None or is_factory(settings.network)
    return embedding_network(
        settings.network,
        settings.initial,
        None if brings_head else settings.embedding_dim,
        seed=settings.seed,
    )


def checked_data(settings: TrainSettings) -> tuple[ImageSet, ImageSet | None]:
    """The training and test images, after everything that can be refused early."""
    if settings.output.suffix != ".safetensors":
        raise InputError(f"--output {settings.output}: the file name must end in .safetensors")
    if settings.output.exists():
        raise InputError(f"--output {settings.output} exists; delete it or choose another name")
    if not 0 < settings.smallest_crop <= 1:
        raise InputError(f"--smallest-crop is {settings.smallest_crop}; expected 0 < area <= 1")
    require_writable_folder(settings.output.parent, "--output")
    refuse_split_conflict(settings.split, settings.train_classes, settings.test_classes)
    everything = open_data(
        settings.data,
        settings.output.with_suffix(".data"),
        settings.seed,
        download=settings.download,
        progress=settings.progress,
    )
    if settings.split != "classes":
        choice = split_data(everything, settings.split)
        return choice.train, choice.test
    if settings.train_classes is None:
        raise InputError("say which classes to train on: --train-classes 1-25, or use --split")
    numbers = everything.numbers_of(settings.train_classes)
    train = everything.select(numbers)
    if settings.test_classes is None:
        return train, None
    tested = everything.numbers_of(settings.test_classes)
    shared = sorted(set(numbers) & set(tested))
    if shared:
        raise InputError(f"--test-classes: class {shared[0]} is also trained on")
    return train, everything.select(tested)


def _recall(network: nn.Module, images: ImageSet | None, settings: TrainSettings) -> float | None:
    if images is None:
        return None
    embedded = embed(network, images.records, workers=settings.workers, progress=settings.progress)
    return recall_at_1(*embedded)


def train(settings: TrainSettings) -> Path:
    """Train, or go on from an interrupted training with the same settings and output.

    Args:
        settings (TrainSettings): see each field's help.

    Returns:
        Path: the checkpoint, readable by `benchmarks.networks.build.load_checkpoint`.

    Raises:
        InputError: settings that cannot work, before training starts.
        CheckpointError: an unfinished training with other settings.
    """
    images, test_images = checked_data(settings)
    trainer = Trainer(starting_network(settings), settings)
    unfinished = settings.output.with_suffix(".training.safetensors")
    if unfinished.exists():
        trainer.load(unfinished)
        print(f"going on from step {trainer.step} of {settings.steps} ({unfinished})")
    batches = ClassBalancedBatches(
        [record.label for record in images.records],
        range(trainer.step, settings.steps),
        settings.classes_per_batch,
        settings.images_per_class,
        settings.seed,
    )
    first_recall = _recall(trainer.network, test_images, settings) if trainer.step == 0 else None
    if first_recall is not None:
        print(f"recall@1 before training, {len(test_images or ())} images: {first_recall:.1%}")
    _run(trainer, batches, images, unfinished)
    recall = _recall(trainer.network, test_images, settings)
    state = packaged_state(trainer.network.cpu())
    _require_finite(state, settings)
    metadata = _metadata(settings, images, test_images, recall)
    if "head.weight" in state and not is_factory(settings.network):
        metadata |= {"normalize": "l2", "embedding_dim": str(len(state["head.weight"]))}
    write_atomically(settings.output, lambda path: save_file(state, path, metadata))
    unfinished.unlink(missing_ok=True)
    if recall is not None:
        print(f"recall@1 after training, {len(test_images or ())} images: {recall:.1%}")
    print(f"written: {settings.output}")
    return settings.output


def _require_finite(state: Mapping[str, Tensor], settings: TrainSettings) -> None:
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise InputError(
                f"training ended with NaN or infinite numbers in {name}, and nothing is written; "
                f"lower --learning-rate (now {settings.learning_rate:g}) and --head-learning-rate"
            )


def _run(
    trainer: Trainer, batches: ClassBalancedBatches, images: ImageSet, unfinished: Path
) -> None:
    settings = trainer.settings
    loader: DataLoader[Any] = DataLoader(
        AugmentedImages(images.records, settings.smallest_crop),
        batch_sampler=batches,
        num_workers=settings.workers,
        collate_fn=readable_batch,
    )
    bar = tqdm(
        loader, "training", settings.steps, initial=trainer.step, disable=not settings.progress
    )
    for batch_images, labels in bar:
        if len(labels.unique()) > 1:
            trainer.losses.append(trainer.train_step(batch_images, labels))
            bar.set_postfix(loss=f"{trainer.losses[-1]:.3f}")
        trainer.step += 1
        if trainer.step % settings.save_every == 0:
            trainer.save(unfinished)


def _metadata(
    settings: TrainSettings, images: ImageSet, tested: ImageSet | None, recall: float | None
) -> dict[str, str]:
    network = settings.network.partition("@")[0]
    metadata = {
        "architecture": "efficientnet-lite0" if network == DEFAULT_NETWORK else network,
        "input": "RGB/255, mean .485 .456 .406, std .229 .224 .225",
        "loss": f"triplet, squared euclidean, margin {settings.margin:g}",
        "train_classes": _named(images),
        "settings": json.dumps(as_json(settings, only_changing_results=True)),
    }
    if recall is not None and tested is not None:
        metadata["recall_at_1"] = f"{recall:.4f} on {len(tested)} images of {_named(tested)}"
    return metadata


def _named(images: ImageSet) -> str:
    return f"{images.name} {ClassNumbers(sorted(images.class_sizes))}"
