from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.networks.build import (
    CheckpointError,
    build_network,
    imagenet_network,
    lite0_network,
    load_checkpoint,
    packaged_state,
)
from benchmarks.networks.layers import find_layer
from benchmarks.networks.lite0 import imagenet_state
from captum_embed.errors import InputError, LayerError


@pytest.fixture(scope="module")
def packaged() -> EfficientNet:
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(imagenet_state())
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "network.safetensors"
    save_file(packaged_state(lite0_network(16)), path)
    return path


def altered(checkpoint: Path, path: Path, change) -> Path:
    state = packaged_state(load_checkpoint(checkpoint))
    change(state)
    save_file(state, path)
    return path


@pytest.mark.parametrize("size", [(224, 224), (97, 150), (33, 64)])
@torch.no_grad()
def test_lite0_gives_the_package_s_features_at_any_size(
    packaged: EfficientNet, size: tuple[int, int]
) -> None:
    images = 3 * torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    ours = build_network().features(images)
    torch.testing.assert_close(
        ours.contiguous(), packaged.extract_features(images), atol=1e-4, rtol=1e-4
    )
    assert ours.max() == 6, "no activation is saturated: the clamp would go untested"


@torch.no_grad()
def test_embedding_is_the_normalised_head_of_the_pooled_package_features(
    packaged: EfficientNet,
) -> None:
    network = lite0_network(8)
    images = torch.randn(2, 3, 64, 96)
    pooled = packaged.extract_features(images).mean((2, 3))
    expected = F.normalize(pooled @ network.head.weight.T, dim=1)
    torch.testing.assert_close(network(images), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(network(images).norm(dim=1), torch.ones(2))


def test_every_activation_is_a_relu_of_its_own(packaged: EfficientNet) -> None:
    network = imagenet_network()
    relus = [m for m in network.modules() if isinstance(m, nn.ReLU)]
    runs: list[nn.Module] = []
    for relu in relus:
        relu.register_forward_hook(lambda module, *_: runs.append(module))
    network(torch.randn(1, 3, 32, 32))
    assert sorted(map(id, runs)) == sorted(map(id, relus))
    expansions = sum(block._block_args.expand_ratio != 1 for block in packaged._blocks)
    assert len(relus) == 2 + len(packaged._blocks) + expansions


def test_a_checkpoint_survives_a_round_trip_bit_by_bit(checkpoint: Path, tmp_path: Path) -> None:
    first = load_checkpoint(checkpoint)
    save_file(packaged_state(first), tmp_path / "again.safetensors")
    second = load_checkpoint(tmp_path / "again.safetensors")
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(first(images), second(images))


def test_the_shared_checkpoint_gives_512_numbers_of_unit_norm(shared_root: Path) -> None:
    network = load_checkpoint(shared_root / "cub" / "efficientnet_lite0_triplet.safetensors")
    embedding = network(torch.randn(1, 3, 64, 64))
    assert embedding.shape == (1, 512)
    assert embedding.norm().item() == pytest.approx(1, abs=1e-5)


def drop(name: str):
    return lambda state: state.pop(name)


def put(name: str, tensor: Tensor):
    return lambda state: state.update({name: tensor})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("backbone._bn1.weight"), r"another network.*1 missing \(backbone\._bn1\.weight\)"),
        (put("layer1.weight", torch.ones(2)), r"1 unexpected \(layer1\.weight\)"),
        (drop("head.weight"), "no tensor head.weight"),
        (put("head.weight", torch.ones(4, 7)), r"head.weight has shape \(4, 7\), expected"),
        (put("backbone._bn1.weight", torch.ones(3)), r"_bn1.weight has shape \(3,\)"),
        (put("backbone._bn1.weight", torch.full((1280,), torch.nan)), "NaN"),
        (put("head.weight", torch.full((2, 1280), torch.inf)), "NaN or infinite"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_by_name(
    checkpoint: Path, tmp_path: Path, change, message: str
) -> None:
    path = altered(checkpoint, tmp_path / "other.safetensors", change)
    with pytest.raises(CheckpointError, match=message) as error:
        load_checkpoint(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path) -> None:
    pickled = tmp_path / "model.pth"
    torch.save({"head.weight": torch.ones(2)}, pickled)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_checkpoint(pickled)
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        load_checkpoint(tmp_path / "absent.safetensors")


def test_a_truncated_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.safetensors"
    short.write_bytes(checkpoint.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"short\.safetensors"):
        load_checkpoint(short)


def test_building_a_network_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    lite0_network(4, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_is_built_frozen_and_in_evaluation_mode(checkpoint: Path) -> None:
    network = build_network(checkpoint=checkpoint)
    assert not any(p.requires_grad for p in network.parameters())
    assert not any(m.training for m in network.modules())


def test_a_user_s_factory_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n"
        "def flat(path='none'):\n"
        "    net = nn.Flatten()\n"
        "    net.path = path\n"
        "    return net\n"
        "def wrong(): return 3\n"
        "def leaves(): raise SystemExit\n"
    )
    (tmp_path / "my_script.py").write_text("import sys\nsys.exit()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert build_network("my_networks:flat").path == "none"
    assert build_network("my_networks:flat", "weights.safetensors").path == "weights.safetensors"
    with pytest.raises(InputError, match="gave a int"):
        build_network("my_networks:wrong")
    for name, error in (("my_networks:leaves", "SystemExit"), ("my_script:net", "SystemExit")):
        with pytest.raises(InputError, match=error):
            build_network(name)
    with pytest.raises(InputError, match="cannot import 'absent'"):
        build_network("my_networks:absent")


def test_an_unknown_network_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown network 'resnet999'; known: efficientnet_lite0"):
        build_network("resnet999")


def test_a_missing_layer_is_refused_with_its_neighbours() -> None:
    network = build_network()
    assert find_layer(network, "features.blocks.15") is network.features.blocks[15]
    with pytest.raises(LayerError, match=r"no layer 'features.blocks.99'.*features.blocks.0"):
        find_layer(network, "features.blocks.99")
