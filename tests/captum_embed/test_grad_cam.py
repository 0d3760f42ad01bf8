"""EmbeddingLayerGradCam against Captum's LayerGradCam, and with Captum's tools."""

import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam, NoiseTunnel
from captum.metrics import infidelity, sensitivity_max
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from captum_embed import (
    EmbeddingLayerGradCam,
    TripletForward,
)
from captum_embed.errors import InputError

from .conftest import Encoder, triplets


@pytest.fixture
def captums():
    """The networks of Captum's own tests, which it brings from 0.9 on."""
    return pytest.importorskip("captum.testing.helpers.basic_models")


class TestDropIn:
    """Same arguments and same numbers as captum.attr.LayerGradCam."""

    @pytest.mark.parametrize(
        ("model", "layer", "inputs", "arguments"),
        [
            ("ConvNet_One_Conv", "conv1", (1, 1, 4, 4), {}),
            ("ConvNet_One_Conv", "relu1", (3, 1, 4, 4), {"relu_attributions": True}),
            ("ConvNet_One_Conv", "conv1", (2, 1, 4, 4), {"attr_dim_summation": False}),
            (
                "ConvNet_One_Conv",
                "conv1",
                (2, 1, 4, 4),
                {"attribute_to_layer_input": True},
            ),
            ("ConvNet", "conv2", (4, 1, 10, 10), {}),
            ("MultiLayer", "linear0", (4, 3), {}),
            ("MultiLayer", "linear1", (4, 3), {"attribute_to_layer_input": True}),
        ],
    )
    @pytest.mark.parametrize("frozen", [False, True])
    def test_gives_captums_numbers(self, captums, model, layer, inputs, arguments, frozen):
        net = getattr(captums, f"BasicModel_{model}")().requires_grad_(not frozen)
        x = torch.randn(inputs, generator=torch.Generator().manual_seed(0)) * 3
        target = torch.zeros(len(x), dtype=torch.long)
        expected = LayerGradCam(net, getattr(net, layer)).attribute(x, target, **arguments)
        actual = EmbeddingLayerGradCam(net, getattr(net, layer)).attribute(x, target, **arguments)
        torch.testing.assert_close(actual, expected)

    def test_layer_that_returns_a_tuple_gives_a_tuple(self, captums):
        net = captums.BasicModel_MultiLayer(multi_input_module=True)
        x = torch.tensor([[0.0, 6.0, 0.0]])
        expected = LayerGradCam(net, net.multi_relu).attribute(x, 0)
        actual = EmbeddingLayerGradCam(net, net.multi_relu).attribute(x, 0)
        assert len(actual) == 2
        torch.testing.assert_close(actual, expected)

    def test_layer_without_influence_needs_materialize_grads(self, captums):
        net = captums.BasicModel_MultiLayer(multi_input_module=True)
        grad_cam = EmbeddingLayerGradCam(net, net.relu)
        x = torch.tensor([[0.0, 6.0, 0.0]])
        with pytest.raises(InputError, match="materialize_grads"):
            grad_cam.attribute(x, 0)
        assert grad_cam.attribute(x, 0, grad_kwargs={"materialize_grads": True}).abs().sum() == 0

    @settings(max_examples=25, deadline=None)
    @given(
        n=st.integers(1, 4),
        channels=st.integers(1, 6),
        height=st.integers(5, 12),
        width=st.integers(5, 12),
        summed=st.booleans(),
        relu=st.booleans(),
    )
    def test_agrees_on_any_shape(self, n, channels, height, width, summed, relu):
        encoder = Encoder(channels)
        x = torch.randn(n, 3, height, width)
        arguments = {"target": 1, "attr_dim_summation": summed, "relu_attributions": relu}
        expected = LayerGradCam(encoder, encoder.features).attribute(x, **arguments)
        actual = EmbeddingLayerGradCam(encoder, encoder.features).attribute(x, **arguments)
        torch.testing.assert_close(actual, expected)

    def test_data_parallel_on_one_device_is_seen_through(self, encoder):
        x = triplets()[0]
        expected = LayerGradCam(encoder, encoder.features).attribute(x, 0)
        wrapped = nn.DataParallel(encoder)
        actual = EmbeddingLayerGradCam(wrapped, encoder.features).attribute(x, 0)
        torch.testing.assert_close(actual, expected)

    def test_create_graph_reaches_the_parameters_below_the_layer(self, encoder):
        x = triplets()[0]
        gradients = []
        for method in (LayerGradCam, EmbeddingLayerGradCam):
            maps = method(encoder, encoder.features).attribute(
                x, 0, grad_kwargs={"create_graph": True}
            )
            gradients.append(torch.autograd.grad(maps.square().sum(), encoder.below.weight)[0])
        torch.testing.assert_close(gradients[1], gradients[0])


