"""LeGrad and Chefer's attribution against attention that is written out, or that is given back."""

import pytest
import torch
from torch import nn

from captum_embed.errors import LayerError
from captum_embed.rivals import GradientAttentionRollout, LeGrad
from captum_embed.rivals.attentions import Attentions

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def library(name):
    return pytest.importorskip(name, reason=f"{name} is not installed")


def initialised(network):
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0.0, 0.3)
    return network.eval().requires_grad_(False)


class OfTorchvision:
    """nn.MultiheadAttention with a class token."""

    prefix = 1

    def __init__(self):
        models = library("torchvision.models")
        self.network = initialised(models.VisionTransformer(32, 8, 3, 4, 16, 32, num_classes=5))
        self.embed = self.network

    def written_out(self, x):
        network, attentions, outputs = self.network, [], []
        x = network._process_input(x)
        x = torch.cat([network.class_token.expand(len(x), -1, -1), x], 1)
        x = x + network.encoder.pos_embedding
        for block in network.encoder.layers:
            module, y = block.self_attention, block.ln_1(x)
            parts = (y @ module.in_proj_weight.T + module.in_proj_bias).chunk(3, -1)
            q, k, v = (part.reshape(len(x), -1, 4, 4).transpose(1, 2) for part in parts)
            attention = torch.einsum("nhid,nhjd->nhij", q, k).div(2.0).softmax(-1)
            attentions.append(attention.requires_grad_())
            y = (attention @ v).transpose(1, 2).flatten(2)
            x = x + y @ module.out_proj.weight.T + module.out_proj.bias
            x = x + block.mlp(block.ln_2(x))
            outputs.append(x)
        return attentions, outputs

    def head(self, tokens):
        return self.network.heads(self.network.encoder.ln(tokens)[:, 0])


class OfTimm:
    """Fused attention, whose probabilities are read from a network that does not fuse it."""

    def __init__(self, pool="token"):
        timm = library("timm")
        self.network = initialised(
            timm.create_model(
                "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=16, depth=3,
                num_heads=4, num_classes=5, global_pool=pool, pretrained=False)
        )  # fmt: skip
        self.embed = self.network
        self.prefix = self.network.num_prefix_tokens

    def written_out(self, x):
        attentions, outputs, hooks = [], [], []
        for block in self.network.blocks:
            block.attn.fused_attn = False
            hooks += [
                block.attn.attn_drop.register_forward_hook(
                    lambda _, __, a: attentions.append(a.requires_grad_())
                ),
                block.register_forward_hook(lambda _, __, output: outputs.append(output)),
            ]
        self.network(x)
        for hook in hooks:
            hook.remove()
        for block in self.network.blocks:
            block.attn.fused_attn = True
        return attentions, outputs

    def head(self, tokens):
        return self.network.forward_head(self.network.norm(tokens))


class OfTransformers:
    """Attention as the library gives it back itself."""

    prefix = 1

    def __init__(self, implementation="sdpa"):
        package = library("transformers")
        config = package.Dinov2Config(
            hidden_size=16, num_hidden_layers=3, num_attention_heads=4, intermediate_size=32,
            image_size=32, patch_size=8, attn_implementation=implementation)  # fmt: skip
        self.network = initialised(package.Dinov2Model(config))
        self.eager = initialised(package.Dinov2Model(config))
        self.eager.set_attn_implementation("eager")

    def embed(self, x):
        return self.network(x).pooler_output

    def written_out(self, x):
        self.eager.requires_grad_(True)
        attentions, outputs = [], []
        hooks = [
            layer.register_forward_hook(lambda _, __, output: outputs.append(output))
            for layer in self.eager.encoder.layer
        ]
        attentions = self.eager(x, output_attentions=True).attentions
        for hook in hooks:
            hook.remove()
        return list(attentions), outputs

    def head(self, tokens):
        return self.eager.layernorm(tokens)[:, 0]


CASES = {
    "torchvision": OfTorchvision,
    "timm": OfTimm,
    "timm, average pooling": lambda: OfTimm("avg"),
    "transformers": OfTransformers,
    "transformers, eager": lambda: OfTransformers("eager"),
}


@pytest.fixture(params=CASES)
def case(request):
    made = CASES[request.param]()
    width = made.embed(IMAGES).shape[1]
    made.direction = torch.randn(width, generator=torch.Generator().manual_seed(2))
    made.score = lambda images: made.embed(images) @ made.direction
    made.reads = slice(None) if request.param == "timm, average pooling" else slice(0, 1)
    return made


def places(of_tokens, prefix):
    return of_tokens[:, prefix:].reshape(-1, 1, 4, 4)


