import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import captum_embed.weight_bank.files as bank_files
from captum_embed import WeightBank, build_weight_bank
from captum_embed.metric_forwards import MetricForward

Make = Callable[..., Any]


class TinyEncoder(nn.Module):
    """Two convolutions, global average pooling, a linear head, the unit sphere."""

    def __init__(self, dim: int = 5, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.below = nn.Conv2d(3, 4, 3, padding=1)
        self.layer = nn.Conv2d(4, 6, 3, padding=1)
        self.head = nn.Linear(6, dim, bias=False)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 2

    def forward(self, images: Tensor) -> Tensor:
        pooled = self.layer(self.below(images).tanh()).mean((2, 3))
        return F.normalize(self.head(pooled))


@pytest.fixture
def make_encoder() -> Callable[..., TinyEncoder]:
    return TinyEncoder


@pytest.fixture
def make_dataset() -> Callable[..., list[tuple[Tensor, int]]]:
    def make(
        per_class: int = 4, classes: int = 3, sizes: tuple[tuple[int, int], ...] = ((8, 8),)
    ) -> list[tuple[Tensor, int]]:
        generator = torch.Generator().manual_seed(7)
        return [
            (torch.rand(3, *sizes[i % len(sizes)], generator=generator), 10 + i % classes)
            for i in range(per_class * classes)
        ]

    return make


def assert_equal(one: WeightBank, other: WeightBank) -> None:
    assert torch.equal(one.embeddings, other.embeddings)
    assert torch.equal(one.weights, other.weights)
    assert one.embeddings.dtype == other.embeddings.dtype
    assert one.weights.dtype == other.weights.dtype
    assert (one.labels is None) == (other.labels is None)
    if one.labels is not None and other.labels is not None:
        assert torch.equal(one.labels, other.labels)
    assert one.keys == other.keys
    assert dict(one.metadata) == dict(other.metadata)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Edits a manifest and makes its checksum right, as a forger would."""
    content = json.loads((path / "manifest.json").read_text())
    del content["checksum"]
    change(content)
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["checksum"] = hashlib.sha256(canonical.encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(content))


def in_another_process(task: Callable[[], Any]) -> int:
    """Process id; it exits with 0 if the task ends without an exception."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            task()
            os._exit(0)
        os._exit(1)
    return child


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def dying_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, the process dies in place of the step-th call that changes the disk."""
    calls = itertools.count(1)

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: os._exit(9) if next(calls) == step else real(*args, **kwargs)

    for owner, name in (
        *((os, name) for name in ("replace", "link", "unlink", "mkdir", "rmdir", "fsync")),
        (bank_files, "save_file"),
    ):
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))


def shard(path: Path, number: int = 1) -> Path:
    return path / json.loads((path / "manifest.json").read_text())["shards"][number]["file"]


def truncate(path: Path) -> None:
    content = shard(path).read_bytes()
    shard(path).write_bytes(content[: len(content) // 2])


def flip_a_bit(path: Path) -> None:
    content = bytearray(shard(path).read_bytes())
    content[-3] ^= 1
    shard(path).write_bytes(content)


FACTS = {
    "layer": "features",
    "encoder_fingerprint": "ab" * 32,
    "explains": "match",
    "layout": "channels_first",
}


def make_bank(count: int = 10, seed: int = 0, **arguments: Any) -> WeightBank:
    generator = torch.Generator().manual_seed(seed)
    defaults = {
        "labels": [i % 3 for i in range(count)],
        "keys": [f"vogel/größe {i}.jpg" for i in range(count)],
        "metadata": {**FACTS, "seed": "0"},
    }
    return WeightBank(
        torch.randn(count, 4, generator=generator),
        torch.randn(count, 6, generator=generator),
        **{**defaults, **arguments},
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A bank of three shards."""
    path = tmp_path / "bank"
    make_bank().save(path, max_shard_size=350)
    assert len(list(path.glob("*.safetensors"))) == 3
    return path


def build(forward: Any, layer: Any, dataset: Any, **arguments: Any) -> Any:
    return build_weight_bank(forward, layer, dataset, **{"progress": False, **arguments})


def build_hardest(
    forward: MetricForward, layer: nn.Module, dataset: Any, **arguments: Any
) -> WeightBank:
    """From the hardest tuples, in two passes, with indices as keys."""
    usual: dict[str, Any] = {"mining": "hardest", "activation_budget": 0, "progress": False}
    if hasattr(dataset, "__len__"):
        usual["keys"] = [str(index) for index in range(len(dataset))]
    return build_weight_bank(forward, layer, dataset, **{**usual, **arguments})


def weights_by_hand(
    encoder: nn.Module, layer: nn.Module, images: Tensor, value_of: Callable[[Tensor], Tensor]
) -> Tensor:
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, __, output: kept.append(output))
    value = value_of(encoder(images))
    handle.remove()
    (gradient,) = torch.autograd.grad(value, kept)
    return gradient.flatten(2).mean(2)


def in_batch_loss(e: Tensor, labels: Tensor) -> Tensor:
    """Mean squared distance within classes less that between them."""
    squared = (e[:, None] - e[None]).square().sum(-1)
    same = labels[:, None] == labels[None]
    return squared[same].mean() - squared[~same].mean()


def in_double(dataset: list[tuple[Tensor, int]]) -> list[tuple[Tensor, int]]:
    return [(image.double(), label) for image, label in dataset]
