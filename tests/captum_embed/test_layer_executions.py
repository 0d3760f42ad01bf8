import threading
from collections import namedtuple

import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from captum_embed import EmbeddingLayerGradCam
from captum_embed.errors import InputError, LayerError
from captum_embed.layer_executions import LayerExecution, layer_gradients, layer_name, run_layer

IMAGE = torch.rand(1, 3, 8, 7, generator=torch.Generator().manual_seed(0))

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
    layer = nn.ReLU()
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


class Skips(nn.Module):
    """A connection past the layer; the layer may change its input in place, or return it."""

    def __init__(self, layer, uses_output=True):
        super().__init__()
        self.below, self.layer, self.above = nn.Conv2d(3, 4, 3), layer, nn.Conv2d(4, 4, 3)
        self.uses_output = uses_output

    def forward(self, x):
        features = self.below(x)
        output = self.layer(features)
        combined = self.above(output if self.uses_output else features) + features[..., 1:-1, 1:-1]
        return combined.square().mean((1, 2, 3))


def skipping():
    return [
        (Skips(nn.ReLU(inplace=True)), False),
        (Skips(nn.ReLU(inplace=True), uses_output=False), False),
        (Skips(nn.Identity()), False),
        (Skips(nn.Dropout()).eval(), False),
        (Skips(nn.Conv2d(4, 4, 1)), False),
        (Skips(nn.Conv2d(4, 4, 1)), True),
    ]


@pytest.mark.parametrize(("network", "at_input"), skipping())
@pytest.mark.parametrize("frozen", [False, True])
def test_connections_past_the_layer_count_as_in_captum(network, at_input, frozen):
    network.requires_grad_(not frozen)
    images = torch.randn(2, 3, 8, 7, generator=torch.Generator().manual_seed(0))
    expected = LayerGradCam(network, network.layer).attribute(
        images, attribute_to_layer_input=at_input
    )
    for differentiable in (False, True):
        maps = EmbeddingLayerGradCam(network, network.layer).attribute(
            images,
            attribute_to_layer_input=at_input,
            grad_kwargs={"create_graph": differentiable},
        )
        torch.testing.assert_close(maps.detach(), expected.detach())


def test_the_graph_below_an_activation_in_place_is_freed():
    for layer, freed in ((nn.ReLU(inplace=True), True), (nn.Identity(), False)):
        _, (execution,) = run_layer(Skips(layer), layer, (torch.rand(2, 3, 8, 7),))
        assert execution.tensors[0].is_leaf is freed
        assert execution.tensors[0].requires_grad


def test_what_the_network_changes_in_place_later_is_refused():
    layer, image = nn.Conv2d(3, 3, 1), torch.rand(2, 3, 5, 5)

    def forward(x):
        features = x * 2
        features += layer(features)
        return features.square().mean((1, 2, 3))

    with pytest.raises(LayerError, match="changed in place by the network later"):
        EmbeddingLayerGradCam(forward, layer).attribute(image, attribute_to_layer_input=True)
    assert EmbeddingLayerGradCam(forward, layer).attribute(image).shape == (2, 1, 5, 5)


def test_inputs_that_are_the_layers_own_stay_as_they_are():
    layer = nn.Conv2d(3, 4, 3)
    first, second = torch.rand(2, 2, 3, 6, 5)

    def forward(x, y):
        return (layer(x).relu() * layer(y).relu()).mean((1, 2, 3))

    def by_itself(x):
        return forward(x, second)

    maps = EmbeddingLayerGradCam(by_itself, layer, execution=0).attribute(
        first, attribute_to_layer_input=True
    )
    for execution, explained in ((0, first), (1, second)):
        one = EmbeddingLayerGradCam(forward, layer, execution=execution).attribute(
            first, additional_forward_args=second, attribute_to_layer_input=True
        )
        assert not first.requires_grad
        assert not second.requires_grad
        x = explained.clone().requires_grad_()
        value = forward(x, second) if execution == 0 else forward(first, x)
        weights = torch.autograd.grad(value.sum(), x)[0].mean((2, 3), keepdim=True)
        torch.testing.assert_close(one, (weights * explained).sum(1, keepdim=True))
        torch.testing.assert_close(one, maps) if execution == 0 else None


def test_tensors_of_inference_mode_are_explained_like_others():
    layer, image = nn.Conv2d(3, 4, 3), torch.rand(2, 3, 6, 5)
    with torch.inference_mode():
        same = image.clone()
    for inputs, others in ((image, same), ((image, image), (same, same))):

        def forward(*images):
            return sum(layer(each).square().mean((1, 2, 3)) for each in images)

        grad_cam = EmbeddingLayerGradCam(forward, layer)
        torch.testing.assert_close(grad_cam.attribute(others), grad_cam.attribute(inputs))
    for at_input in (False, True):
        with torch.inference_mode(), pytest.raises(InputError, match="inference_mode"):
            EmbeddingLayerGradCam(forward, layer).attribute(
                image, attribute_to_layer_input=at_input
            )


@pytest.mark.parametrize("make", [torch.jit.script, lambda net: torch.jit.trace(net, IMAGE)])
def test_layers_of_torch_jit_are_refused(make):
    network = make(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    layer = next(network.children())
    with pytest.raises(LayerError, match=r"torch\.jit"):
        run_layer(network, layer, (IMAGE,))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_are_right_or_refused(reentrant):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))

    def forward(x, run):
        return run(network, x).square().mean((1, 2, 3))

    def in_checkpoint(x):
        return forward(x, lambda *all: checkpoint(*all, use_reentrant=reentrant))

    grad_cam = EmbeddingLayerGradCam(in_checkpoint, network[1])
    if reentrant:
        with pytest.raises(InputError, match="checkpoint"):
            grad_cam.attribute(IMAGE)
    else:
        plain = EmbeddingLayerGradCam(lambda x: forward(x, lambda net, x: net(x)), network[1])
        torch.testing.assert_close(grad_cam.attribute(IMAGE), plain.attribute(IMAGE))


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
    """Of hpu and without gradients: torch 2.3 asks for a driver of cuda, even of fake tensors."""
    layer = nn.Identity()

    def forward(x):
        for number in (1, 0, 1, 0):
            layer(torch.ones(2 + number, 2, device=f"hpu:{number}"))
        return x

    def uneven(x):
        layer(torch.ones(2, 2, device="hpu:1"))
        return forward(x)

    with FakeTensorMode(), torch.no_grad():
        _, executions = run_layer(forward, layer, (torch.ones(1),), device_ids=[0, 1])
        assert [[len(part[0]) for part in each.shards] for each in executions] == [[2, 3], [2, 3]]
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
