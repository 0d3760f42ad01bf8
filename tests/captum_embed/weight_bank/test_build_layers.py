"""Banks of several layers, layouts and precisions, and the names of their entries."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset

from captum_embed import (
    EmbeddingLayerGradCam,
    LossForward,
    TripletForward,
    WeightBank,
)
from captum_embed.errors import LayerError

from .conftest import Make, build, build_hardest, in_batch_loss


@pytest.mark.parametrize("budget", [0, 2**30])
@pytest.mark.parametrize("mining", ["all", "hardest", "batch"])
def test_several_layers_share_the_passes(
    make_encoder: Make, make_dataset: Make, mining: str, budget: int
) -> None:
    encoder, dataset = make_encoder(), make_dataset()
    forward: Any = TripletForward(encoder, margin=5.0)
    settings: dict[str, Any] = {"mining": mining, "activation_budget": budget}
    if mining == "batch":
        forward, settings = LossForward(encoder, in_batch_loss), {}
    layers = [encoder.head, encoder.layer, encoder.below]
    alone = [build(forward, layer, dataset, **settings) for layer in layers]
    runs: list[int] = []
    encoder.below.register_forward_hook(lambda _, __, out: runs.append(len(out)))
    banks = build(forward, layers, dataset, batch_size=32, **settings)
    # One image more tells which layer is the lowest, where the graph is cut.
    assert sum(runs) == 1 + (24 if budget == 0 and mining != "batch" else 12)
    assert isinstance(banks, tuple)
    for layer, bank, expected in zip(layers, banks, alone, strict=True):
        assert bank.metadata == expected.metadata
        torch.testing.assert_close(bank.weights, expected.weights, rtol=1e-4, atol=1e-7)
        assert sum(len(module._forward_hooks) for module in encoder.modules()) == 1
        EmbeddingLayerGradCam(forward, layer, weight_bank=bank).attribute(dataset[0][0][None])
    (one,) = build(forward, [encoder.layer], dataset, **settings)
    torch.testing.assert_close(one.weights, alone[1].weights)


def test_paths_of_image_folders_become_keys(make_encoder: Make, make_dataset: Make) -> None:
    content = make_dataset()
    root = Path("/data/birds")
    folder = SimpleNamespace(
        root=str(root), samples=[(str(root / f"c{i % 3}" / f"{i}.jpg"), i % 3) for i in range(12)]
    )

    class Folder:
        root, samples = folder.root, folder.samples

        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return content[index]

    forward = TripletForward(make_encoder())
    bank = build(forward, forward.encoder.layer, Folder())
    assert bank.keys == tuple(f"c{i % 3}/{i}.jpg" for i in range(12))
    part = build(forward, forward.encoder.layer, Subset(Folder(), [5, 2, 0, 3, 1, 4]))
    assert part.keys == ("c2/5.jpg", "c2/2.jpg", "c0/0.jpg", "c0/3.jpg", "c1/1.jpg", "c1/4.jpg")
    named = build(forward, forward.encoder.layer, Folder(), keys=[f"x{i}" for i in range(12)])
    assert named.keys is not None
    assert named.keys[0] == "x0"


def test_banks_without_names_have_no_keys_and_can_be_joined(
    make_encoder: Make, make_dataset: Make
) -> None:
    forward = TripletForward(make_encoder())
    bank = build(forward, forward.encoder.layer, make_dataset())
    assert bank.keys is None
    assert len(WeightBank.concat([bank, bank])) == 24


class TokenEncoder(nn.Module):
    """Patches as tokens behind a class token; embeds the mean of all."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.block = nn.Linear(3, 4)
        self.last = nn.Identity()
        self.block.weight.data = torch.randn(4, 3, generator=generator)

    def forward(self, images: Tensor) -> Any:
        patches = F.avg_pool2d(images, 2).flatten(2).transpose(1, 2)
        tokens = self.block(torch.cat([patches.mean(1, keepdim=True), patches], dim=1))
        channels_last = self.last(tokens[:, 1:].unflatten(1, (4, 4)).tanh())
        return {"last_hidden_state": tokens, "pooler_output": channels_last.mean((1, 2))}


