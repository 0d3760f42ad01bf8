"""What EmbeddingLayerGradCam refuses, and what it says."""

import pytest
import torch
from torch import nn

from captum_embed import (
    EmbeddingLayerGradCam,
    TripletForward,
    WeightBank,
    build_weight_bank,
    map_functions,
)
from captum_embed.errors import InputError, LayerError

from .conftest import Encoder, triplets


class TestBadInput:
    def test_layer_that_never_runs_is_named(self, encoder):
        encoder.unused = nn.Conv2d(3, 3, 1)
        with pytest.raises(LayerError, match="'unused' is in the model, but nothing calls it"):
            EmbeddingLayerGradCam(encoder, encoder.unused).attribute(triplets()[0], 0)

    def test_layer_of_another_model_is_told_apart(self, encoder):
        with pytest.raises(LayerError, match="not a module of the given Encoder"):
            EmbeddingLayerGradCam(encoder, Encoder().features).attribute(triplets()[0], 0)

    def test_several_outputs_without_target(self, encoder):
        with pytest.raises(InputError, match=r"shape \(3, 6\).*target"):
            EmbeddingLayerGradCam(encoder, encoder.features).attribute(triplets()[0])

    def test_several_outputs_of_one_image(self, encoder):
        with pytest.raises(InputError, match=r"shape \(6,\).*several values per example"):
            EmbeddingLayerGradCam(lambda x: encoder(x).squeeze(), encoder.features).attribute(
                triplets(1)[0]
            )

    def test_an_image_without_a_batch(self):
        layer = nn.Conv2d(3, 4, 3)
        with pytest.raises(LayerError, match=r"pass image\[None\]"):
            EmbeddingLayerGradCam(lambda x: layer(x).mean((1, 2)), layer).attribute(
                torch.rand(3, 8, 7)
            )

    @pytest.mark.parametrize("name", ["agreed_evidence", "background_distance"])
    def test_a_maker_of_map_functions(self, encoder, name):
        with pytest.raises(InputError, match=rf"pass map_func={name}\(\)"):
            EmbeddingLayerGradCam(encoder, encoder.features, map_func=getattr(map_functions, name))

    def test_filter_that_changes_the_shape(self, encoder):
        grad_cam = EmbeddingLayerGradCam(
            encoder, encoder.features, channel_filter=lambda weights: weights[:, :2]
        )
        with pytest.raises(InputError, match=r"returned \(3, 2\).*\(3, 5\)"):
            grad_cam.attribute(triplets()[0], 0)

    def test_forward_under_no_grad(self, encoder):
        with pytest.raises(InputError, match="no_grad"):
            EmbeddingLayerGradCam(torch.no_grad()(encoder.forward), encoder.features).attribute(
                triplets()[0], 0
            )

    @pytest.mark.parametrize(
        "inputs", [torch.zeros(0, 3, 9, 9), (), ("image.jpg",), [torch.zeros(1, 3, 9, 9)], None]
    )
    def test_inputs_that_are_no_batch(self, encoder, inputs):
        with pytest.raises(InputError, match="expected"):
            EmbeddingLayerGradCam(encoder, encoder.features).attribute(inputs, 0)

    def test_images_of_bytes(self, encoder):
        image = torch.zeros(1, 3, 9, 9, dtype=torch.uint8)
        with pytest.raises(InputError, match=r"torch\.uint8.*floating point"):
            EmbeddingLayerGradCam(encoder, encoder.features).attribute(image, 0)

    def test_layer_given_by_name(self, encoder):
        with pytest.raises(InputError, match="get_submodule"):
            EmbeddingLayerGradCam(encoder, "features")

    def test_forward_function_that_returns_no_tensor(self, encoder):
        with pytest.raises(InputError, match="returned dict"):
            EmbeddingLayerGradCam(lambda x: {"y": encoder(x)}, encoder.features).attribute(
                triplets()[0]
            )

    def test_compiled_network_that_ran_before_is_refused_or_right(self, encoder):
        images, queries = triplets()[:2]
        expected = EmbeddingLayerGradCam(encoder.eval(), encoder.features).attribute(images, 0)
        compiled = torch.compile(encoder, backend="eager")
        compiled(images)
        message = None
        try:  # PyTorch 2.3 compiles anew where there is a hook; later ones do not run it.
            maps = EmbeddingLayerGradCam(compiled, encoder.features).attribute(images, 0)
        except LayerError as error:
            maps, message = expected, str(error)
        assert message is None or "torch.compile" in message
        torch.testing.assert_close(maps, expected)
        # A query of a bank runs the network itself.
        bank = WeightBank(torch.randn(20, 6), torch.randn(20, 5))
        of_plain, of_compiled = (
            EmbeddingLayerGradCam(TripletForward(each), encoder.features, weight_bank=bank)
            for each in (encoder, compiled)
        )
        assert torch.equal(of_compiled.attribute(queries), of_plain.attribute(queries))
        assert torch.equal(
            of_compiled.neighbors(queries).indices, of_plain.neighbors(queries).indices
        )

    @pytest.mark.filterwarnings("ignore:Dynamo does not know:UserWarning")
    def test_compiled_network_makes_the_bank_of_the_plain_one(self):
        """torch.compile traces what counts the bytes of graphs, and makes objects of its own."""
        plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        images = [(image, i % 2) for i, image in enumerate(triplets(4)[0])]
        banks = [
            build_weight_bank(TripletForward(each), plain[1], images, progress=False)
            for each in (plain, torch.compile(plain, backend="eager"))
        ]
        assert torch.equal(banks[0].weights, banks[1].weights)

    @pytest.mark.parametrize("setting", [{"num_neighbors": 5}, {"exclude": ["a"]}])
    def test_settings_of_a_bank_without_a_bank(self, encoder, setting):
        with pytest.raises(InputError, match="weight bank"):
            EmbeddingLayerGradCam(encoder, encoder.features).attribute(triplets()[0], 0, **setting)
        with pytest.raises(InputError, match="weight bank"):
            EmbeddingLayerGradCam(encoder, encoder.features, num_neighbors=5)
        with pytest.raises(InputError, match="weight bank"):
            EmbeddingLayerGradCam(encoder, encoder.features).neighbors(triplets()[0])

    def test_nan_activations(self, encoder):
        image = triplets()[0]
        image[1, 0, 3, 3] = float("nan")

        def forward(x):
            return encoder.features(encoder.below(x)).nan_to_num().sum((1, 2, 3))

        with pytest.raises(LayerError, match=r"activations.*NaN"):
            EmbeddingLayerGradCam(forward, encoder.features).attribute(image)

    def test_nan_gradients(self, encoder):
        def forward(x):
            return torch.sqrt(encoder(x).sum(1) * 0)

        with pytest.raises(LayerError, match=r"grad-weights.*NaN"):
            EmbeddingLayerGradCam(forward, encoder.features).attribute(triplets()[0])
