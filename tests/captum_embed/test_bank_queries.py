"""EmbeddingLayerGradCam with a weight bank: borrowed weights, and queries that are refused."""

import warnings
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn

from captum_embed import EmbeddingLayerGradCam, TripletForward, WeightBank, recipes
from captum_embed.errors import BankMismatchError, InputError, LayerError


class Frames(nn.Module):
    """Embeds clips (N, T, C, H, W) by the mean over their frames."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, clips):
        return self.conv(clips.flatten(0, 1)).mean((2, 3)).unflatten(0, clips.shape[:2]).mean(1)


class Holder:
    """An object with a network in it that is no module itself."""

    def __init__(self, network):
        self.network = network

    def embed(self, images):
        return self.network(images)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.fixture
def bank():
    generator = torch.Generator().manual_seed(1)
    embeddings, weights = torch.randn(2, 30, 4, generator=generator)
    return WeightBank(
        embeddings, weights, labels=torch.arange(30) % 3, keys=[f"k{i}" for i in range(30)]
    )


QUERIES = torch.randn(3, 3, 7, 8, generator=torch.Generator().manual_seed(2))


def nearest(encoder, bank, k):
    return torch.cdist(encoder(QUERIES).detach(), bank.embeddings).argsort(dim=1)[:, :k]


def test_the_constructor_s_number_of_neighbours_is_the_default(encoder, bank):
    grad_cam = EmbeddingLayerGradCam(
        TripletForward(encoder), encoder[1], weight_bank=bank, num_neighbors=4
    )
    for given, k in ((None, 4), (2, 2)):
        weights = bank.weights[nearest(encoder, bank, k)].mean(1)
        torch.testing.assert_close(grad_cam.grad_weights(QUERIES, num_neighbors=given), weights)
        expected = (weights[..., None, None] * encoder[:2](QUERIES)).sum(1, keepdim=True)
        torch.testing.assert_close(
            grad_cam.attribute(QUERIES, num_neighbors=given), expected.detach()
        )


def test_further_arguments_reach_the_embedding_function(encoder, bank):
    def embed(images, factor):
        return factor * encoder(images)

    grad_cam = EmbeddingLayerGradCam(
        TripletForward(encoder), encoder[1], weight_bank=bank, embedding_func=embed
    )
    nearest_of_opposite = torch.cdist(-encoder(QUERIES).detach(), bank.embeddings).argmin(1)
    weights = grad_cam.grad_weights(QUERIES, additional_forward_args=-1)
    assert torch.equal(weights, bank.weights[nearest_of_opposite])
    neighbors = grad_cam.neighbors(QUERIES, additional_forward_args=-1)
    assert torch.equal(neighbors.indices[:, 0], nearest_of_opposite)


def test_neighbors_names_whose_weights_were_borrowed(encoder, bank):
    grad_cam = EmbeddingLayerGradCam(
        TripletForward(encoder), encoder[1], weight_bank=bank, num_neighbors=3
    )
    neighbors = grad_cam.neighbors(QUERIES)
    expected = nearest(encoder, bank, 3)
    assert torch.equal(neighbors.indices, expected)
    assert neighbors.keys == [[f"k{i}" for i in row] for row in expected.tolist()]
    assert torch.equal(neighbors.labels, expected % 3)
    distances = torch.cdist(encoder(QUERIES).detach(), bank.embeddings).sort(dim=1).values
    torch.testing.assert_close(neighbors.distances, distances[:, :3])
    one, other = grad_cam.neighbors((QUERIES[:1], QUERIES[1:]), num_neighbors=1)
    assert torch.equal(torch.cat([one.indices, other.indices]), expected[:, :1])
    bare = EmbeddingLayerGradCam(
        encoder,
        encoder[1],
        weight_bank=WeightBank(bank.embeddings, bank.weights),
        embedding_func=encoder,
    ).neighbors(QUERIES)
    assert bare.keys is None
    assert bare.labels is None


def test_filter_works_on_maps_per_channel_too(encoder, bank):
    grad_cam = EmbeddingLayerGradCam(
        TripletForward(encoder), encoder[1], weight_bank=bank, channel_filter=torch.abs
    )
    weights = bank.weights[nearest(encoder, bank, 1)[:, 0]].abs()
    expected = weights[..., None, None] * encoder[:2](QUERIES)
    actual = grad_cam.attribute(QUERIES, attr_dim_summation=False)
    torch.testing.assert_close(actual, expected.detach())


@pytest.mark.parametrize(
    "setting", [{"target": 0}, {"grad_kwargs": {}}, {"attribute_to_layer_input": True}]
)
def test_arguments_of_gradients_are_refused(encoder, bank, setting):
    grad_cam = EmbeddingLayerGradCam(TripletForward(encoder), encoder[1], weight_bank=bank)
    for call in (grad_cam.attribute, grad_cam.grad_weights):
        with pytest.raises(InputError, match=next(iter(setting))):
            call(QUERIES, **setting)


def test_activations_with_nan_are_refused(encoder, bank):
    class Rounds(nn.Module):
        def forward(self, x):
            return encoder(x).nan_to_num()

    query = QUERIES.clone()
    query[1, 0, 3, 3] = float("nan")
    grad_cam = EmbeddingLayerGradCam(
        TripletForward(encoder), encoder[0], weight_bank=bank, embedding_func=Rounds()
    )
    with pytest.raises(LayerError, match=r"activations.*NaN"):
        grad_cam.attribute(query)


def test_network_in_training_mode_is_refused_and_left_as_it_was(bank):
    encoder = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    grad_cam = EmbeddingLayerGradCam(TripletForward(encoder), encoder[1], weight_bank=bank)
    by_method = EmbeddingLayerGradCam(
        lambda x: x, encoder[0], weight_bank=bank, embedding_func=encoder.forward
    )
    by_closure, by_partial, by_holder = (
        EmbeddingLayerGradCam(lambda x: x, encoder[0], weight_bank=bank, embedding_func=function)
        for function in (
            lambda x: encoder(x),
            partial(lambda e, x: e(x), encoder),
            Holder(encoder).embed,
        )
    )
    for call in (
        grad_cam.attribute,
        grad_cam.neighbors,
        by_method.attribute,
        by_closure.attribute,
        by_partial.neighbors,
        by_holder.attribute,
    ):
        with pytest.raises(LayerError, match=r"'1' \(BatchNorm2d\).*eval\(\)"):
            call(QUERIES)
    assert encoder.training
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    encoder.eval()
    assert grad_cam.attribute(QUERIES).shape == (3, 1, 5, 6)


def test_queries_of_bytes_are_refused(encoder, bank):
    grad_cam = EmbeddingLayerGradCam(TripletForward(encoder), encoder[0], weight_bank=bank)
    for call in (grad_cam.attribute, grad_cam.grad_weights, grad_cam.neighbors):
        with pytest.raises(InputError, match=r"torch\.uint8.*floating point"):
            call(torch.zeros(2, 3, 7, 8, dtype=torch.uint8))


def test_a_layer_whose_rows_are_not_the_queries_is_refused(bank):
    encoder = Frames()
    grad_cam = EmbeddingLayerGradCam(TripletForward(encoder), encoder.conv, weight_bank=bank)
    with pytest.raises(LayerError, match=r"\[6\] rows for 2 queries"):
        grad_cam.attribute(torch.randn(2, 3, 3, 6, 6))
    assert grad_cam.attribute(torch.randn(2, 1, 3, 6, 6)).shape == (2, 1, 4, 4)


def test_a_reused_layer_is_refused_unless_the_run_is_named(bank):
    relu = nn.ReLU()
    encoder = nn.Sequential(
        nn.Conv2d(3, 4, 3), relu, nn.Conv2d(4, 4, 3), relu, nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    forward = TripletForward(encoder)
    with pytest.raises(LayerError, match="runs 2 times"):
        EmbeddingLayerGradCam(forward, relu, weight_bank=bank).attribute(QUERIES)
    first = EmbeddingLayerGradCam(forward, relu, weight_bank=bank, execution=0)
    assert first.attribute(QUERIES).shape == (3, 1, 5, 6)


@pytest.mark.parametrize("wrap", [lambda e: {"pooler_output": e}, lambda e: (e[..., None], e)])
def test_encoders_that_return_more_than_embeddings(encoder, bank, wrap):
    plain = EmbeddingLayerGradCam(TripletForward(encoder), encoder[1], weight_bank=bank)
    wrapped = EmbeddingLayerGradCam(
        TripletForward(encoder),
        encoder[1],
        weight_bank=bank,
        embedding_func=lambda x: wrap(encoder(x)),
    )
    torch.testing.assert_close(wrapped.attribute(QUERIES), plain.attribute(QUERIES))
    assert torch.equal(wrapped.neighbors(QUERIES).indices, plain.neighbors(QUERIES).indices)


def test_embeddings_of_another_width_are_refused(encoder, bank):
    other = WeightBank(torch.randn(9, 5), torch.randn(9, 4))
    grad_cam = EmbeddingLayerGradCam(TripletForward(encoder), encoder[1], weight_bank=other)
    for call in (grad_cam.attribute, grad_cam.neighbors):
        with pytest.raises(BankMismatchError, match=r"expected \(3, 5\)"):
            call(QUERIES)


def test_weights_stay_in_single_precision_with_half_activations(encoder, bank):
    half = encoder.to(torch.bfloat16)
    grad_cam = EmbeddingLayerGradCam(TripletForward(half), half[1], weight_bank=bank)
    weights = grad_cam.grad_weights(QUERIES.to(torch.bfloat16))
    assert weights.dtype == torch.float32
    indices = grad_cam.neighbors(QUERIES.to(torch.bfloat16)).indices[:, 0]
    assert torch.equal(weights, bank.weights[indices])


def test_a_query_far_from_the_bank_is_warned_of_once(encoder):
    bank = WeightBank(torch.rand(30, 4), torch.randn(30, 4))
    near = EmbeddingLayerGradCam(TripletForward(encoder), encoder[1], weight_bank=bank)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        near.attribute(QUERIES)
    with pytest.warns(UserWarning, match=r"nearest bank entry.*normalised"):
        near.attribute(1e4 * QUERIES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        near.attribute(1e4 * QUERIES)
        alone = WeightBank(bank.embeddings[:1], bank.weights[:1])
        EmbeddingLayerGradCam(TripletForward(encoder), encoder[1], weight_bank=alone).attribute(
            1e4 * QUERIES
        )


def test_a_path_is_no_bank_and_a_word_no_execution(encoder):
    forward = TripletForward(encoder)
    with pytest.raises(InputError, match=r"type str; expected a WeightBank.*load"):
        EmbeddingLayerGradCam(forward, encoder[1], weight_bank="birds.bank")
    bank = WeightBank(torch.rand(30, 4), torch.randn(30, 4))
    for execution in ("last", 1.5, True):
        grad_cam = EmbeddingLayerGradCam(forward, encoder[1], weight_bank=bank, execution=execution)
        with pytest.raises(InputError, match="expected a whole number"):
            grad_cam.attribute(QUERIES)


def test_a_bank_that_several_recipes_filter_is_warned_of_once(encoder):
    bank = WeightBank(torch.rand(30, 4), torch.randn(30, 4))

    def ask():
        grad_cam = recipes.LOCALIZE.grad_cam(TripletForward(encoder), encoder[1], weight_bank=bank)
        return grad_cam.neighbors(1e4 * QUERIES)

    with pytest.warns(UserWarning, match="nearest bank entry"):
        ask()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ask()


def test_only_a_query_that_may_be_far_has_a_large_bank_searched_for_its_spacing(monkeypatch):
    from captum_embed.weight_bank.queries import nearest_entries

    searched = []
    real = WeightBank.search

    def search(bank, queries, *args, **settings):
        searched.append((len(queries), len(bank)))
        return real(bank, queries, *args, **settings)

    monkeypatch.setattr(WeightBank, "search", search)
    # Every row twice: a bank of which every second entry says nothing of how near the others are.
    rows = torch.randn(2500, 4, generator=torch.Generator().manual_seed(0))
    bank = WeightBank(torch.cat([rows, rows + 1e-3]), torch.rand(5000, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            nearest_entries(bank, rows[:2] + 2e-3, 1)
        assert max(bank for queries, bank in searched if queries > 2) < 2048
        with pytest.raises(UserWarning, match=r"at most 0\.00\d+ from theirs"):
            nearest_entries(bank, rows[:2] + 30, 1)
    assert [bank for queries, bank in searched if queries > 2][1:] == [5000]


@pytest.mark.parametrize(
    ("change", "context", "tolerance"),
    [
        (lambda e: e, lambda: torch.autocast("cpu", torch.bfloat16), 0.01),
        (lambda e: e.to(memory_format=torch.channels_last), nullcontext, 1e-6),
    ],
    ids=["autocast", "channels_last"],
)
def test_transfer_is_the_same_however_the_network_is_run(encoder, bank, change, context, tolerance):
    options = {"num_neighbors": 3, "exclude": ["k5"]}
    plain = EmbeddingLayerGradCam(TripletForward(encoder), encoder[1], weight_bank=bank)
    expected = plain.attribute(QUERIES, **options)
    keys = plain.neighbors(QUERIES, **options).keys
    network = change(encoder)
    cam = EmbeddingLayerGradCam(TripletForward(network), encoder[1], weight_bank=bank)
    queries = QUERIES.contiguous(memory_format=torch.channels_last)
    for given in (QUERIES, queries):
        with context():
            maps = cam.attribute(given, **options)
            assert cam.neighbors(given, **options).keys == keys
        assert maps.dtype == torch.float32
        assert (maps - expected).abs().max() <= tolerance * expected.abs().max()
