"""Embeddings of an image set on the standard crop, and their recall@1."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from benchmarks.datasets.preprocess import resize_center_crop, to_tensor
from benchmarks.datasets.records import ImageRecord, UnreadableImageError, load_rgb
from captum_embed.errors import InputError


class CroppedImages(Dataset[tuple[Tensor | None, int]]):
    """Shorter side to 256, centre crop of 224; an unreadable image is a warning and None."""

    def __init__(self, records: Sequence[ImageRecord]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor | None, int]:
        record = self.records[index]
        try:
            return to_tensor(resize_center_crop(load_rgb(record))), record.label
        except UnreadableImageError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
            return None, record.label


def readable_batch(items: list[tuple[Tensor | None, int]]) -> tuple[Tensor, Tensor]:
    """Images (N, 3, H, W) and labels (N,) of the items that could be read; N may be 0."""
    read = [(image, label) for image, label in items if image is not None]
    images = torch.stack([image for image, _ in read]) if read else torch.empty(0, 3, 1, 1)
    return images, torch.tensor([label for _, label in read], dtype=torch.long)


@torch.no_grad()
def embed(
    network: nn.Module,
    records: Sequence[ImageRecord],
    *,
    batch_size: int = 32,
    workers: int = 0,
    progress: bool = True,
) -> tuple[Tensor, Tensor]:
    """Embeddings (N, D) and labels (N,) of the readable images, on the CPU.

    The network keeps its mode: it is run in evaluation mode and handed back as it was.
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    loader = DataLoader(
        CroppedImages(records),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=readable_batch,
    )
    was_training = network.training
    network.eval()
    embeddings, labels = [], []
    try:
        for images, batch_labels in tqdm(loader, "embedding", disable=not progress, leave=False):
            if len(images):
                embeddings.append(network(images.to(device)).cpu())
                labels.append(batch_labels)
    finally:
        network.train(was_training)
    if not embeddings:
        raise InputError(f"none of the {len(records)} images could be read")
    return torch.cat(embeddings), torch.cat(labels)


def recall_at_1(embeddings: Tensor, labels: Tensor) -> float:
    """Share of the images whose nearest other image is of their class.

    Args:
        embeddings (Tensor): (N, D); the distance is Euclidean.
        labels (Tensor): (N,) integers.

    Example:
        >>> points = torch.tensor([[0.0], [0.1], [5.0], [5.2]])
        >>> recall_at_1(points, torch.tensor([1, 1, 2, 1]))
        0.5
    """
    if len(embeddings) < 2:
        raise InputError(f"recall@1 needs two images or more, got {len(embeddings)}")
    right = 0
    for start in range(0, len(embeddings), 1024):
        distances = torch.cdist(embeddings[start : start + 1024], embeddings)
        rows = torch.arange(len(distances))
        distances[rows, start + rows] = torch.inf
        right += int((labels[distances.argmin(1)] == labels[start : start + 1024]).sum())
    return right / len(embeddings)
