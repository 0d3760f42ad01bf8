import inspect

import pytest
import torch
import torchvision
from captum.attr import NoiseTunnel
from torch import nn

from captum_embed import EmbeddingLayerGradCam, SimilarityForward, TripletForward, WeightBank
from captum_embed.errors import BankMismatchError, InputError, LayerError
from captum_embed.recipes import EXPLAIN, LOCALIZE, PAPER, TRANSFER


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 60, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.fixture
def bank():
    generator = torch.Generator().manual_seed(1)
    embeddings, weights = torch.randn(2, 80, 60, generator=generator)
    return WeightBank(embeddings, weights)


QUERIES = torch.randn(4, 3, 8, 9, generator=torch.Generator().manual_seed(2))


def nearest(encoder, bank, k):
    distances = torch.cdist(encoder(QUERIES).detach(), bank.embeddings)
    return bank.weights[distances.argsort(dim=1)[:, :k]]


def test_localize_averages_the_sizes_of_the_weights_of_its_neighbours(encoder, bank):
    grad_cam = LOCALIZE.grad_cam(TripletForward(encoder), encoder[0], weight_bank=bank)
    weights = nearest(encoder, bank, LOCALIZE.num_neighbors).abs().mean(1)
    torch.testing.assert_close(grad_cam.grad_weights(QUERIES), weights)
    expected = LOCALIZE.map_func(weights, encoder[0](QUERIES).detach())
    torch.testing.assert_close(grad_cam.attribute(QUERIES), expected)


def test_paper_keeps_the_fifty_largest_weights_of_the_nearest_entry(encoder, bank):
    grad_cam = PAPER.grad_cam(TripletForward(encoder), encoder[0], weight_bank=bank)
    weights = nearest(encoder, bank, 1)[:, 0]
    smallest = weights.argsort(dim=1)[:, :10]
    kept = weights.scatter(1, smallest, 0.0)
    expected = (kept[:, :, None, None] * encoder[0](QUERIES).detach()).sum(1, keepdim=True)
    torch.testing.assert_close(grad_cam.attribute(QUERIES), expected)


def test_a_bank_smaller_than_the_number_of_neighbours_is_averaged_whole(encoder, bank):
    small = WeightBank(bank.embeddings[:7], bank.weights[:7])
    grad_cam = LOCALIZE.grad_cam(TripletForward(encoder), encoder[0], weight_bank=small)
    expected = small.weights.abs().mean(0).expand(4, -1)
    torch.testing.assert_close(grad_cam.grad_weights(QUERIES), expected)


def test_transfer_turns_round_with_the_weights_of_its_bank(encoder, bank):
    turned = WeightBank(bank.embeddings, -bank.weights)
    maps = [
        TRANSFER.grad_cam(TripletForward(encoder), encoder[0], weight_bank=one).attribute(QUERIES)
        for one in (bank, turned)
    ]
    assert (maps[0] > 0).any()
    assert (maps[0] < 0).any()
    torch.testing.assert_close(maps[0], -maps[1])


def test_number_of_neighbours_can_be_overridden(encoder, bank):
    grad_cam = LOCALIZE.grad_cam(TripletForward(encoder), encoder[0], weight_bank=bank)
    torch.testing.assert_close(
        grad_cam.grad_weights(QUERIES, num_neighbors=2), nearest(encoder, bank, 2).abs().mean(1)
    )


def test_noise_tunnel_runs_a_recipe(encoder, bank):
    grad_cam = LOCALIZE.grad_cam(TripletForward(encoder), encoder[0], weight_bank=bank)
    tunnel = NoiseTunnel(grad_cam)
    actual = tunnel.attribute(QUERIES, nt_samples=2, stdevs=0.0)
    torch.testing.assert_close(actual, grad_cam.attribute(QUERIES))


def test_the_drop_in_itself_is_unchanged_by_recipes(encoder, bank):
    parameters = inspect.signature(EmbeddingLayerGradCam).parameters
    assert parameters["num_neighbors"].default == 1
    plain = EmbeddingLayerGradCam(TripletForward(encoder), encoder[0], weight_bank=bank)
    weights = nearest(encoder, bank, 1)[:, 0]
    expected = (weights[:, :, None, None] * encoder[0](QUERIES).detach()).sum(1, keepdim=True)
    torch.testing.assert_close(plain.attribute(QUERIES), expected)


def test_a_recipe_refuses_what_its_class_refuses(encoder, bank):
    grad_cam = LOCALIZE.grad_cam(TripletForward(encoder), encoder[0], weight_bank=bank)
    with pytest.raises(InputError, match="target"):
        grad_cam.attribute(QUERIES, target=0)
    other = WeightBank(bank.embeddings, bank.weights, metadata={"layer": "2"})
    with pytest.raises(BankMismatchError, match="layer '2'"):
        LOCALIZE.grad_cam(TripletForward(encoder), encoder[0], weight_bank=other)


def test_a_recipe_without_a_bank_maps_the_gradient_of_the_match(encoder):
    references = torch.randn(3, 60)
    forward = SimilarityForward(encoder, references)
    weights = EmbeddingLayerGradCam(forward, encoder[0]).grad_weights(QUERIES)
    activations = encoder[0](QUERIES).detach()
    for recipe, filtered in ((EXPLAIN, weights), (LOCALIZE, weights.abs())):
        actual = recipe.grad_cam(forward, encoder[0]).attribute(QUERIES)
        torch.testing.assert_close(actual, recipe.map_func(filtered, activations))


@pytest.mark.parametrize(
    ("name", "last_activation", "last_block"),
    [
        ("resnet18", "layer4", "layer4"),
        ("efficientnet_b0", "features", "features.7"),
        ("mobilenet_v3_small", "features", "features.11"),
        ("vgg11", "features", "features"),
        ("regnet_y_400mf", "trunk_output", "trunk_output"),
    ],
)
def test_layers_of_known_families(name, last_activation, last_block):
    network = torchvision.models.get_model(name, weights=None)
    wrapped = nn.Sequential(network, nn.Identity())
    for encoder in (network, wrapped):
        layers = [recipe.layer_of(encoder) for recipe in (EXPLAIN, LOCALIZE)]
        assert layers == [network.get_submodule(last_activation), network.get_submodule(last_block)]


def test_the_layer_of_an_unknown_network_is_not_guessed(encoder):
    with pytest.raises(LayerError, match=r"cannot be told.*no known family; give the last"):
        EXPLAIN.layer_of(encoder)
    two = nn.ModuleDict({"a": nn.Module(), "b": nn.Module()})
    for branch in two.values():
        branch.features = nn.Conv2d(3, 4, 3)
    with pytest.raises(LayerError, match=r"a\.features.*b\.features"):
        LOCALIZE.layer_of(two)