@pytest.mark.parametrize("prefix_tokens", [None, 1])
def test_tokens_and_channels_last_are_weighed_over_their_places(
    make_dataset: Make, prefix_tokens: int | None
) -> None:
    encoder, dataset = TokenEncoder(), make_dataset()
    forward = TripletForward(encoder, distance="cosine")
    bank = build(
        forward, encoder.block, dataset, layout="tokens", prefix_tokens=prefix_tokens, grid=(4, 4)
    )
    images = torch.stack([image for image, _ in dataset])
    labels = torch.tensor([label for _, label in dataset])
    unit = F.normalize(encoder(images)["pooler_output"]).detach()

    def match(output: Any) -> Tensor:
        own = F.normalize(output["pooler_output"])
        total = own.new_zeros(())
        for i in range(12):
            same = (labels == labels[i]) & (torch.arange(12) != i)
            near, far = unit[same].mean(0), unit[labels != labels[i]].mean(0)
            total = total + own[i] @ (near - far)
        return total

    for layer, layout in ((encoder.block, "tokens"), (encoder.last, "channels_last")):
        kept: list[Tensor] = []
        handle = layer.register_forward_hook(lambda _, __, out, into=kept: into.append(out))
        value = match(encoder(images))
        handle.remove()
        (gradient,) = torch.autograd.grad(value, kept)
        places = gradient[:, 1:] if layout == "tokens" else gradient.flatten(1, 2)
        if layout == "channels_last":
            bank = build(forward, layer, dataset, layout=layout)
        torch.testing.assert_close(bank.weights, places.mean(1), rtol=1e-4, atol=1e-7)
        assert bank.metadata["layout"] == layout
        assert bank.metadata.get("prefix_tokens") == ("1" if layout == "tokens" else None)
    with pytest.raises(LayerError, match=r"pass layout='tokens'"):
        build(forward, encoder.block, dataset)


def test_weights_are_single_precision_under_autocast(
    make_encoder: Make, make_dataset: Make
) -> None:
    forward = TripletForward(make_encoder())
    expected = build(forward, forward.encoder.layer, make_dataset())
    with torch.autocast("cpu", torch.bfloat16):
        bank = build(forward, forward.encoder.layer, make_dataset())
    assert bank.weights.dtype is torch.float32
    similarity = torch.cosine_similarity(bank.weights.flatten(), expected.weights.flatten(), dim=0)
    assert similarity > 0.95


def test_a_bank_of_a_wrapped_encoder_serves_the_plain_one(
    make_encoder: Make, make_dataset: Make
) -> None:
    encoder = make_encoder()
    wrapped = TripletForward(nn.DataParallel(encoder), margin=5.0)
    plain = TripletForward(encoder, margin=5.0)
    bank = build_hardest(wrapped, encoder.layer, make_dataset())
    other = build_hardest(plain, encoder.layer, make_dataset())
    assert dict(bank.metadata) == dict(other.metadata)
    assert torch.equal(bank.weights, other.weights)
    image = make_dataset()[0][0][None]
    for forward in (wrapped, plain):
        maps = EmbeddingLayerGradCam(forward, encoder.layer, weight_bank=bank).attribute(image)
        assert maps.shape == (1, 1, 8, 8)


def test_layers_without_space_keep_their_gradient(make_encoder: Make, make_dataset: Make) -> None:
    forward = TripletForward(make_encoder(), margin=5.0)
    dataset = make_dataset()
    bank = build_hardest(forward, forward.encoder.head, dataset, num_tuples=3)
    assert bank.num_channels == 5
    maps = EmbeddingLayerGradCam(forward, forward.encoder.head, weight_bank=bank)
    assert maps.attribute(dataset[0][0][None]).shape == (1, 1)


def test_half_precision_encoders_give_banks_in_single_precision(
    make_encoder: Make, make_dataset: Make
) -> None:
    forward = TripletForward(make_encoder().to(torch.bfloat16), margin=5.0)
    dataset = [(image.to(torch.bfloat16), label) for image, label in make_dataset()]
    bank = build_hardest(forward, forward.encoder.layer, dataset)
    exact = TripletForward(make_encoder(), margin=5.0)
    expected = build_hardest(exact, exact.encoder.layer, make_dataset())
    assert bank.weights.dtype == torch.float32
    similarity = torch.cosine_similarity(bank.weights.flatten(), expected.weights.flatten(), dim=0)
    assert similarity > 0.95
