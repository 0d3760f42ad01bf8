"""Rows of each input on emulated devices: shards as DataParallel makes them, on one CPU."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from captum_embed import PairForward, TripletForward
from captum_embed.errors import InputError, LayerError
from captum_embed.input_executions import executions_of_inputs
from captum_embed.layer_executions import LayerExecution, layer_gradients

LAYER = nn.Identity()


class Parallel(nn.Module):
    """What is known of a DataParallel from outside."""

    def __init__(self, module, devices):
        super().__init__()
        self.module = module
        self.device_ids = list(range(devices))


def numbered(k, n):
    """k inputs of n examples; every row holds its input and its number."""
    return tuple(torch.tensor([[i, j] for j in range(n)]).float() for i in range(k))


def sharded(tensor, devices):
    return LayerExecution(tuple((part,) for part in tensor.chunk(devices)))


triplet = TripletForward(nn.Identity())


@given(n=st.integers(1, 9), devices=st.integers(1, 4))
def test_data_parallel_around_the_forward_divides_first_and_joins_later(n, devices):
    inputs = numbered(3, n)
    parts = zip(*(one.chunk(devices) for one in inputs), strict=True)
    whole = LayerExecution(tuple((torch.cat(part),) for part in parts))
    actual = executions_of_inputs([whole], Parallel(triplet, devices), LAYER, inputs)
    for one, expected in zip(actual, inputs, strict=True):
        torch.testing.assert_close(one.tensors[0], expected)


@given(n=st.integers(1, 9), devices=st.integers(1, 4))
def test_data_parallel_inside_the_forward_divides_what_was_joined(n, devices):
    inputs = numbered(3, n)
    whole = sharded(torch.cat(inputs), devices)
    actual = executions_of_inputs([whole], triplet, LAYER, inputs)
    for one, expected in zip(actual, inputs, strict=True):
        torch.testing.assert_close(one.tensors[0], expected)


@settings(max_examples=40)
@given(
    n=st.integers(1, 5), devices=st.integers(1, 3), k=st.integers(1, 3), repeats=st.integers(1, 3)
)
def test_one_run_per_input_takes_the_execution_that_is_named(n, devices, k, repeats):
    inputs = numbered(k, n)
    executions = [sharded(one + 100 * r, devices) for one in inputs for r in range(repeats)]
    if repeats > 1:
        with pytest.raises(LayerError, match="execution=0"):
            executions_of_inputs(executions, print, LAYER, inputs)
    for chosen in range(-repeats, repeats):
        actual = executions_of_inputs(executions, print, LAYER, inputs, execution=chosen)
        for one, expected in zip(actual, inputs, strict=True):
            torch.testing.assert_close(one.tensors[0], expected + 100 * (chosen % repeats))
    for outside in (-repeats - 1, repeats):
        with pytest.raises(InputError, match="expected"):
            executions_of_inputs(executions, print, LAYER, inputs, execution=outside)


def test_on_several_devices_an_unknown_joining_is_refused():
    inputs = numbered(2, 4)
    with pytest.raises(LayerError, match="before or after"):
        executions_of_inputs([sharded(torch.cat(inputs), 2)], print, LAYER, inputs)


def test_rows_of_a_stated_batch_must_be_those_of_the_images():
    inputs = numbered(2, 4)
    windows = LayerExecution(((torch.zeros(16, 2),),))
    with pytest.raises(LayerError, match="which rows belong to which is unknown"):
        executions_of_inputs([windows], PairForward(nn.Identity()), LAYER, inputs)
    odd = LayerExecution(((torch.zeros(5, 2),), (torch.zeros(3, 2),)))
    with pytest.raises(LayerError, match="as many examples"):
        executions_of_inputs([odd], Parallel(PairForward(nn.Identity()), 2), LAYER, inputs)


def test_an_input_that_is_an_embedding_is_refused():
    images, embedding = torch.zeros(2, 3, 4, 4), torch.zeros(2, 5)
    whole = LayerExecution(((torch.zeros(2, 3),),))
    with pytest.raises(LayerError, match="input 1 is no image"):
        executions_of_inputs([whole], PairForward(nn.Identity()), LAYER, (images, embedding))


def test_gradients_are_those_of_the_rows():
    inputs = numbered(3, 4)
    whole = torch.cat(inputs).requires_grad_()
    parts = [whole[:6], whole[6:]]
    factor = torch.arange(12.0)
    output = torch.cat([p.sum(1) * f for p, f in zip(parts, factor.split(6), strict=True)])
    executions = executions_of_inputs(
        [LayerExecution(tuple((p,) for p in parts))], triplet, LAYER, inputs
    )
    gradients = layer_gradients(output, executions)
    for (actual,), expected in zip(gradients, factor.split(4), strict=True):
        torch.testing.assert_close(actual, expected[:, None].expand(4, 2))
