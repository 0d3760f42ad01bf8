import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from torch import nn

from benchmarks.networks.build import EmbeddingNetwork, lite0_network
from benchmarks.networks.randomisation import (
    cascade,
    parameter_units,
    randomised,
    rank_correlation,
    similarity,
)
from captum_embed.errors import InputError

MAPS = npst.arrays(np.float64, (5, 4), elements=st.integers(-6, 6))


def tiny() -> EmbeddingNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        features = nn.Sequential(
            nn.Conv2d(3, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Sequential(nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 9, 1)),
        )
        return EmbeddingNetwork(features, nn.Linear(9, 4, bias=False)).eval()


def images() -> list[torch.Tensor]:
    return [torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 3 + 1]


@given(MAPS, MAPS)
def test_rank_correlation_agrees_with_scipy(first: np.ndarray, second: np.ndarray) -> None:
    flat = [np.abs(values).ravel() for values in (first, second)]
    if any(len(set(values)) == 1 for values in flat):
        assert rank_correlation(first, second) == 0
    else:
        expected = spearmanr(*flat).statistic
        assert rank_correlation(first, second) == pytest.approx(expected, abs=1e-9)


def test_similarity_is_that_of_maps_divided_by_their_maximum() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random((20, 24)) * 7, -rng.random((20, 24))
    expected = structural_similarity(first / first.max(), -second / -second.min(), data_range=1)
    assert similarity(first, second) == pytest.approx(expected)
    assert similarity(first, 3 * first) == pytest.approx(1)
    assert similarity(first, np.zeros_like(first)) < 0.2


@pytest.mark.parametrize(
    ("first", "second"),
    [(np.ones((8, 8)), np.ones((8, 9))), (np.ones(8), np.ones(8)), (np.full((8, 8), np.nan),) * 2],
)
def test_maps_that_cannot_be_compared_are_refused(first: np.ndarray, second: np.ndarray) -> None:
    for compare in (rank_correlation, similarity):
        with pytest.raises(InputError):
            compare(first, second)


def test_maps_too_small_for_ssim_are_refused() -> None:
    with pytest.raises(InputError, match="7 x 7"):
        similarity(np.ones((6, 9)), np.ones((6, 9)))


def test_stages_go_down_from_the_head() -> None:
    units = ["features.0", "features.1", "features.3", "head"]
    assert parameter_units(tiny()) == units
    assert cascade(tiny()) == {
        "head": ("head",),
        "last block": ("features.3", "head"),
        "all": tuple(units),
    }


def test_stages_of_lite0_are_its_blocks() -> None:
    stages = cascade(lite0_network(8, pretrained=False))
    last = ("features.blocks.15", "features.last.0", "features.last.1")
    assert stages["head"] == ("head",)
    assert stages["last block"] == (*last, "head")
    assert len(stages["all"]) == 2 + 16 + 2 + 1
    assert cascade(lite0_network(pretrained=False))["last block"] == last


def test_a_network_without_a_head_or_blocks_has_fewer_stages() -> None:
    assert cascade(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())) == {"all": ("0",)}
    with pytest.raises(InputError, match="no parameters"):
        cascade(nn.ReLU())


def test_only_the_chosen_parameters_change_and_the_network_stays() -> None:
    network = tiny()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    copied = randomised(network, ("features.3", "head"), images())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not copied.training
    assert not any(module.training for module in copied.modules())
    changed = {n for n, value in copied.state_dict().items() if not torch.equal(value, before[n])}
    # The second normalisation's factors and offsets were 1 and 0 before.
    norm = {
        f"features.3.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    convolutions = {f"features.3.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")}
    assert changed == {"head.weight"} | norm | convolutions


def test_new_weights_depend_on_the_seed_alone_and_are_those_of_he() -> None:
    wide = nn.Sequential(nn.Conv2d(8, 400, 3), nn.Linear(5, 5))
    one, again, other = (convolution(wide, ["0"], seed) for seed in (1, 1, 2))
    together = convolution(wide, ["0", "1"], 1)
    assert torch.equal(one.weight, again.weight)
    assert torch.equal(one.weight, together.weight)
    assert not torch.equal(one.weight, other.weight)
    assert float(one.weight.detach().std()) == pytest.approx((2 / 72) ** 0.5, rel=0.02)
    assert one.bias is not None
    assert float(one.bias.detach().abs().max()) == 0


def convolution(network: nn.Module, units: list[str], seed: int) -> nn.Conv2d:
    module = randomised(network, units, [], seed=seed).get_submodule("0")
    assert isinstance(module, nn.Conv2d)
    return module


def test_new_normalisations_have_the_statistics_of_the_images() -> None:
    network = tiny()
    (batch,) = images()
    copied = randomised(network, parameter_units(network), [batch])
    convolved = copied.get_submodule("features.0")(batch)
    norm, before = (of.get_submodule("features.1") for of in (copied, network))
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(before, nn.BatchNorm2d)
    torch.testing.assert_close(norm.running_mean, convolved.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, convolved.var((0, 2, 3)))
    assert norm.momentum == before.momentum


def test_a_unit_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match=r"no features\.9"):
        randomised(tiny(), ["features.9"], [])
