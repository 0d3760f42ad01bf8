"""Layouts against Grad-CAM written out by hand, on networks of every family."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from captum_embed import (
    EmbeddingLayerGradCam,
    LossForward,
    TripletForward,
    WeightBank,
    build_weight_bank,
)
from captum_embed.errors import InputError, LayerError
from captum_embed.layouts import channels_first, require_layout, token_grid

models = pytest.importorskip("torchvision.models")


def by_hand(network, layer, images, to_channels_first, at_input=False):
    """Grad-CAM of output 0 from the whole gradient, reshaped afterwards."""
    kept = []

    def keep(module, args, output=None):
        value = args[0] if at_input else output
        value.retain_grad()
        kept.append(value)
        # What comes behind may work in place.
        return (value.clone(),) if at_input else value.clone()

    register = layer.register_forward_pre_hook if at_input else layer.register_forward_hook
    handle = register(keep)
    network(images)[:, 0].sum().backward()
    handle.remove()
    network.zero_grad()
    gradient, activation = map(to_channels_first, (kept[-1].grad, kept[-1].detach()))
    weights = gradient.mean((2, 3))
    return weights, torch.einsum("nc,nchw->nhw", weights, activation)[:, None]


def sum_of_squares(embeddings, labels):
    return embeddings.square().sum()


class OfPatches(nn.Module):
    """A vision transformer whose embedding is the mean over the patches."""

    def __init__(self, vit):
        super().__init__()
        self.vit = vit

    def forward(self, images):
        return self.vit.encoder(self.vit._process_input(images))[:, 0:].mean(1)


def vit(size=48, seed=0):
    torch.manual_seed(seed)
    network = models.VisionTransformer(size, 8, 3, 4, 32, 64, num_classes=5)
    nn.init.normal_(network.heads.head.weight)
    return network.eval()


def images(height=48, width=48):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


class TestTransformers:
    @pytest.mark.parametrize("size", [32, 48])
    @pytest.mark.parametrize("layer", ["encoder.layers.encoder_layer_1", "encoder.dropout"])
    def test_patches_of_a_network_with_class_token(self, size, layer):
        network = vit(size)
        layer = network.get_submodule(layer)
        side = size // 8

        def grid(tokens):
            return tokens[:, 1:].reshape(2, side, side, 32).permute(0, 3, 1, 2)

        weights, maps = by_hand(network, layer, images(size, size), grid)
        assert maps.abs().sum() > 0
        for settings in ({}, {"prefix_tokens": 1}, {"grid": (side, side)}):
            grad_cam = EmbeddingLayerGradCam(network, layer, layout="tokens", **settings)
            x = images(size, size)
            torch.testing.assert_close(grad_cam.grad_weights(x, 0), weights)
            torch.testing.assert_close(grad_cam.attribute(x, 0), maps)

    def test_what_goes_into_the_layer(self):
        network = vit()
        layer = network.encoder.layers[2].ln_1

        def grid(tokens):
            return tokens[:, 1:].reshape(2, 6, 6, 32).permute(0, 3, 1, 2)

        _, expected = by_hand(network, layer, images(), grid, at_input=True)
        actual = EmbeddingLayerGradCam(network, layer, layout="tokens").attribute(
            images(), 0, attribute_to_layer_input=True
        )
        torch.testing.assert_close(actual, expected)

    def test_the_last_block_has_no_gradient_and_the_message_names_the_layer_to_take(self):
        network = vit()
        for layer, advice in (
            (network.encoder.layers[2], r"encoder_layer_1' or .*encoder_layer_2\.ln_1'"),
            (network.encoder.ln, r"'encoder\.layers'"),
        ):
            with pytest.raises(LayerError, match=rf"only prefix tokens are read.*{advice}"):
                EmbeddingLayerGradCam(network, layer, layout="tokens").attribute(images(), 0)
        taken = EmbeddingLayerGradCam(network, network.encoder.layers[2].ln_1, layout="tokens")
        assert taken.attribute(images(), 0).abs().sum() > 0

    @pytest.mark.parametrize("make", [TripletForward, lambda e: LossForward(e, sum_of_squares)])
    def test_a_bank_of_the_last_block_is_refused_before_work_starts(self, make):
        network, looked_at = vit(), []

        class Photographs(torch.utils.data.Dataset):
            targets = (0, 0, 1, 1) * 4

            def __len__(self):
                return len(self.targets)

            def __getitem__(self, index):
                looked_at.append(index)
                return images()[index % 2] + index, self.targets[index]

        def build(layer):
            return build_weight_bank(
                make(network), layer, Photographs(), layout="tokens", batch_size=4, progress=False
            )

        with pytest.raises(LayerError, match=r"take.*'encoder.*_1' or .*encoder_layer_2\.ln_1'"):
            build(network.encoder.layers[2])
        assert len(set(looked_at)) <= 4
        assert build(network.encoder.layers[2].ln_1).weights.abs().sum() > 0

    def test_average_pooling_needs_no_prefix(self):
        torch.manual_seed(0)
        block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        patches = nn.Conv2d(3, 16, 8, stride=8)

        def forward(x):
            return block(patches(x).flatten(2).transpose(1, 2)).mean(1).square()

        def grid(tokens):
            return tokens.reshape(2, 4, 6, 16).permute(0, 3, 1, 2)

        x = images(32, 48)

        class Network(nn.Module):
            def forward(self, x):
                return forward(x)

        weights, expected = by_hand(Network(), block, x, grid)
        actual = EmbeddingLayerGradCam(forward, block, layout="tokens")
        torch.testing.assert_close(actual.attribute(x, 0), expected)
        torch.testing.assert_close(actual.grad_weights(x, 0), weights)

    def test_a_bank_of_tokens(self):
        network = vit()
        layer = network.encoder.layers[1]
        bank = WeightBank(torch.randn(9, 5), torch.randn(9, 32))
        grad_cam = EmbeddingLayerGradCam(
            network, layer, weight_bank=bank, embedding_func=network, layout="tokens"
        )
        seen = []
        handle = layer.register_forward_hook(lambda *call: seen.append(call[2].detach()))
        index = torch.cdist(network(images()), bank.embeddings).argmin(1)
        handle.remove()
        activation = seen[0][:, 1:].reshape(2, 6, 6, 32).permute(0, 3, 1, 2)
        expected = torch.einsum("nc,nchw->nhw", bank.weights[index], activation)[:, None]
        torch.testing.assert_close(grad_cam.attribute(images()), expected)
        with pytest.raises(LayerError, match="layout='tokens'"):
            EmbeddingLayerGradCam(
                network, layer, weight_bank=bank, embedding_func=network
            ).attribute(images())


def swin():
    torch.manual_seed(0)
    return models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [7, 7], num_classes=5).eval()


def convnext():
    torch.manual_seed(0)
    block = models.convnext.CNBlockConfig
    return models.ConvNeXt([block(24, 48, 1), block(48, None, 1)], num_classes=5).eval()


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (swin, "features.1"),
        (swin, "features.3.1"),
        (swin, "features.3.1.attn"),
        (swin, "features.3.1.mlp.1"),
        (swin, "norm"),
        (convnext, "features.1.0.block.2"),
        (convnext, "features.1.0.block.4"),
    ],
)
@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
def test_channels_last(make, layer, size):
    network = make()
    layer = network.get_submodule(layer)
    x = images(*size)
    weights, expected = by_hand(network, layer, x, lambda t: t.permute(0, 3, 1, 2))
    grad_cam = EmbeddingLayerGradCam(network, layer, layout="channels_last")
    torch.testing.assert_close(grad_cam.grad_weights(x, 0), weights)
    torch.testing.assert_close(grad_cam.attribute(x, 0), expected)
    for other in ("channels_first", "tokens"):
        with pytest.raises(LayerError, match="does not look like"):
            EmbeddingLayerGradCam(network, layer, layout=other).attribute(x, 0)


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (swin, "permute"),
        (swin, "features.0.0"),
        (convnext, "features.0"),
        (convnext, "features.1"),
        (convnext, "features.3.0.block.0"),
        (lambda: models.resnet50(num_classes=5).eval(), "layer3"),
        (lambda: models.resnet50(num_classes=5).eval(), "layer4.2.bn3"),
        (lambda: models.resnet50(num_classes=5).eval(), "relu"),
        (lambda: models.mobilenet_v3_small(num_classes=5).eval(), "features.4"),
        (lambda: models.densenet121(num_classes=5).eval(), "features.denseblock1"),
    ],
)
def test_channels_first_is_drawn_and_no_other_layout(make, layer):
    network = make()
    layer = network.get_submodule(layer)
    x = images(64, 96)
    _, expected = by_hand(network, layer, x, lambda t: t)
    actual = EmbeddingLayerGradCam(network, layer).attribute(x, 0)
    torch.testing.assert_close(actual, expected)
    for other in ("channels_last", "tokens"):
        with pytest.raises(LayerError, match="does not look like"):
            EmbeddingLayerGradCam(network, layer, layout=other).attribute(x, 0)


class OfSignals(nn.Module):
    """Two convolutions of one, two or three dimensions, pooled over all places."""

    explains = "match"

    def __init__(self, dims):
        super().__init__()
        torch.manual_seed(dims)
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.layer = nn.Sequential(conv(2, 4, 3, stride=2), nn.Tanh(), conv(4, 6, 2), nn.Tanh())
        self.head = nn.Linear(6, 5)

    def forward(self, signals):
        return self.head(self.layer(signals).flatten(2).mean(2))


@pytest.mark.parametrize(
    "size",
    [(9,), (32,), (8, 12), (7, 9, 11), (12, 8, 6)],
    ids=lambda size: "x".join(map(str, size)),
)
def test_convolutions_of_one_to_three_dimensions(size):
    encoder = OfSignals(len(size)).eval()
    signals = torch.randn(4, 2, *size)
    # All places have the gradient of the mean: head's row by 1 / places.
    activations = encoder.layer(signals).detach()
    weights = (encoder.head.weight[0] / activations[0, 0].numel()).expand(4, -1)
    shape = (-1, 6, *[1] * len(size))
    expected = (weights.reshape(shape) * activations).sum(1, keepdim=True)
    grad_cam = EmbeddingLayerGradCam(encoder, encoder.layer)
    torch.testing.assert_close(grad_cam.grad_weights(signals, 0), weights)
    torch.testing.assert_close(grad_cam.attribute(signals, 0), expected)

    data = list(zip(signals, [0, 0, 1, 1], strict=True))
    forward = TripletForward(encoder, margin=9.0)
    bank = build_weight_bank(forward, encoder.layer, data, progress=False)
    embeddings = encoder(signals).detach()
    # All tuples: of each, minus the mean over its negatives of d(a, p) - d(a, n).
    for n, (p, negatives) in enumerate([(1, [2, 3]), (0, [2, 3]), (3, [0, 1]), (2, [0, 1])]):
        slope = 2 * (embeddings[p] - embeddings[negatives].mean(0))
        own = slope @ encoder.head.weight / activations[0, 0].numel()
        torch.testing.assert_close(bank.weights[n], own)
    transfer = EmbeddingLayerGradCam(forward, encoder.layer, weight_bank=bank)
    borrowed = (bank.weights.reshape(shape) * activations).sum(1, keepdim=True)
    torch.testing.assert_close(transfer.attribute(signals), borrowed)


def test_tokens_with_the_batch_second_are_refused():
    with pytest.raises(LayerError, match="does not look like tokens"):
        require_layout(torch.zeros(17, 2, 8), "tokens", nn.Identity(), images())


@given(
    rows=st.integers(2, 16),
    columns=st.integers(2, 16),
    prefix=st.integers(0, 9),
    patch=st.sampled_from([4, 8, 14, 16]),
)
def test_a_grid_that_is_found_is_the_true_one(rows, columns, prefix, patch):
    tokens, size = prefix + rows * columns, (rows * patch, columns * patch)
    assert token_grid(tokens, prefix, (rows, columns)) == (rows, columns)
    assert token_grid(tokens, prefix, image_size=size) == (rows, columns)
    try:
        assert token_grid(tokens, image_size=size) == (rows, columns)
    except LayerError as error:
        assert "several grids" in str(error)  # noqa: PT017
    if rows == columns:
        assert token_grid(tokens, prefix) == (rows, columns)


@pytest.mark.parametrize(
    "settings",
    [
        {"tokens": 18, "prefix_tokens": 1, "image_size": (32, 32)},
        {"tokens": 17, "prefix_tokens": 0},
        {"tokens": 24},
        {"tokens": 25, "prefix_tokens": 1},
        {"tokens": 17, "grid": (5, 5)},
        {"tokens": 17, "prefix_tokens": 2, "grid": (4, 4)},
        {"tokens": 1, "prefix_tokens": 1},
    ],
)
def test_tokens_that_fit_no_grid_are_refused(settings):
    with pytest.raises(LayerError, match="grid"):
        token_grid(**settings)


@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(0, 3)
)
def test_tokens_lie_row_by_row(n, channels, rows, columns, prefix):
    grid = torch.rand(n, channels, rows, columns)
    tokens = torch.cat([torch.full((n, prefix, channels), 9.0), grid.flatten(2).mT], dim=1)
    actual = channels_first(tokens, "tokens", prefix_tokens=prefix, grid=(rows, columns))
    assert torch.equal(actual, grid)
    assert torch.equal(channels_first(grid.permute(0, 2, 3, 1), "channels_last"), grid)
    assert channels_first(grid, "channels_first") is grid


@pytest.mark.parametrize(
    "settings",
    [
        {"layout": "NHWC"},
        {"layout": None},
        {"grid": (7, 7)},
        {"prefix_tokens": 1, "layout": "channels_last"},
        {"layout": "tokens", "prefix_tokens": -1},
        {"layout": "tokens", "prefix_tokens": True},
        {"layout": "tokens", "grid": 7},
        {"layout": "tokens", "grid": (7, 7, 1)},
    ],
)
def test_settings_that_do_not_fit_are_refused(settings):
    layer = nn.Identity()
    with pytest.raises(InputError, match=r"layout|prefix_tokens|grid"):
        EmbeddingLayerGradCam(layer, layer, **settings)
