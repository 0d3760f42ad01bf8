import copy

import pytest
import torch
from torch import nn

from captum_embed.errors import InputError
from captum_embed.weight_bank import encoder_fingerprint


def network() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.25)
    return model


class Compiled(nn.Module):
    """What torch.compile returns, without its ten seconds."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module


def test_equal_weights_have_equal_fingerprints_whatever_the_wrapper() -> None:
    expected = encoder_fingerprint(network())
    assert encoder_fingerprint(network().eval()) == expected
    assert encoder_fingerprint(copy.deepcopy(network())) == expected
    assert encoder_fingerprint(nn.DataParallel(network())) == expected
    assert encoder_fingerprint(nn.DataParallel(Compiled(network()))) == expected


def test_any_change_of_a_value_name_shape_dtype_or_buffer_changes_it() -> None:
    changed = [network() for _ in range(6)]
    with torch.no_grad():
        changed[0][0].weight[3, 2, 1, 0] += 1e-7  # type: ignore[index, operator]
    changed[1][1].running_mean[2] = 1  # type: ignore[index, operator]
    changed[2] = nn.Sequential(*changed[2], nn.Identity(), nn.Linear(1, 1))
    changed[3][2].weight.data = changed[3][2].weight.data.T  # type: ignore[operator, union-attr]
    changed[4] = changed[4].to(torch.bfloat16)
    changed[5] = nn.Sequential(nn.Identity(), *changed[5])
    fingerprints = {encoder_fingerprint(model) for model in (network(), *changed)}
    assert len(fingerprints) == 7


def test_equal_bytes_of_another_dtype_or_shape_change_it() -> None:
    def of_buffer(tensor: torch.Tensor) -> str:
        module = nn.Module()
        module.register_buffer("table", tensor)
        return encoder_fingerprint(module)

    zeros = torch.zeros(6)
    assert len({of_buffer(zeros), of_buffer(zeros.int()), of_buffer(zeros.view(2, 3))}) == 3
    assert of_buffer(zeros) == of_buffer(torch.zeros(6))
    assert len(of_buffer(torch.tensor(1.0))) == 64


def test_bytes_are_hashed_in_order() -> None:
    model = network()
    before = encoder_fingerprint(model)
    weight = model[2].weight.data
    weight[0, 0], weight[0, 1] = 1.0, 2.0  # type: ignore[index, operator]
    one = encoder_fingerprint(model)
    weight[0, 0], weight[0, 1] = 2.0, 1.0  # type: ignore[index, operator]
    assert len({before, one, encoder_fingerprint(model)}) == 3


def test_refuses_parameters_without_a_value() -> None:
    with pytest.raises(InputError, match="is not initialised; run the network once"):
        encoder_fingerprint(nn.LazyLinear(3))