def test_chefers_attribution_is_its_formula(case):
    attentions, outputs = case.written_out(IMAGES)
    value = (case.head(outputs[-1]) @ case.direction).sum()
    gradients = torch.autograd.grad(value, attentions)
    rows = []
    for n in range(len(IMAGES)):
        relevance = torch.eye(attentions[0].shape[-1])
        for attention, gradient in zip(attentions, gradients, strict=True):
            mean = sum((a * g).clamp(min=0) for a, g in zip(attention[n], gradient[n], strict=True))
            relevance = relevance + (mean / 4) @ relevance
        # An average is over the patches; a class token is read alone.
        read = relevance[case.prefix :] if case.reads == slice(None) else relevance[:1]
        rows.append(read.mean(0))
    expected = places(torch.stack(rows).detach(), case.prefix)
    actual = GradientAttentionRollout(case.score).attribute(IMAGES)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5)
    assert not actual.requires_grad


@pytest.mark.parametrize("average", [True, False])
def test_legrad_is_its_formula(case, average):
    attentions, outputs = case.written_out(IMAGES)
    expected = 0
    for attention, tokens in zip(attentions, outputs, strict=True):
        mean = tokens.mean(1, keepdim=True).expand_as(tokens) if average else tokens
        value = (case.head(mean) @ case.direction).sum()
        (gradient,) = torch.autograd.grad(value, attention, retain_graph=True)
        expected = expected + gradient.clamp(min=0).mean((1, 2)) / 3
    expected = places(expected, case.prefix)
    assert expected.abs().max() > 0
    blocks = blocks_of(case)
    actual = LeGrad(case.score, blocks, average_tokens=average).attribute(IMAGES)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-6)
    last = LeGrad(case.score, blocks[-1:], average_tokens=average).attribute(IMAGES)
    assert not torch.allclose(last, actual)


def blocks_of(case):
    modules = dict(case.network.named_modules())
    (holder,) = (n for n in ("encoder.layers", "blocks", "encoder.layer") if n in modules)
    return list(modules[holder])


def test_the_network_is_left_as_it_was(case):
    before = case.embed(IMAGES)
    torch.testing.assert_close(case.score(IMAGES), before @ case.direction)
    for method in (GradientAttentionRollout(case.score), LeGrad(case.score, blocks_of(case))):
        method.attribute(IMAGES)
        with pytest.raises(LayerError, match="grid"):
            type(method)(case.score, *([blocks_of(case)] if isinstance(method, LeGrad) else []),
                         grid=(3, 3), prefix_tokens=1).attribute(IMAGES)  # fmt: skip
    assert torch.equal(case.embed(IMAGES), before)
    assert not any(p.requires_grad or p.grad is not None for p in case.network.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in case.network.modules())


def test_the_blocks_of_a_known_encoder_need_not_be_given(case):
    class Scored(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = case.network

        def forward(self, images):
            return case.score(images)

    expected = LeGrad(case.score, blocks_of(case)).attribute(IMAGES)
    torch.testing.assert_close(LeGrad(Scored()).attribute(IMAGES), expected)


def test_networks_without_attention_over_all_tokens_are_refused():
    models = library("torchvision.models")
    swin = models.SwinTransformer([4, 4], 8, [1, 1], [2, 2], [4, 4], num_classes=3).eval()
    convolutions = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for network, message in ((swin, "windows"), (convolutions, "no self-attention")):
        with pytest.raises(LayerError, match=message):
            GradientAttentionRollout(lambda x, n=network: n(x).sum(1)).attribute(IMAGES)
        with pytest.raises(LayerError, match="no vision transformer of a known family"):
            LeGrad(network)


def test_attention_with_masks():
    query, key, value = torch.randn(3, 2, 4, 6, 5)
    mask = torch.rand(6, 6) > 0.3
    mask.fill_diagonal_(True)
    for given in (None, mask, torch.randn(6, 6)):
        expected = nn.functional.scaled_dot_product_attention(query, key, value, given, scale=0.3)
        with Attentions() as recorded:
            actual = nn.functional.scaled_dot_product_attention(query, key, value, given, scale=0.3)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(recorded.probabilities[0] @ value, expected)
    attention = nn.MultiheadAttention(10, 2)
    tokens = torch.rand(5, 3, 10)
    with pytest.raises(LayerError, match="masks"), Attentions():
        attention(tokens, tokens, tokens, attn_mask=torch.zeros(5, 5))
    with Attentions() as recorded:
        _, weights = attention(tokens, tokens, tokens)
        attention(tokens[:1], tokens, tokens)
    torch.testing.assert_close(weights, attention(tokens, tokens, tokens)[1])
    assert len(recorded.probabilities) == 1
