import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.methods import METHODS, MethodUnavailableError, Query, Subject
from benchmarks.methods.match import Match


def matrix_of(linear: nn.Module, shape: torch.Size) -> np.ndarray:
    """A linear module without bias as a matrix (outputs, inputs)."""
    size = int(np.prod(shape))
    with torch.no_grad():
        columns = linear(torch.eye(size, dtype=torch.float64).reshape(size, *shape)).flatten(1)
    return columns.T.numpy()


def shared_out(relevance: np.ndarray, inputs: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """R_i = sum over j of x_i w_ij / z_j R_j: the rule, by its definition."""
    totals = matrix @ inputs
    totals = totals + np.where(totals >= 0, 1e-9, -1e-9)
    return inputs * (matrix.T @ (relevance / totals))


@pytest.fixture
def small_query(bias_free_subject: Subject, tiny_query: Query) -> Query:
    """An image small enough for dense matrices."""
    return Query(tiny_query.image[..., ::3, ::3], tiny_query.references)


def relevances_by_definition(subject: Subject, query: Query) -> tuple[np.ndarray, np.ndarray]:
    """Of the layer's activations, and of the pixels."""
    network = copy.deepcopy(subject.network).double()
    features = network.features
    with torch.no_grad():
        image = query.image.double()
        stem = features.stem(image)
        pooled = features.pool(stem.relu())
        block = features.block(pooled)
        total = block.relu() + pooled
        last = features.last(total)
        top = last.relu().clamp(max=1.5)
        embedding = network(image)
        references, foils = query.references
        weight = (references - foils).double().mean(1)
        numbers = [x[0].flatten().numpy() for x in (image, stem.relu(), pooled, total, top)]
        pixels, after_stem, before_block, after_block, at_top = numbers
    of_embedding = (weight * embedding)[0].numpy()
    head = network.head.weight.detach().double().numpy()
    averages = top.mean((2, 3))[0].numpy()
    of_averages = shared_out(of_embedding, averages, head)
    pool = matrix_of(nn.AdaptiveAvgPool2d(1), top.shape[1:])
    of_layer = shared_out(of_averages, at_top, pool)
    of_sum = shared_out(of_layer, after_block, matrix_of(features.last, total.shape[1:]))
    added = block.relu()[0].flatten().numpy()
    whole = np.where(added + before_block == 0, 1, added + before_block)
    of_branch, of_skip = of_sum * added / whole, of_sum * before_block / whole
    convolution = matrix_of(features.block, pooled.shape[1:])
    of_pooled = of_skip + shared_out(of_branch, before_block, convolution)
    averaging = matrix_of(features.pool, stem.shape[1:])
    of_stem = shared_out(of_pooled, after_stem, averaging)
    of_pixels = shared_out(of_stem, pixels, matrix_of(features.stem, image.shape[1:]))
    return of_layer.reshape(top.shape), of_pixels.reshape(image.shape)


def test_relevance_is_that_of_the_rule_s_definition(
    bias_free_subject: Subject, small_query: Query
) -> None:
    of_layer, of_pixels = relevances_by_definition(bias_free_subject, small_query)
    layer_map = METHODS["layer_lrp"].customary(
        METHODS["layer_lrp"].build(bias_free_subject)(small_query)
    )
    np.testing.assert_allclose(layer_map[0, 0], of_layer[0].sum(0), rtol=1e-3, atol=1e-5)
    pixel_map = METHODS["lrp"].customary(METHODS["lrp"].build(bias_free_subject)(small_query))
    expected = np.abs(of_pixels[0]).sum(0)
    assert expected.max() > 1e-3
    np.testing.assert_allclose(pixel_map[0, 0], expected, rtol=1e-2, atol=1e-4)


def test_without_biases_relevance_is_conserved_down_to_the_layer(
    bias_free_subject: Subject, tiny_query: Query
) -> None:
    signed = METHODS["layer_lrp"].customary(
        METHODS["layer_lrp"].build(bias_free_subject)(tiny_query)
    )
    references, foils = tiny_query.references
    with torch.no_grad():
        embedding = bias_free_subject.network(tiny_query.image)
    expected = ((references - foils).mean(1) * embedding).sum()
    torch.testing.assert_close(signed.sum(), expected, rtol=1e-3, atol=1e-5)


def test_an_operation_without_a_rule_is_named() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, image: Tensor) -> Tensor:
            return F.softmax(self.conv(image), dim=1).mean((2, 3))

    network = Pooled()
    subject = Subject(Match(network), network.conv)
    for name in ("lrp", "layer_lrp"):
        with pytest.raises(MethodUnavailableError, match="no relevance rule for mean, softmax"):
            METHODS[name].build(subject)


def test_nothing_is_left_on_the_modules(tiny_subject: Subject, tiny_query: Query) -> None:
    network = tiny_subject.network
    before = {module: set(vars(module)) for module in network.modules()}
    METHODS["lrp"].customary(METHODS["lrp"].build(tiny_subject)(tiny_query))
    assert {module: set(vars(module)) for module in network.modules()} == before
