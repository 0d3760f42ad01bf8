import sys
import types
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from benchmarks.networks.build import (
    EmbeddingNetwork,
    backbone_network,
    build_network,
    embedding_network,
    packaged_state,
)
from benchmarks.networks.checkpoints import CheckpointError
from benchmarks.networks.torchvision_networks import torchvision_backbone, torchvision_names
from captum_embed.errors import InputError, MissingExtraError

FAMILIES = [
    # name, channels of the features, of the last block
    ("resnet18", 512, 512),
    ("mobilenet_v2", 1280, 320),
    ("mobilenet_v3_small", 576, 96),
    ("efficientnet_b0", 1280, 320),
    ("densenet121", 1024, 1024),
    ("regnet_y_400mf", 440, 440),
    ("convnext_tiny", 768, 768),
]


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def resnet() -> EmbeddingNetwork:
    return backbone_network("resnet18@random", 16)


@pytest.mark.parametrize(("name", "num_channels", "last"), FAMILIES)
@torch.no_grad()
def test_features_pool_and_torchvision_s_classifier_give_torchvision_s_logits(
    images: Tensor, name: str, num_channels: int, last: int
) -> None:
    backbone = torchvision_backbone(name, "random", seed=5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = models.get_model(name, weights=None).eval()
    pooled = backbone.pool(backbone.features(images)).flatten(1)
    assert pooled.shape == (2, num_channels)
    assert backbone.num_channels == num_channels
    classifier = getattr(model, "classifier", None) or model.fc
    if name == "convnext_tiny":
        classifier = classifier[1:]  # its layer norm stands in the pooling
    torch.testing.assert_close(classifier(pooled), model(images), atol=1e-4, rtol=1e-4)
    network = EmbeddingNetwork(backbone.features, nn.Identity(), last_block=backbone.last_block)
    shapes: list[Any] = []
    network.recommended_layer.register_forward_hook(lambda *call: shapes.append(call[2].shape))
    network(images)
    assert shapes == [(2, last, 2, 2)]


def test_the_names_of_the_issue_are_known() -> None:
    wanted = {"resnet18", "resnet34", "resnet50", "resnet101", "convnext_tiny", "densenet121"}
    assert wanted <= set(torchvision_names())
    assert not [n for n in torchvision_names() if n.startswith(("vit", "swin", "inception"))]


@torch.no_grad()
def test_the_embedding_is_512_wide_by_default_and_of_unit_length(images: Tensor) -> None:
    network = build_network("resnet18@random")
    assert isinstance(network, EmbeddingNetwork)
    assert isinstance(network.head, nn.Linear)
    assert network.head.bias is None
    embeddings = network(images)
    assert embeddings.shape == (2, 512)
    expected = F.normalize(network.features(images).mean((2, 3)) @ network.head.weight.T)
    torch.testing.assert_close(embeddings, expected)
    assert network.recommended_layer is network.features.layer4


def test_no_activation_works_in_place() -> None:
    for name in ("resnet18", "efficientnet_b0", "densenet121"):
        features = torchvision_backbone(name, "random").features
        assert not [m for m in features.modules() if getattr(m, "inplace", False)]
        assert [m for m in features.modules() if hasattr(m, "inplace")]


def test_a_checkpoint_survives_a_round_trip_bit_by_bit(
    resnet: EmbeddingNetwork, images: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "resnet.safetensors"
    save_file(packaged_state(resnet), path)
    again = build_network("resnet18", path)
    for name, tensor in resnet.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    torch.testing.assert_close(again(images), resnet(images))
    with pytest.raises(InputError, match="--embedding-dim 8 is the width of a new head"):
        build_network("resnet18", path, 8)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("resnet34", {}, r"another network.*resnet34's: .* missing \(features\.layer1\.2"),
        ("efficientnet_lite0", {}, r"\(16, 512\), expected \(D, 1280\)"),
        ("resnet18", {"head.weight": torch.ones(4, 7)}, r"\(4, 7\), expected \(D, 512\)"),
        ("resnet18", {"head.weight": None}, r"1 missing \(head.weight\)"),
        ("resnet18", {"features.bn1.weight": torch.ones(3)}, r"bn1.weight has shape \(3,\)"),
        ("resnet18", {"features.bn1.weight": torch.full((64,), torch.nan)}, "NaN"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_by_name(
    resnet: EmbeddingNetwork, tmp_path: Path, name: str, change: dict[str, Any], message: str
) -> None:
    state = {k: v for k, v in {**packaged_state(resnet), **change}.items() if v is not None}
    path = tmp_path / "resnet.safetensors"
    save_file(state, path)
    with pytest.raises(CheckpointError, match=message) as error:
        build_network(name, path)
    assert str(path) in str(error.value)


def cached_weights(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A model whose state lies where torch.hub keeps what it has downloaded."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        model = models.get_model(name, weights=None).eval()
    path = folder / "checkpoints" / Path(models.get_model_weights(name).DEFAULT.url).name
    path.parent.mkdir(parents=True)
    torch.save(model.state_dict(), path)
    return model


def test_torchvision_s_weights_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = cached_weights(tmp_path, "resnet18", monkeypatch)
    loaded = backbone_network("resnet18").features.state_dict()
    for name, tensor in model.state_dict().items():
        assert name.startswith("fc.") or torch.equal(loaded[name], tensor), name


def test_densenet_s_old_names_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = cached_weights(tmp_path, "densenet121", monkeypatch)
    path = next(tmp_path.rglob("*.pth"))
    old = {
        k.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.") if "denselayer" in k else k: v
        for k, v in model.state_dict().items()
    }
    assert set(old) != set(model.state_dict())
    torch.save(old, path)
    loaded = backbone_network("densenet121").features.state_dict()
    key = "denseblock1.denselayer1.conv2.weight"
    assert torch.equal(loaded[key], model.state_dict()["features." + key])


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(InputError, match=r"no route to host.*--checkpoint.*resnet18@random") as e:
        build_network("resnet18")
    place = tmp_path / "checkpoints" / "resnet18-f37072fd.pth"
    assert str(place) in str(e.value)
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in str(e.value)


def test_unknown_weights_are_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"no weights 'BEST'; known: IMAGENET1K_V1, .*random"):
        build_network("resnet50@BEST")


def test_building_leaves_the_global_generator_alone_and_depends_on_the_seed() -> None:
    before = torch.get_rng_state()
    first, second = (backbone_network("resnet18@random", 4, seed=seed) for seed in (1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first.head.weight, second.head.weight)
    assert not torch.equal(first.features.conv1.weight, second.features.conv1.weight)


def test_timm_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match="pip install timm"):
        build_network("timm:resnet18")


class TimmModel(nn.Module):
    """What of a timm model is used."""

    pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, 64, 64)}  # noqa: RUF012
    num_features = 6

    def __init__(self, channels_last: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 8, stride=8)
        self.act = nn.ReLU(inplace=True)
        self.channels_last = channels_last

    def forward_features(self, images: Tensor) -> Tensor:
        activations: Tensor = self.act(self.conv(images))
        return activations.permute(0, 2, 3, 1) if self.channels_last else activations


@pytest.fixture
def fake_timm(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    made: list[tuple[str, bool]] = []

    def create_model(name: str, pretrained: bool, num_classes: int) -> nn.Module:
        assert num_classes == 0
        made.append((name, pretrained))
        if name == "absent":
            raise RuntimeError("Unknown model (absent)")
        return TimmModel(channels_last=name == "swin")

    module = types.ModuleType("timm")
    module.create_model = create_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", module)
    return made


@torch.no_grad()
def test_a_timm_model_gets_images_normalised_its_own_way(
    fake_timm: list[tuple[str, bool]], images: Tensor, tmp_path: Path
) -> None:
    network = backbone_network("timm:net.tag", 4)
    assert fake_timm[-1] == ("net.tag", True)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    own_way = ((images * std + mean) - 0.5) / 0.5
    expected = network.features.model.conv(own_way).relu()
    torch.testing.assert_close(network.features(images), expected, atol=1e-5, rtol=1e-4)
    assert network(images).shape == (2, 4)
    assert not network.features.model.act.inplace
    save_file(packaged_state(network), tmp_path / "timm.safetensors")
    again = embedding_network("timm:net.tag", tmp_path / "timm.safetensors")
    assert fake_timm[-1] == ("net.tag", False)
    assert torch.equal(again(images), network(images))


def test_a_timm_model_that_is_no_cnn_or_is_not_there_is_refused(
    fake_timm: list[tuple[str, bool]],
) -> None:
    with pytest.raises(InputError, match=r"timm:swin gives activations with 8 channels.* 6;"):
        build_network("timm:swin@random")
    with pytest.raises(InputError, match=r"timm:absent could not be made.*Unknown model"):
        build_network("timm:absent")
    with pytest.raises(InputError, match="weights 'V1'; expected random"):
        build_network("timm:net@V1")
