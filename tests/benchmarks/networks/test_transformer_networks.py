"""Transformers as networks of the benchmark: their layer with channels first, and whole runs."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from benchmarks.__main__ import main
from benchmarks.networks import build
from benchmarks.networks.checkpoints import CheckpointError
from benchmarks.networks.layers import find_layer
from benchmarks.networks.transformer_networks import TransformerNetwork
from benchmarks.runs import localize
from captum_embed import TripletForward, build_weight_bank
from captum_embed.command_line.images import Preprocessing
from captum_embed.command_line.networks import LoadedNetwork
from captum_embed.errors import InputError, LayerError
from captum_embed.rivals import EigenCAM

SIDE = 64


def vit() -> nn.Module:
    network = models.VisionTransformer(SIDE, 16, 2, 2, 24, 32)
    network.heads = nn.Identity()
    return network


def swin() -> nn.Module:
    network = models.SwinTransformer([4, 4], 16, [1, 1], [2, 4], [4, 4])
    network.head = nn.Identity()
    return network


def convnext() -> nn.Module:
    block = models.convnext.CNBlockConfig
    network = models.ConvNeXt([block(16, 24, 1), block(24, None, 1)])
    network.classifier[2] = nn.Identity()
    return network


MAKE = {"vit": vit, "swin": swin, "convnext": convnext}
PLACES: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "vit": ("encoder.layers.encoder_layer_1.ln_1", lambda t: t[:, 1:].mT.unflatten(2, (4, 4))),
    "swin": ("norm", lambda t: t.permute(0, 3, 1, 2)),
    "convnext": ("features", lambda t: t),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library of networks holds small ones."""

    def load(name: str, **options: Any) -> LoadedNetwork:
        torch.manual_seed(0)
        network = MAKE[name.partition(":")[2]]().eval()
        return LoadedNetwork(name, network, Preprocessing(SIDE, SIDE))

    monkeypatch.setattr(build, "load_network", load)


def network_of(name: str) -> TransformerNetwork:
    network = build.build_network(f"torchvision:{name}", embedding_dim=8)
    assert isinstance(network, TransformerNetwork)
    return network


def images(*size: int) -> Tensor:
    return torch.randn(2, 3, *(size or (SIDE, SIDE)), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MAKE)
def test_the_layer_has_channels_first_and_captum_explains_it(name: str) -> None:
    network = network_of(name)
    layer, to_channels_first = PLACES[name]
    torch.manual_seed(0)
    plain, kept = MAKE[name]().eval(), []

    def keep(*call: Any) -> None:
        call[2].retain_grad()
        kept.append(call[2])

    plain.get_submodule(layer).register_forward_hook(keep)
    expected = F.normalize(plain(images()) @ network.head.weight.T)
    torch.testing.assert_close(network(images()), expected)

    expected[:, 0].sum().backward()
    gradient, activation = map(to_channels_first, (kept[0].grad, kept[0].detach()))
    by_hand = torch.einsum("nc,nchw->nhw", gradient.mean((2, 3)), activation)[:, None]
    actual = LayerGradCam(network, find_layer(network, "features")).attribute(images(), 0)
    assert by_hand.abs().max() > 0
    torch.testing.assert_close(actual, by_hand)


@pytest.mark.parametrize("name", MAKE)
def test_images_of_other_sizes_are_resized_where_the_network_takes_one(name: str) -> None:
    network, wide = network_of(name), images(48, 96)
    seen = F.interpolate(wide, (SIDE, SIDE), mode="bilinear", antialias=True)
    same = torch.allclose(network(wide), network(seen))
    assert same == (name == "vit")


def test_pooling_is_known_where_it_is_the_mean_of_the_places() -> None:
    assert [hasattr(network_of(name), "pool") for name in ("vit", "swin")] == [False, True]


def test_images_are_normalised_as_the_network_wants_them() -> None:
    loaded = LoadedNetwork(
        "own", vit().eval(), Preprocessing(SIDE, SIDE, mean=(0,) * 3, std=(1,) * 3)
    )
    mean, std = (
        torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    pixels = torch.rand(2, 3, SIDE, SIDE)
    expected = F.normalize(loaded.encoder(pixels))
    torch.testing.assert_close(TransformerNetwork(loaded)((pixels - mean) / std), expected)


def test_other_layers_are_found_once_and_survive_a_copy() -> None:
    network = network_of("vit")
    first = "backbone.encoder.layers.encoder_layer_0"
    places = find_layer(network, first, "tokens")
    assert find_layer(network, first, "tokens") is places
    other = copy.deepcopy(network)
    assert find_layer(other, first, "tokens") is not places
    for each in (network, other):
        maps = LayerGradCam(each, find_layer(each, first, "tokens")).attribute(images(90, 70), 0)
        assert maps.shape == (2, 1, 4, 4)
    wrong = network_of("vit")
    find_layer(wrong, first, "channels_last")
    with pytest.raises(LayerError, match="layout='tokens'"):
        wrong(images())


def test_a_bare_network_of_a_factory_is_explained_where_its_family_is() -> None:
    torch.manual_seed(0)
    plain = swin().eval()
    layer = find_layer(plain, "features.3", "channels_last")
    shapes: list[Any] = []
    layer.register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape)))
    plain(images(48, 80))
    assert shapes == [(2, 32, 6, 10)]
    tower = nn.Sequential(vit().eval(), nn.Linear(24, 5))
    find_layer(tower, "features").register_forward_hook(lambda *c: shapes.append(c[2].shape))
    tower(images())
    assert shapes[-1] == (2, 24, 4, 4)


