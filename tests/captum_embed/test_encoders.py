from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captum_embed.encoders import embedding_of, require_evaluation_mode
from captum_embed.errors import InputError, LayerError

EMBEDDINGS = torch.rand(2, 3)
TOKENS = torch.rand(2, 5, 3)


@pytest.mark.parametrize(
    "output",
    [
        EMBEDDINGS,
        (TOKENS, EMBEDDINGS),
        [EMBEDDINGS, None],
        {"embeddings": EMBEDDINGS, "pooler_output": torch.zeros(2, 3)},
        OrderedDict(last_hidden_state=TOKENS, image_embeds=EMBEDDINGS),
        {"last_hidden_state": TOKENS, "pooler_output": EMBEDDINGS},
    ],
)
def test_the_embeddings_are_found(output):
    assert embedding_of(output) is EMBEDDINGS


def test_what_pooling_leaves_is_flattened():
    pooled = EMBEDDINGS[:, :, None, None]
    for output in (pooled, {"last_hidden_state": TOKENS, "pooler_output": pooled}):
        assert torch.equal(embedding_of(output), EMBEDDINGS)
    for whole in (TOKENS, torch.rand(2, 3, 1, 4)):
        assert embedding_of(whole) is whole


@pytest.mark.parametrize(
    "output",
    [
        (EMBEDDINGS, EMBEDDINGS),
        (TOKENS,),
        {"last_hidden_state": TOKENS},
        {"pooler_output": None},
        {},
        None,
        "x",
    ],
)
def test_what_cannot_be_known_is_refused(output):
    with pytest.raises(InputError, match="embedding_func"):
        embedding_of(output)


class Drops(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, training=self.training)


class Inherits(Drops):
    pass


class DropsInside(nn.Module):
    def forward(self, x):
        run = lambda t: F.dropout(t, 0.5, training=self.training)  # noqa: E731
        return run(x)


class Asks(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, training=getattr(self, "training"))  # noqa: B009


class Keeps:
    def __init__(self, network):
        self.networks = {"query": [network]}

    def embed(self, x):
        return self.networks["query"][0](x)


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm2d(2),
        nn.Dropout2d(),
        nn.RReLU(),
        nn.MultiheadAttention(4, 2),
        Drops(),
        Inherits(),
        DropsInside(),
        Asks(),
    ],
)
def test_what_behaves_differently_in_training_is_named(module):
    network = nn.Sequential(nn.Identity(), nn.Sequential(module)).eval()
    require_evaluation_mode(network)
    module.train()
    with pytest.raises(LayerError, match=r"'1\.0'.*eval\(\)"):
        require_evaluation_mode(network)
    assert module.training


def test_a_network_is_seen_in_containers_and_functions_within_functions():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    networks = [network]

    def inner(x):
        return network(x)

    for callable_ in (Keeps(network).embed, lambda x: inner(x), lambda x: networks[0](x)):
        network.train()
        with pytest.raises(LayerError, match="training mode"):
            require_evaluation_mode(callable_)
        network.eval()
        require_evaluation_mode(callable_)


def test_other_modules_may_be_in_training_mode():
    require_evaluation_mode(
        nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.LayerNorm(3), nn.Linear(2, 2), nn.Flatten())
    )
