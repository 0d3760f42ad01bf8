"""Networks of the form head(pool(A)): taken apart exactly, all others refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from captum_embed.errors import LayerError
from captum_embed.rivals.linear_embedding import (
    PooledNetwork,
    affine_form,
    average_shares,
    max_shares,
)


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(pool=None, head=None, channels=5):
    """Features, pooling, flatten, head; modules by index."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, channels, 3), nn.ReLU6()),
        nn.AdaptiveAvgPool2d(1) if pool is None else pool,
        nn.Flatten(),
        nn.Linear(channels, 4) if head is None else head,
    ).double()


def embed(net, images, pooling="average", head=None, encoder=None):
    encoder = net if encoder is None else encoder
    return PooledNetwork(encoder, net[0], net[3] if head is None else head, pooling).embed(images)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 3),
    channels=st.integers(1, 4),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    levels=st.integers(1, 30),
    seed=st.integers(0, 99),
)
def test_shares_sum_to_the_pooled_channels(n, channels, height, width, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    # Few levels: maxima that tie, among them zero and negative ones.
    activations = torch.randint(-levels, levels, (n, channels, height, width), generator=generator)
    activations = activations.double()
    torch.testing.assert_close(average_shares(activations).sum((2, 3)), activations.mean((2, 3)))
    shares = max_shares(activations)
    torch.testing.assert_close(shares.sum((2, 3)), activations.amax((2, 3)))
    assert (shares[activations < activations.amax((2, 3), keepdim=True)] == 0).all()


@pytest.mark.parametrize(
    "head",
    [
        nn.Linear(5, 4),
        nn.Linear(5, 4, bias=False),
        nn.BatchNorm1d(5),
        nn.BatchNorm1d(5, affine=False),
        nn.Identity(),
        nn.Sequential(nn.Flatten(), nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)),
        nn.Sequential(
            nn.BatchNorm1d(5), nn.Sequential(nn.Linear(5, 6, bias=False), nn.Dropout()),
            nn.BatchNorm1d(6, affine=False), nn.Identity(),
        ),
    ],
)  # fmt: skip
def test_affine_form_is_the_head(head):
    head.double().train()
    head(normal(64, 5) * 2 + 1)  # running statistics other than 0 and 1
    for parameter in head.parameters():
        parameter.data = normal(*parameter.shape, seed=parameter.numel())
    weight, bias = affine_form(head.eval(), normal(1, 5, 2, 2))
    pooled = normal(7, 5, seed=2)
    torch.testing.assert_close(pooled @ weight.T + bias, head(pooled).detach())
    assert not weight.requires_grad
    assert not bias.requires_grad


def test_no_head_is_the_identity():
    weight, bias = affine_form(None, normal(1, 5, 2, 2))
    assert torch.equal(weight, torch.eye(5, dtype=torch.float64))
    assert torch.equal(bias, torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("pooling", ["average", "max"])
def test_embeddings_are_those_of_the_encoder_before_the_norm(pooling, normalized):
    net = network(nn.AdaptiveMaxPool2d(1) if pooling == "max" else None)
    images = normal(3, 3, 7, 8)

    def encoder(x):
        return nn.functional.normalize(net(x), dim=1) if normalized else net(x)

    embedded = embed(net, images, pooling, encoder=encoder)
    torch.testing.assert_close(embedded.embeddings, net(images).detach())
    torch.testing.assert_close(embedded.vectors.sum((2, 3)), (net(images) - net[3].bias).detach())
    direction = normal(3, 4, seed=2)
    torch.testing.assert_close(
        embedded.along(direction),
        (embedded.vectors * direction[..., None, None]).sum(1, keepdim=True),
    )


def test_single_and_half_precision_are_within_tolerance():
    for dtype in (torch.float32, torch.bfloat16):
        net = network(channels=200).to(dtype)
        assert embed(net, normal(2, 3, 12, 12).to(dtype)).embeddings.dtype == dtype


class TestRefuses:
    @pytest.mark.parametrize(("pool", "is_"), [(nn.AdaptiveMaxPool2d(1), "max"), (None, "average")])
    def test_the_wrong_pooling_and_names_the_right_one(self, pool, is_):
        said = {"max": "average", "average": "max"}[is_]
        with pytest.raises(LayerError, match=f"does not hold.*it does with pooling='{is_}'"):
            embed(network(pool), normal(2, 3, 7, 8), said)

    @pytest.mark.parametrize(
        "pool",
        [
            nn.LPPool2d(3, (5, 6)),
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Sigmoid()),
            nn.Sequential(nn.AvgPool2d(5), nn.AdaptiveAvgPool2d(1)),
        ],
    )
    def test_other_pooling_and_a_nonlinearity_after_it(self, pool):
        net = network(pool)
        with pytest.raises(LayerError, match=r"decomposition does not hold for this network.*\d%"):
            embed(net, normal(2, 3, 7, 8))
        assert not net[0]._forward_hooks

    def test_a_nonlinearity_after_the_head(self):
        net = network()
        with pytest.raises(LayerError, match="does not hold"):
            embed(net, normal(2, 3, 7, 8), encoder=nn.Sequential(net, nn.Tanh()))

    def test_another_head_of_the_same_shape(self):
        with pytest.raises(LayerError, match="the head all that follows"):
            embed(network(), normal(2, 3, 7, 8), head=nn.Linear(5, 4).double())

    def test_a_head_that_is_left_out(self):
        with pytest.raises(LayerError, match=r"\(2, 5\), the encoder returned \(2, 4\)"):
            embed(network(), normal(2, 3, 7, 8), head=nn.Identity())

    def test_a_head_of_other_channels(self):
        with pytest.raises(LayerError, match="takes 7 channels and gets 5"):
            embed(network(), normal(2, 3, 7, 8), head=nn.Linear(7, 4))

    @pytest.mark.parametrize("module", [nn.ReLU(), nn.BatchNorm1d(4).train(), nn.Conv1d(4, 4, 1)])
    def test_a_head_that_is_not_linear(self, module):
        net = network()
        with pytest.raises(LayerError, match=f"holds {type(module).__name__}.*only linear heads"):
            embed(net, normal(2, 3, 7, 8), head=nn.Sequential(net[3], module))

    def test_dropout_in_training_mode(self):
        net = network(head=nn.Sequential(nn.Dropout(0.5), nn.Linear(40, 4)), channels=40)
        with pytest.raises(LayerError, match="evaluation mode"):
            embed(net, normal(4, 3, 7, 8))
        assert embed(net.eval(), normal(4, 3, 7, 8)).shares.shape == (4, 40, 5, 6)

    def test_a_layer_without_positions_and_one_that_runs_twice(self):
        net, images = network(), normal(2, 3, 7, 8)
        with pytest.raises(LayerError, match="choose a layer with positions"):
            PooledNetwork(net, net[3], None, "average").embed(images)
        twice = nn.Sequential(layer := nn.Conv2d(3, 3, 1).double(), layer)
        with pytest.raises(LayerError, match="ran 2 times"):
            PooledNetwork(twice, layer, None, "average").embed(images)

    def test_activations_that_are_not_finite(self):
        with pytest.raises(LayerError, match="NaN"):
            embed(network(), torch.full((1, 3, 7, 8), float("nan"), dtype=torch.float64))
