"""Modules of users' factories: transformers' models and plain encoders, trained and explained."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.networks.build import build_network
from benchmarks.networks.checkpoints import CheckpointError
from benchmarks.networks.layers import find_layer
from benchmarks.training import train as training
from captum_embed.errors import InputError, LayerError

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16}
MODULE = f"""
import torch
import transformers
from torch import nn

def dino():
    torch.manual_seed(0)
    return transformers.Dinov2Model(transformers.Dinov2Config(image_size=64, **{SMALL}))

def clip():
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        image_size=64, intermediate_size=32, projection_dim=8, **{SMALL}
    )
    return transformers.CLIPVisionModelWithProjection(config)

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Conv2d(3, 4, 5, 3), nn.Linear(4, 6)
        self.tied = self.head

    def forward(self, images):
        return nn.functional.normalize(self.head(self.body(images).relu().mean((2, 3))), dim=1)

def fails(): raise ValueError("no such data")
def maps(): return nn.Conv2d(3, 4, 3)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "plain_modules.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def images(*size: int) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "layer", "size"),
    [
        ("dino", "encoder.layer.1.norm1", (64, 96)),
        ("clip", "vision_model.encoder.layers.1.layer_norm1", (64, 64)),
    ],
)
def test_a_model_of_transformers_is_explained_as_by_hand(
    name: str, layer: str, size: tuple[int, int]
) -> None:
    network = build_network(f"plain_modules:{name}")
    tokens: list[Tensor] = []

    def keep(*call: Tensor) -> None:
        call[2].retain_grad()
        tokens.append(call[2])

    rows, columns = size[0] // 16, size[1] // 16
    with network.get_submodule(layer).register_forward_hook(keep):
        network(images(*size).requires_grad_())[:, 0].sum().backward()
    gradient, activation = (
        each[:, 1:].mT.unflatten(2, (rows, columns)) for each in (tokens[0].grad, tokens[0])
    )
    by_hand = torch.einsum("nc,nchw->nhw", gradient.mean((2, 3)), activation)[:, None]
    assert by_hand.abs().max() > 0
    default = find_layer(network, "features")
    torch.testing.assert_close(LayerGradCam(network, default).attribute(images(*size), 0), by_hand)
    named = find_layer(network, layer, "tokens", 1)
    torch.testing.assert_close(LayerGradCam(network, named).attribute(images(*size), 0), by_hand)


def test_images_are_resized_for_a_network_that_takes_one_size() -> None:
    network, wide = build_network("plain_modules:clip"), images(50, 90)
    seen = F.interpolate(wide, (64, 64), mode="bilinear", antialias=True)
    torch.testing.assert_close(network(wide), network(seen))
    assert network(wide).shape == (2, 8)
    free = build_network("plain_modules:dino")
    same = torch.allclose(free(wide), free(seen))
    assert not same, "a network that takes any size sees the image as it is"


def test_a_layer_that_is_not_known_is_named_with_its_layout() -> None:
    with pytest.raises(LayerError, match=r"--layer NAME, and --layout .* modules: body, head"):
        find_layer(build_network("plain_modules:Plain"), "features")
    network = build_network("plain_modules:dino")
    with pytest.raises(InputError, match="prefix_tokens and grid describe tokens"):
        find_layer(network, "encoder.layer.0", prefix_tokens=1)
    find_layer(network, "encoder.layer.0", "tokens", 2)
    with pytest.raises(LayerError, match="2 of them prefix tokens"):
        network(images(64, 64))


def test_a_factory_that_fails_and_a_module_without_embeddings_are_refused() -> None:
    with pytest.raises(InputError, match=r"plain_modules:fails failed \(ValueError: no such data"):
        build_network("plain_modules:fails")
    with pytest.raises(InputError, match=r"expected embeddings \(N, D\)"):
        build_network("plain_modules:maps")(images(8, 8))


def settings_of(name: str, folder: Path) -> training.TrainSettings:
    return training.TrainSettings(
        data="none", output=folder / "net.safetensors", network=name, steps=9, device="cpu",
        learning_rate=1e-2, mining="hardest", margin=2.0,
    )  # fmt: skip


def test_a_plain_module_is_trained_under_its_own_names_and_filled_again(place: Path) -> None:
    settings = settings_of("plain_modules:Plain", place)
    network = training.starting_network(settings)
    trainer = training.Trainer(network, settings)
    batch, labels = images(16, 16).repeat(2, 1, 1, 1), torch.tensor([0, 1, 1, 0])
    losses = [trainer.train_step(batch, labels) for _ in range(9)]
    assert losses[-1] < losses[0]
    state = training.packaged_state(network)
    assert set(state) == {f"{n}.{p}" for n in ("body", "head", "tied") for p in ("weight", "bias")}
    save_file(state, "net.safetensors")
    again = build_network("plain_modules:Plain", "net.safetensors")
    torch.testing.assert_close(again(batch), network(batch))
    save_file({"other": torch.ones(1)}, "other.safetensors")
    with pytest.raises(CheckpointError, match="for another network"):
        build_network("plain_modules:Plain", "other.safetensors")
    assert load_file("net.safetensors").keys() == nn.Module.state_dict(again).keys()


def test_training_warns_of_embeddings_that_are_not_of_length_one(place: Path) -> None:
    settings = settings_of("plain_modules:dino", place)
    trainer = training.Trainer(training.starting_network(settings), settings)
    with pytest.warns(UserWarning, match=r"have length \d.* let the network end with"):
        trainer.train_step(images(64, 64).repeat(2, 1, 1, 1), torch.tensor([0, 1, 1, 0]))
