"""Networks of known families: the layers of the docs' table, and maps against a reshape by hand."""

import re
from pathlib import Path

import pytest
import torch
from packaging.version import Version
from torch import nn

from captum_embed import EmbeddingLayerGradCam, WeightBank, build_weight_bank
from captum_embed.encoders import embedding_of
from captum_embed.errors import LayerError
from captum_embed.families import place_of
from captum_embed.recipes import EXPLAIN, LOCALIZE

PAGE = Path(__file__).parents[2] / "docs" / "how_to" / "transformers.md"
ROWS = re.findall(
    r"^\| (\w+) `(\w+)` \| `([\w.]+)` \| (\w+) \|\s*(\d*)\s*\|", PAGE.read_text(), re.M
)


OLDER_PYTORCH = Version(torch.__version__) < Version("2.5")


def library(name):
    reason = f"{name} is not installed"
    return pytest.importorskip(
        "torchvision.models" if name == "torchvision" else name, reason=reason
    )


def published(source, name):
    """A network of the size that is published, without numbers in its weights."""
    package = library(source)
    # RegNet's constructor computes its widths with tensors, which need numbers; so do those of
    # timm where PyTorch is older.
    needs_numbers = name.startswith("regnet_y") or (source == "timm" and OLDER_PYTORCH)
    with torch.device("cpu" if needs_numbers else "meta"):
        if source == "torchvision":
            return package.get_model(name)
        if source == "timm":
            return package.create_model(name, pretrained=False, num_classes=0)
        cls = getattr(package, name)
        return cls(cls.config_class())


def test_every_row_of_the_table_is_read():
    rows = [line for line in PAGE.read_text().splitlines() if re.match(r"\| t\w+ `", line)]
    assert len(rows) == len(ROWS) > 20


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row[:2]))
def test_the_table_of_the_docs(row):
    source, name, layer, layout, prefix = row
    if source == "transformers" and Version(library(source).__version__) < Version("5"):
        pytest.skip("the table has the modules' names of transformers 5")
    place = place_of(published(source, name))
    where = (place.last_activation, place.layout, place.prefix_tokens)
    assert where == (layer, layout, int(prefix) if prefix else None)


TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 64, "image_size": 48, "patch_size": 8}  # fmt: skip
TINY_OF_TIMM = {"img_size": 48, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
SQUARE, WIDE = (48, 48), (48, 64)


def of_transformers(model, config, **settings):
    def make(package):
        options = {**TINY, **settings} if "hidden_sizes" not in settings else settings
        return getattr(package, model)(getattr(package, config)(**options))

    return make


def of_timm(name, **settings):
    return lambda package: package.create_model(name, pretrained=False, num_classes=0, **settings)


def of_torchvision(make):
    return make


CASES = {
    "torchvision vit_b_16, small": ("torchvision", of_torchvision(
        lambda m: m.VisionTransformer(48, 8, 3, 4, 32, 64, num_classes=5)), 8, [SQUARE]),
    "torchvision swin_t, small": ("torchvision", of_torchvision(
        lambda m: m.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=5)),
        8, [SQUARE, WIDE]),
    "torchvision convnext_tiny, small": ("torchvision", of_torchvision(
        lambda m: m.ConvNeXt([m.convnext.CNBlockConfig(24, 48, 1),
                              m.convnext.CNBlockConfig(48, None, 1)], num_classes=5)),
        8, [SQUARE, WIDE]),
    "torchvision resnet50, small": ("torchvision", of_torchvision(
        lambda m: m.ResNet(m.resnet.Bottleneck, [1, 1, 1, 1], num_classes=5)),
        32, [(64, 64), (64, 96)]),
    "timm vit": ("timm", of_timm("vit_tiny_patch16_224", dynamic_img_size=True, **TINY_OF_TIMM),
                 8, [SQUARE, WIDE]),
    "timm vit, average pooling": ("timm", of_timm(
        "vit_tiny_patch16_224", global_pool="avg", dynamic_img_size=True, **TINY_OF_TIMM),
        8, [SQUARE, WIDE]),
    "timm siglip": ("timm", of_timm("vit_base_patch16_siglip_224", **TINY_OF_TIMM), 8, [SQUARE]),
    "timm dinov2 with registers": ("timm", of_timm(
        "vit_small_patch14_reg4_dinov2", dynamic_img_size=True, **TINY_OF_TIMM),
        8, [SQUARE, WIDE]),
    "timm swin": ("timm", of_timm(
        "swin_tiny_patch4_window7_224", img_size=WIDE, window_size=4, embed_dim=24,
        depths=(2, 2), num_heads=(2, 4)), 8, [WIDE]),
    "timm convnext": ("timm", of_timm("test_convnext"), 32, [(64, 64), (64, 96)]),
    "timm resnet": ("timm", of_timm("test_resnet"), 32, [(64, 64), (64, 96)]),
    "timm efficientnet": ("timm", of_timm("test_efficientnet"), 32, [(64, 64), (64, 96)]),
    "transformers dinov2": ("transformers", of_transformers("Dinov2Model", "Dinov2Config"),
                            8, [SQUARE, WIDE]),
    "transformers dinov2 with registers": ("transformers", of_transformers(
        "Dinov2WithRegistersModel", "Dinov2WithRegistersConfig"), 8, [SQUARE, WIDE]),
    "transformers dinov3": ("transformers", of_transformers(
        "DINOv3ViTModel", "DINOv3ViTConfig", num_register_tokens=2), 8, [SQUARE, WIDE]),
    "transformers clip": ("transformers", of_transformers(
        "CLIPVisionModelWithProjection", "CLIPVisionConfig", projection_dim=16), 8, [SQUARE]),
    "transformers clip without projection": ("transformers", of_transformers(
        "CLIPVisionModel", "CLIPVisionConfig"), 8, [SQUARE]),
    "transformers vit": ("transformers", of_transformers("ViTModel", "ViTConfig"), 8, [SQUARE]),
    "transformers siglip": ("transformers", of_transformers(
        "SiglipVisionModel", "SiglipVisionConfig"), 8, [SQUARE]),
    "transformers swin": ("transformers", lambda m: m.SwinModel(m.SwinConfig(
        image_size=64, patch_size=4, embed_dim=24, depths=[2, 2], num_heads=[2, 4],
        window_size=4)), 8, [SQUARE, WIDE]),
    "transformers convnext": ("transformers", of_transformers(
        "ConvNextModel", "ConvNextConfig", hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]),
        32, [(64, 64), (64, 96)]),
    "transformers resnet": ("transformers", lambda m: m.ResNetModel(m.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1],
        layer_type="basic")), 32, [(64, 64), (64, 96)]),
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request):
    source, make, stride, sizes = CASES[request.param]
    package = library(source)
    torch.manual_seed(0)
    network = make(package).eval()
    for parameter in network.parameters():
        # Heads, projections and layer scales start at nothing, or next to it.
        if parameter.std() < 1e-3 or parameter.numel() == 1:
            nn.init.normal_(parameter, 0.5, 0.1)
    return network, stride, sizes


