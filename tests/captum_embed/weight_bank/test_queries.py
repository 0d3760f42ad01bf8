import copy
import gc
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

from captum_embed import encoders
from captum_embed.errors import BankMismatchError, InputError
from captum_embed.weight_bank import WeightBank, encoder_fingerprint
from captum_embed.weight_bank.queries import require_compatible


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


def bank_with(**metadata: str) -> WeightBank:
    return WeightBank(torch.eye(2), torch.eye(2), metadata=metadata)


def forward_that(explains: Any) -> nn.Module:
    forward = nn.Identity()
    forward.explains = explains
    return forward


@pytest.mark.parametrize(
    ("metadata", "explains", "options"),
    [
        ({"explains": "match"}, "match", {}),
        ({"explains": "loss"}, "loss", {}),
        ({}, "match", {}),
        ({"explains": "match"}, None, {}),
        ({"layer": "0"}, "match", {}),
        ({"layout": "tokens", "prefix_tokens": "1"}, None, {"layout": "tokens"}),
        (
            {"layout": "tokens", "prefix_tokens": "1"},
            None,
            {"layout": "tokens", "prefix_tokens": 1},
        ),
        ({"layout": "channels_first"}, None, {"prefix_tokens": 0}),
    ],
)
def test_a_bank_that_fits_passes_without_a_word(
    metadata: dict[str, str], explains: Any, options: dict[str, Any]
) -> None:
    model = network()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        require_compatible(
            bank_with(**metadata), forward_that(explains), model, model[0], **options
        )


@pytest.mark.parametrize(
    ("metadata", "explains", "options", "message"),
    [
        ({"explains": "loss"}, "match", {}, r"explains the loss.* the match.*explains='loss'"),
        ({"explains": "match"}, "loss", {}, "explains the match"),
        ({"layer": "1"}, "match", {}, "built for layer '1', and the layer given is '0'"),
        ({"layer": ""}, "match", {}, "built for layer '', and the layer given is '0'"),
        ({"layer": "0"}, None, {"layout": "tokens"}, "layout 'channels_first', .* is 'tokens'"),
        ({"layout": "tokens"}, None, {}, "layout 'tokens', .* is 'channels_first'"),
        (
            {"layout": "tokens", "prefix_tokens": "1"},
            None,
            {"layout": "tokens", "prefix_tokens": 5},
            "prefix_tokens=1, and given is 5",
        ),
        (
            {"layout": "tokens"},
            None,
            {"layout": "tokens", "prefix_tokens": 1},
            "prefix_tokens=0, and given is 1",
        ),
    ],
)
def test_a_bank_of_something_else_is_refused(
    metadata: dict[str, str], explains: Any, options: dict[str, Any], message: str
) -> None:
    model = network()
    for forward in (forward_that(explains), nn.DataParallel(forward_that(explains))):
        with pytest.raises(BankMismatchError, match=message):
            require_compatible(bank_with(**metadata), forward, model, model[0], **options)


def test_the_fingerprint_is_computed_once_per_network_and_again_when_it_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, computed = network(), []
    bank = bank_with(encoder_fingerprint=encoder_fingerprint(model))
    real = encoder_fingerprint
    monkeypatch.setattr(
        encoders, "encoder_fingerprint", lambda module: computed.append(1) or real(module)
    )

    def check(other: nn.Module = model) -> int:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            require_compatible(bank, nn.Identity(), other, other, layout="channels_first")
        return len(caught)

    assert [check() for _ in range(5)] == [0] * 5
    assert len(computed) == 1
    assert check(nn.DataParallel(model)) == 0
    assert len(computed) == 1
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model[0].weight.mul_(2)  # type: ignore[operator, union-attr]
    assert check() == 1
    model.load_state_dict(before)
    assert check() == 0
    model[2].weight.data.add_(1)  # type: ignore[operator, union-attr]
    assert check() == 1
    model[2].weight.data = before["2.weight"].clone()  # type: ignore[union-attr]
    assert check() == 0
    model[1].running_var.fill_(3)  # type: ignore[operator, union-attr]
    assert check() == 1
    assert len(computed) == 6


def test_threads_agree_on_a_fingerprint_and_no_network_is_kept_alive() -> None:
    model = network()
    bank = bank_with(encoder_fingerprint=encoder_fingerprint(model))
    arguments = [bank, nn.Identity(), model, model]
    with warnings.catch_warnings(), ThreadPoolExecutor(8) as pool:
        warnings.simplefilter("error")
        list(pool.map(require_compatible, *[[each] * 40 for each in arguments]))
    alive = weakref.ref(model)
    del model, arguments
    gc.collect()
    assert alive() is None