def test_a_bank_of_the_layer(tmp_path: Path) -> None:
    network = network_of("vit")
    data = [(image, number % 2) for number, image in enumerate(images().repeat(2, 1, 1, 1))]
    forward = TripletForward(network, margin=9.0)
    layer = find_layer(network, "features")
    bank = build_weight_bank(forward, layer, data, progress=False)
    assert bank.metadata["layer"] == "features"
    assert bank.weights.shape == (4, 24)


def test_a_checkpoint_survives_a_round_trip(tmp_path: Path) -> None:
    network, path = network_of("swin"), tmp_path / "swin.safetensors"
    assert not [name for name in network.state_dict() if "places" in name]
    save_file(build.packaged_state(network), path)
    again = build.build_network("torchvision:swin", path)
    torch.testing.assert_close(again(images()), network(images()))
    with pytest.raises(CheckpointError, match="another network"):
        build.build_network("torchvision:vit", path)


def test_a_family_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MAKE, "mlp", lambda: nn.Sequential(nn.Flatten(), nn.Linear(3, 4)))
    with pytest.raises(InputError, match=r"torchvision:mlp: the layer of Sequential cannot be"):
        network_of("mlp")


METHODS = (
    "ours_localize", "ours_explain", "ours_explain_transfer", "layer_grad_cam", "layer_activation",
    "layer_gradient_x_activation", "layer_integrated_gradients", "layer_feature_ablation",
    "saliency", "activation_decomposition", "similarity_grad_cam", "embedding_layer_cam",
    "eigen_cam", "le_grad", "gradient_attention_rollout",
)  # fmt: skip
UNAVAILABLE = {
    "vit": {"activation_decomposition"},
    "swin": {"le_grad", "gradient_attention_rollout"},
    "convnext": {"activation_decomposition", "le_grad", "gradient_attention_rollout"},
}


@pytest.mark.parametrize("name", MAKE)
def test_a_run_from_the_command_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # The page takes longer than the run.
    monkeypatch.setattr(localize, "write_page", lambda folder, *_: folder / "report.html")
    trial_side = 64

    def refuse(self: Any, image: Tensor) -> Tensor:
        if image.shape[2] == trial_side:
            return torch.zeros(1, 1, 2, 2)
        raise InputError("not of this image")

    monkeypatch.setattr(EigenCAM, "attribute", refuse)
    rng, lines = np.random.default_rng(0), ["image,label,x,y,width,height"]
    for number in range(8):
        label, file = "gray" if number % 4 < 2 else "red", f"{number}.png"
        pixels = rng.integers(0, 120, (70 + number, 90, 3)) + (
            (60, 60, 60) if label == "gray" else (130, 0, 0)
        )
        Image.fromarray(pixels.astype(np.uint8)).save(file)
        lines.append(f"{file},{label},10,10,60,50")
    Path("boxes.csv").write_text("\n".join(lines))
    words = (
        f"--data . --train-classes gray,red --test-classes gray,red --network torchvision:{name} "
        f"--embedding-dim 8 --methods {','.join(METHODS)} --budget 4 --limit 1 --device cpu "
        "--num-resamples 20 --no-figures --no-progress --output"
    ).split()
    runs = {"localize": "boxes"} | ({"faithfulness": "deletion"} if name == "vit" else {})
    for command, protocol in runs.items():
        with pytest.warns(UserWarning, match="no map by Eigen-CAM: not of this image"):
            assert main([command, *words, command, "--protocols", protocol]) == 0
        results = json.loads(Path(command, "results.json").read_text())
        missing = {each["name"] for each in results["methods"] if each["unavailable"]}
        assert missing == UNAVAILABLE[name]
        for method in set(METHODS) - missing:
            assert results["summary"][method][protocol]["num_images"] == 1
            refused = method == "eigen_cam"
            assert results["summary"][method][protocol]["num_not_finite"] == refused
