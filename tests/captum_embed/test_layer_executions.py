import threading
from collections import namedtuple

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from captum_embed.errors import InputError, LayerError
from captum_embed.layer_executions import LayerExecution, layer_gradients, layer_name, run_layer

Named = namedtuple("Named", ["first", "second"])


class Returns(nn.Module):
    """Passes on what ``make`` makes of its input."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


def test_executions_come_in_the_order_in_which_they_ran():
    layer = nn.Identity()
    _, executions = run_layer(
        lambda x: layer(x) + layer(2 * x) + layer(3 * x), layer, (torch.ones(2),)
    )
    assert [e.tensors[0].tolist() for e in executions] == [[1, 1], [2, 2], [3, 3]]


def test_first_execution_is_cut_from_below_and_uncut_on_request():
    layer = nn.Identity()
    x = torch.ones(2, requires_grad=True)
    _, (cut,) = run_layer(lambda x: layer(x * 2), layer, (x,))
    assert cut.tensors[0].is_leaf
    assert cut.tensors[0].requires_grad
    _, (attached,) = run_layer(lambda x: layer(x * 2), layer, (x,), cut=False)
    assert attached.tensors[0].grad_fn is not None


def test_inplace_successor_does_not_alter_the_record():
    layer = nn.Identity()

    def forward(x):
        return torch.relu_(layer(x))

    x = torch.tensor([-1.0, 2.0])
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            _, (execution,) = run_layer(forward, layer, (x.clone(),))
        assert execution.tensors[0].tolist() == [-1.0, 2.0]


@pytest.mark.parametrize("container", [tuple, list, lambda pair: Named(*pair)])
def test_containers_of_tensors_keep_their_type(container):
    layer = Returns(lambda x: container([x * 2, None if container is list else x * 3]))
    seen = []

    def forward(x):
        seen.append(layer(x))
        return seen[-1][0].sum()

    output, (execution,) = run_layer(forward, layer, (torch.ones(3),))
    assert type(seen[0]) is type(container([1, 2]))
    assert len(execution.tensors) == (1 if container is list else 2)
    (gradients,) = layer_gradients(output, [execution], {"allow_unused": True})
    assert gradients[0].tolist() == [1, 1, 1]
    if len(gradients) == 2:
        assert gradients[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("make", [lambda x: {"out": x}, lambda x: x.long(), lambda x: None])
def test_layers_without_a_real_tensor_are_refused(make):
    layer = Returns(make)

    def forward(x):
        layer(x)
        return x.sum()

    with pytest.raises(LayerError, match="floating-point"):
        run_layer(forward, layer, (torch.ones(3),))
    assert not layer._forward_hooks


def test_parts_from_several_devices_are_joined_in_the_order_of_device_ids():
    """DataParallel runs a replica per device and thread; meta tensors play the second device."""
    layer = nn.Identity()

    def forward(x):
        threads = [
            threading.Thread(target=lambda part=part: layer(part)) for part in (x, x.to("meta"))
        ]
        for thread in threads:
            thread.start()
            thread.join()
        return x.sum()

    with pytest.raises(InputError, match="device_ids"):
        run_layer(forward, layer, (torch.ones(3, 2),))


def test_the_parts_of_emulated_devices():
    layer = nn.Identity()

    def forward(x):
        for number in (1, 0, 1, 0):
            layer(torch.ones(2 + number, 2, device=f"cuda:{number}"))
        return x

    def uneven(x):
        layer(torch.ones(2, 2, device="cuda:1"))
        return forward(x)

    with FakeTensorMode():
        _, found = run_layer(forward, layer, (torch.ones(1),), device_ids=[0, 1])
        assert [[len(part[0]) for part in each.shards] for each in found] == [[2, 3], [2, 3]]
        with pytest.raises(LayerError, match="different number of times on each device"):
            run_layer(uneven, layer, (torch.ones(1),), device_ids=[0, 1])


def test_gradients_are_joined_over_shards():
    first, second = (torch.full((n, 2), float(n), requires_grad=True) for n in (2, 3))
    execution = LayerExecution(((first,), (second,)))
    output = torch.cat([first.sum(1) * 2, second.sum(1) * 5])
    ((gradient,),) = layer_gradients(output, [execution])
    assert gradient[:, 0].tolist() == [2, 2, 5, 5, 5]
    assert execution.tensors[0][:, 0].tolist() == [2, 2, 3, 3, 3]


def test_keyword_only_input_cannot_be_explained_at_the_input():
    layer = nn.Identity()

    def forward(x):
        return layer(input=x).sum()

    with pytest.raises(LayerError, match="floating-point"):
        run_layer(forward, layer, (torch.ones(3),), attribute_to_layer_input=True)


def test_layer_name_is_the_dotted_path_or_none():
    model = nn.Sequential(nn.Sequential(nn.ReLU()), nn.ReLU())
    assert layer_name(model, model[0][0]) == "0.0"
    assert layer_name(model, model) == ""
    assert layer_name(model, nn.ReLU()) is None
    assert layer_name(print, model) is None