def images(size):
    return torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(1))


def by_hand(network, settings, x, rows, columns):
    """Activations and weights (N, C) of the first number of the embedding."""
    kept = []
    handle = settings["layer"].register_forward_hook(
        lambda _, __, output: kept.append(output) or output.clone()
    )
    embeddings = embedding_of(network(x))
    handle.remove()
    (gradient,) = torch.autograd.grad(embeddings[:, 0].sum(), kept)

    def first(tensor):
        if settings["layout"] == "tokens":
            places = tensor[:, settings["prefix_tokens"] :]
            assert places.shape[1] == rows * columns
            return places.reshape(len(x), rows, columns, -1).permute(0, 3, 1, 2)
        if settings["layout"] == "channels_last":
            return tensor.permute(0, 3, 1, 2)
        return tensor

    activations, weights = first(kept[0].detach()), first(gradient).mean((2, 3))
    return embeddings.detach(), activations, weights


def weighed(weights, activations):
    return (weights[:, :, None, None] * activations).sum(1, keepdim=True)


class FirstNumber(nn.Module):
    explains = "match"

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images, labels=None):
        return embedding_of(self.encoder(images))[:, 0]


def test_gradients_banks_and_transfer_are_those_of_a_reshape_by_hand(case):
    network, stride, sizes = case
    for size in sizes:
        x, grid = images(size), (size[0] // stride, size[1] // stride)
        forward, settings = FirstNumber(network), EXPLAIN.layer_settings(network)
        embeddings, activations, weights = by_hand(network, settings, x, *grid)
        assert weights.abs().max() > 0

        grad_cam = EmbeddingLayerGradCam(forward, **settings)
        torch.testing.assert_close(grad_cam.grad_weights(x), weights)
        torch.testing.assert_close(grad_cam.attribute(x), weighed(weights, activations))

        bank = WeightBank(embeddings[:1], torch.randn_like(weights[:1]))
        transfer = EmbeddingLayerGradCam(forward, weight_bank=bank, **settings)
        expected = weighed(bank.weights.expand_as(weights), activations)
        torch.testing.assert_close(transfer.attribute(x), expected)

        dataset = list(zip(x, [0, 0, 1], strict=True))
        bank = build_weight_bank(forward, dataset=dataset, progress=False, **settings)
        torch.testing.assert_close(bank.weights, weights)
        torch.testing.assert_close(bank.embeddings, embeddings)
        assert bank.metadata["layout"] == settings["layout"]


def test_a_recipe_needs_no_layer(case):
    network, stride, sizes = case
    # The border of two places on two is all there is of them.
    x = images(max(sizes[0], (3 * stride, 3 * stride)))
    for recipe in (EXPLAIN, LOCALIZE):
        settings = recipe.layer_settings(network)
        expected = recipe.grad_cam(FirstNumber(network), **settings).attribute(x)
        for given in ((), (recipe.layer_of(network),)):
            actual = recipe.grad_cam(FirstNumber(network), *given).attribute(x)
            torch.testing.assert_close(actual, expected)


def test_another_layout_is_refused(case):
    network, _, sizes = case
    layer = EXPLAIN.layer_of(network)
    stated = EXPLAIN.layer_settings(network)["layout"]
    for layout in {"channels_first", "channels_last", "tokens"} - {stated}:
        with pytest.raises(LayerError, match=r"layout|does not look like"):
            EmbeddingLayerGradCam(FirstNumber(network), layer, layout=layout).attribute(
                images(sizes[-1])
            )


def test_two_towers_are_not_guessed():
    models = library("torchvision")
    towers = nn.ModuleDict({"a": models.resnet18(), "b": models.resnet18()})
    with pytest.raises(LayerError, match=r"any of \['a\.layer4', 'b\.layer4'\]"):
        place_of(towers)