class TestWithCaptumsTools:
    def test_noise_tunnel_runs_it_and_without_noise_changes_nothing(self, encoder):
        forward = TripletForward(encoder, margin=4.0)
        anchor, positive, negative = triplets()
        references = (encoder(positive).detach(), encoder(negative).detach())
        grad_cam = EmbeddingLayerGradCam(forward, encoder.features)
        expected = grad_cam.attribute(anchor, additional_forward_args=references)
        tunnel = NoiseTunnel(grad_cam)
        actual = tunnel.attribute(
            anchor, additional_forward_args=references, nt_samples=3, stdevs=0.0
        )
        torch.testing.assert_close(actual, expected)
        noisy = tunnel.attribute(
            anchor, additional_forward_args=references, nt_samples=3, stdevs=0.5
        )
        assert not torch.allclose(noisy, expected)

    def test_sensitivity_and_infidelity_accept_it(self, encoder):
        forward = TripletForward(encoder, margin=4.0)
        anchor, positive, negative = triplets()
        references = (encoder(positive).detach(), encoder(negative).detach())
        grad_cam = EmbeddingLayerGradCam(forward, encoder.features)

        def explain(inputs, additional_forward_args):
            maps = grad_cam.attribute(inputs, additional_forward_args=additional_forward_args)
            upsampled = LayerAttribution.interpolate(maps, (9, 11), interpolate_mode="bilinear")
            # Captum's sensitivity gives a tuple of inputs and reads a tuple of attributions
            return (upsampled,)

        sensitivity = sensitivity_max(
            explain, anchor, n_perturb_samples=4, additional_forward_args=references
        )
        assert sensitivity.shape == (3,)
        assert (sensitivity > 0).all()

        def perturb(inputs):
            noise = torch.randn_like(inputs) * 0.1
            return noise, inputs - noise

        score = infidelity(
            forward,
            perturb,
            anchor,
            explain(anchor, references)[0].expand_as(anchor),
            additional_forward_args=references,
            n_perturb_samples=4,
        )
        assert torch.isfinite(score).all()


class TestPrecision:
    @pytest.mark.parametrize(("dtype", "share"), [(torch.float16, 0.02), (torch.bfloat16, 0.10)])
    def test_half_precision_is_near_single(self, dtype, share):
        models = pytest.importorskip("torchvision.models")
        torch.manual_seed(0)
        net = models.resnet18(num_classes=32).eval()
        images = tuple(torch.randn(3, 2, 3, 96, 96))
        grad_cam = EmbeddingLayerGradCam(TripletForward(net, margin=1e4), net.layer4)
        expected = grad_cam.grad_weights(images)
        with torch.autocast("cpu", dtype=dtype):
            actual = grad_cam.grad_weights(images)
        for one, other in zip(actual, expected, strict=True):
            assert one.dtype == torch.float32
            assert ((one - other).norm(dim=1) < share * other.norm(dim=1)).all()
            assert not torch.equal(one, other)
