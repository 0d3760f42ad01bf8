from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from captum_embed.command_line import networks
from captum_embed.command_line.networks import layer_named, load_network
from captum_embed.errors import InputError, LayerError


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "cli_networks.py").write_text(
        "from torch import nn\n"
        "def small():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
        "def wrong():\n    return 3\n"
        "def broken():\n    return 1 / 0\n"
        "def leaves():\n    raise SystemExit\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "convnext_tiny", "regnet_y_400mf"])
def test_embeddings_are_what_the_classifier_reads_at_length_one(name: str) -> None:
    images = torch.rand(2, 3, 64, 64)
    network = load_network(f"torchvision:{name}", weights="random", device="cpu")
    classifier = models.get_model(name, weights=None).eval()
    state = {**classifier.state_dict(), **network.encoder.state_dict()}
    classifier.load_state_dict(state)
    last = [m for m in classifier.modules() if isinstance(m, nn.Linear)][-1]
    read: list[torch.Tensor] = []
    last.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    classifier(images)
    expected = read[0] / read[0].norm(dim=1, keepdim=True)
    torch.testing.assert_close(network.encoder(images), expected)
    assert not network.encoder.training
    assert not any(p.requires_grad for p in network.encoder.parameters())


def test_untrained_weights_are_the_same_each_time_and_move_no_generator() -> None:
    before = torch.get_rng_state()
    first, second = (
        load_network("torchvision:resnet18", weights="random", device="cpu").encoder.state_dict()
        for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(before, torch.get_rng_state())


def test_timm_is_read_as_torchvision_is() -> None:
    timm = pytest.importorskip("timm")
    network = load_network("timm:resnet10t", weights="random", device="cpu")
    images = torch.rand(2, 3, 64, 64)
    classifier = timm.create_model("resnet10t", pretrained=False).eval()
    classifier.load_state_dict({**classifier.state_dict(), **network.encoder.state_dict()})
    expected = classifier.forward_head(classifier.forward_features(images), pre_logits=True)
    expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(network.encoder(images), expected)
    assert network.preprocessing.image_size == 176


def test_a_checkpoint_with_several_classifiers_fills_the_network(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    name = "deit_tiny_distilled_patch16_224"
    whole = timm.create_model(name).state_dict()
    save_file(whole, str(tmp_path / "whole.safetensors"))
    network = load_network(f"timm:{name}", checkpoint=tmp_path / "whole.safetensors", device="cpu")
    filled = network.encoder.state_dict()
    assert {key for key in whole if key not in filled} == {
        f"{head}.{part}" for head in ("head", "head_dist") for part in ("weight", "bias")
    }
    assert all(torch.equal(whole[key], filled[key]) for key in filled)


def test_a_checkpoint_with_its_classifier_or_without_fills_the_network(tmp_path: Path) -> None:
    torch.manual_seed(3)
    whole = models.resnet18().state_dict()
    save_file(whole, str(tmp_path / "whole.safetensors"))
    bare = {k: v for k, v in whole.items() if not k.startswith("fc.")}
    save_file(bare, str(tmp_path / "bare.safetensors"))
    for name in ("whole", "bare"):
        network = load_network(
            "torchvision:resnet18", checkpoint=tmp_path / f"{name}.safetensors", device="cpu"
        )
        assert torch.equal(network.encoder.state_dict()["conv1.weight"], whole["conv1.weight"])


def test_other_checkpoints_are_refused(factories: Path) -> None:
    state = load_network("cli_networks:small", device="cpu").encoder.state_dict()
    cases = {
        "lacks 1": {"0.bias": state["0.bias"]},
        "has besides 1": {**state, "more": torch.zeros(2)},
        "has in other shapes 1": {**state, "0.weight": torch.zeros(2)},
        "NaN": {**state, "0.weight": state["0.weight"] * float("nan")},
    }
    for message, tensors in cases.items():
        save_file(tensors, "given.safetensors")
        with pytest.raises(InputError, match=message):
            load_network("cli_networks:small", checkpoint="given.safetensors", device="cpu")
    torch.save(state, "pickled.pt")
    for name, message in (("pickled.pt", "not a readable safetensors"), ("absent", "no checkp")):
        with pytest.raises(InputError, match=message):
            load_network("cli_networks:small", checkpoint=name, device="cpu")


def test_a_factory_decides_on_its_embeddings(factories: Path) -> None:
    network = load_network("cli_networks:small", device="cpu")
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(network.encoder(images), network.encoder[0](images).mean((2, 3)))
    state = {name: torch.ones_like(value) for name, value in network.encoder.state_dict().items()}
    save_file(state, "ones.safetensors")
    filled = load_network("cli_networks:small", checkpoint="ones.safetensors", device="cpu")
    assert torch.equal(filled.encoder[0].weight, torch.ones(4, 3, 3, 3))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("resnet18", {}, "expected torchvision:NAME"),
        ("torchvision:", {}, "expected torchvision:NAME"),
        ("torchvision:resnet81", {}, "resnet18"),
        ("torchvision:resnet18", {"weights": "IMAGENET"}, "IMAGENET1K_V1"),
        ("torchvision:squeezenet1_0", {"weights": "random"}, "no linear layer"),
        ("torchvision:resnet18", {"weights": "random", "checkpoint": "x"}, "give one of them"),
        ("torchvision:resnet18", {"weights": "random", "device": "nowhere"}, "not available"),
        ("timm:resnet10x", {"weights": "random"}, "resnet10t"),
        ("timm:resnet10t", {"weights": "V1"}, "in the model's name"),
        ("cli_networks:absent", {}, "cannot import 'absent'"),
        ("cli_networks:broken", {}, "ZeroDivisionError"),
        ("cli_networks:leaves", {}, "could not be made .SystemExit"),
        ("cli_networks:wrong", {}, "not an nn.Module"),
        ("no.such.module:network", {}, "cannot import"),
        ("cli_networks:small", {"weights": "random"}, "decides on its own"),
    ],
)
def test_what_is_no_network_is_refused(
    factories: Path, name: str, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_network(name, **{"device": "cpu", **settings})


def test_without_internet_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(InputError, match=r"no route to host.*checkpoint.*'random'"):
        load_network("torchvision:resnet18", device="cpu")


def test_an_unknown_layer_is_answered_with_those_near_it() -> None:
    encoder = models.resnet18()
    assert layer_named(encoder, "layer4.1") is encoder.layer4[1]
    for wrong, near in (("layer5", "layer4"), ("layer4.7", r"layer4\.1"), ("", "layer1")):
        with pytest.raises(LayerError, match=near):
            layer_named(encoder, wrong)


@pytest.mark.parametrize(
    ("weights", "side"), [("IMAGENET1K_V1", 224), ("IMAGENET1K_SWAG_E2E_V1", 384)]
)
def test_a_vision_transformer_is_of_the_size_of_its_weights(
    monkeypatch: pytest.MonkeyPatch, weights: str, side: int
) -> None:
    def small(name: str, weights: None, image_size: int = 224) -> nn.Module:
        return models.VisionTransformer(image_size, 32, 1, 2, 8, 8)

    state = small("", None, side).state_dict()
    monkeypatch.setattr(models, "get_model", small)
    monkeypatch.setattr(networks, "torchvision_state", lambda *_: state)
    network = load_network("torchvision:vit_b_16", weights=weights, device="cpu")
    assert network.preprocessing.image_size == side
    assert network.encoder(torch.rand(1, 3, side, side)).shape == (1, 8)
