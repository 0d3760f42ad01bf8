"""EmbeddingLayerGradCam against Captum's LayerGradCam, and against full autograd."""

import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

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
    WeightBank,
    channel_filters,
    map_functions,
)
from captum_embed.errors import InputError, LayerError

# `make torture` makes more.
CALLS_OF_A_THREAD = int(os.environ.get("THREAD_CALLS", "8"))


class Encoder(nn.Module):
    """Two convolutions, a nonlinear head, unit embeddings."""

    def __init__(self, channels: int = 5) -> None:
        super().__init__()
        self.below = nn.Conv2d(3, 4, 3)
        self.features = nn.Conv2d(4, channels, 3)
        self.head = nn.Linear(channels, 6)

    def forward(self, images):
        activation = self.features(torch.tanh(self.below(images))).relu()
        pooled = activation.mean((2, 3)) + activation.square().mean((2, 3))
        return nn.functional.normalize(self.head(pooled), dim=1)


@pytest.fixture
def captums():
    """The networks of Captum's own tests, which it brings from 0.9 on."""
    return pytest.importorskip("captum.testing.helpers.basic_models")


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Encoder()


def triplets(n=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, 3, 9, 11, generator=generator) for _ in range(3))


def by_full_autograd(encoder, images, loss_of):
    """Grad-CAM maps of each image batch, by one full forward and backward written out."""
    recorded = []
    for batch in images:
        activation = encoder.features(torch.tanh(encoder.below(batch)))
        activation.retain_grad()
        rectified = activation.relu()
        pooled = rectified.mean((2, 3)) + rectified.square().mean((2, 3))
        recorded.append((activation, nn.functional.normalize(encoder.head(pooled), dim=1)))
    loss_of(*(embedding for _, embedding in recorded)).sum().backward()
    encoder.zero_grad()
    return [
        (a.grad.mean((2, 3), keepdim=True) * a).sum(1, keepdim=True).detach() for a, _ in recorded
    ]


def triplet_loss(a, p, n, margin=4.0):
    return ((a - p).square().sum(1) - (a - n).square().sum(1) + margin).relu()


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


class TestSharedEncoder:
    @pytest.mark.parametrize("concatenated", [False, True])
    def test_explains_every_image_of_the_triplet(self, encoder, concatenated):
        images = triplets()

        def one_by_one(a, p, n):
            return triplet_loss(encoder(a), encoder(p), encoder(n))

        forward = TripletForward(encoder, 4.0, explains="loss") if concatenated else one_by_one
        maps = EmbeddingLayerGradCam(forward, encoder.features).attribute(images)
        expected = by_full_autograd(encoder, images, triplet_loss)
        assert len(maps) == 3
        for one, other in zip(maps, expected, strict=True):
            torch.testing.assert_close(one, other)

    def test_captum_itself_explains_only_the_last_image(self, encoder):
        images = triplets()

        def one_by_one(a, p, n):
            return triplet_loss(encoder(a), encoder(p), encoder(n))

        captums = LayerGradCam(one_by_one, encoder.features).attribute(images)
        ours = EmbeddingLayerGradCam(one_by_one, encoder.features).attribute(images)
        torch.testing.assert_close(ours[2], captums)
        assert not torch.allclose(ours[0], captums)

    def test_images_of_different_sizes_give_maps_of_their_own_sizes(self, encoder):
        a, p, n = torch.randn(2, 3, 9, 9), torch.randn(2, 3, 12, 9), torch.randn(2, 3, 9, 14)
        maps = EmbeddingLayerGradCam(TripletForward(encoder, 4.0), encoder.features).attribute(
            (a, p, n)
        )
        assert [tuple(m.shape[2:]) for m in maps] == [(5, 5), (8, 5), (5, 10)]

    def test_references_as_additional_arguments_are_not_explained(self, encoder):
        a, p, n = triplets()
        grad_cam = EmbeddingLayerGradCam(TripletForward(encoder, 4.0), encoder.features)
        together = grad_cam.attribute((a, p, n))
        apart = grad_cam.attribute(a, additional_forward_args=(p, n))
        torch.testing.assert_close(apart, together[0])
        first, second = grad_cam.attribute((a, p), additional_forward_args=(n,))
        torch.testing.assert_close((first, second), together[:2])

    def test_tuple_layer_that_runs_thrice_gives_a_tuple_of_tuples(self):
        class Pair(nn.Module):
            def forward(self, x):
                return x.relu(), x.sigmoid()

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.pair = Pair()

            def forward(self, x):
                first, second = self.pair(x)
                return (first + second).mean((2, 3))

        net = Net()

        def forward(a, p, n):
            return triplet_loss(net(a), net(p), net(n), 90.0)

        maps = EmbeddingLayerGradCam(forward, net.pair).attribute(triplets())
        assert [len(m) for m in maps] == [2, 2, 2]
        assert maps[0][1].shape == (3, 1, 9, 11)

    def test_a_module_used_twice_is_refused_unless_the_run_is_named(self):
        relu = nn.ReLU()

        def forward(x):
            return (2 * relu(3 * relu(x) - 1)).sum((1, 2, 3))

        x = torch.rand(2, 1, 3, 3) + 1
        with pytest.raises(LayerError, match="runs 2 times for each input"):
            EmbeddingLayerGradCam(forward, relu).attribute(x)
        first, last = (
            EmbeddingLayerGradCam(forward, relu, execution=i).grad_weights(x) for i in (0, -1)
        )
        torch.testing.assert_close(first, torch.full((2, 1), 6.0))
        torch.testing.assert_close(last, torch.full((2, 1), 2.0))
        expected = LayerGradCam(forward, relu).attribute(x)
        torch.testing.assert_close(
            EmbeddingLayerGradCam(forward, relu, execution=-1).attribute(x), expected
        )
        with pytest.raises(InputError, match="execution is 2"):
            EmbeddingLayerGradCam(forward, relu, execution=2).attribute(x)

    def test_a_reused_layer_inside_a_shared_encoder(self):
        relu = nn.ReLU()
        encoder = nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.Conv2d(4, 5, 3), relu)
        encoder = nn.Sequential(encoder, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        images = triplets()
        with pytest.raises(LayerError, match=r"'encoder\.0\.1' runs 2 times"):
            EmbeddingLayerGradCam(TripletForward(encoder, 9.0), relu).attribute(images)

        def one_by_one(a, p, n):
            return triplet_loss(encoder(a), encoder(p), encoder(n), 9.0)

        last = EmbeddingLayerGradCam(one_by_one, encoder[0]).attribute(images)
        for forward in (TripletForward(encoder, 9.0), one_by_one):
            maps = EmbeddingLayerGradCam(forward, relu, execution=-1).attribute(images)
            if forward is not one_by_one:
                direction = torch.sign((maps[0] * last[0]).sum())
                maps = [direction * one for one in maps]
            for one, other in zip(maps, last, strict=True):
                torch.testing.assert_close(one, other)

    @pytest.mark.parametrize("frames", [2, 3])
    def test_frames_of_one_input_are_not_taken_for_several_inputs(self, frames):
        conv = nn.Conv2d(3, 4, 3)

        def forward(*clips):
            return torch.stack([conv(clip.flatten(0, 1)).square().mean() for clip in clips]).sum()

        clips = tuple(torch.randn(2, 1, frames, 3, 6, 7))
        maps = EmbeddingLayerGradCam(forward, conv).attribute(clips)
        for one, clip in zip(maps, clips, strict=True):
            expected = LayerGradCam(lambda c: forward(c).reshape(1), conv).attribute(clip)
            torch.testing.assert_close(one, expected)

    @settings(max_examples=20, deadline=None)
    @given(n=st.integers(1, 3), frames=st.integers(1, 4))
    def test_one_input_gives_one_map_whatever_the_layer_s_batch(self, n, frames):
        conv = nn.Conv2d(3, 4, 3)

        def forward(video):
            return (
                conv(video.flatten(0, 1)).square().mean((1, 2, 3)).unflatten(0, (n, frames)).sum(1)
            )

        video = torch.randn(n, frames, 3, 6, 7)
        expected = LayerGradCam(forward, conv).attribute(video)
        actual = EmbeddingLayerGradCam(forward, conv).attribute(video)
        assert actual.shape == (n * frames, 1, 4, 5)
        torch.testing.assert_close(actual, expected)

    def test_rows_that_cannot_be_told_apart_are_refused(self, encoder):
        a, p, n = triplets()

        def forward(a, p):
            return encoder(torch.cat([a, p, n])).sum(1)[:3]

        with pytest.raises(LayerError, match="which rows belong to which input is unknown"):
            EmbeddingLayerGradCam(forward, encoder.features).attribute((a, p))

    def test_images_encoded_under_no_grad_count_as_constants(self, encoder):
        def forward(a, p, n):
            with torch.no_grad():
                positive, negative = encoder(p), encoder(n)
            return triplet_loss(encoder(a), positive, negative)

        images = triplets()
        maps = EmbeddingLayerGradCam(forward, encoder.features).attribute(images)
        expected = by_full_autograd(encoder, images, triplet_loss)[0]
        torch.testing.assert_close(maps[0], expected)
        assert maps[1].abs().sum() == 0
        assert maps[2].abs().sum() == 0


class TestGradWeights:
    def test_matches_finite_differences_of_a_channel(self, encoder):
        encoder = encoder.double()
        a, p, n = (image.double() for image in triplets(n=2))
        weights = EmbeddingLayerGradCam(
            TripletForward(encoder, 4.0), encoder.features
        ).grad_weights((a, p, n))[0]
        step = 1e-6

        def shifted_loss(channel, by):
            shift = torch.zeros(5, dtype=torch.double)
            shift[channel] = by
            # adding a constant to a channel moves the loss by the sum of its gradients
            handle = encoder.features.register_forward_hook(
                lambda module, args, out: torch.cat([out[:2] + shift.view(1, 5, 1, 1), out[2:]])
            )
            try:
                return TripletForward(encoder, 4.0)(a, p, n).detach()
            finally:
                handle.remove()

        for channel in range(5):
            slope = (shifted_loss(channel, step) - shifted_loss(channel, -step)) / (2 * step)
            torch.testing.assert_close(weights[:, channel] * 5 * 7, slope, atol=1e-6, rtol=1e-5)

    def test_raw_map_of_a_unit_embedding_sums_to_zero(self):
        """Euler: with a linear head on pooled activations, sum(A * dy/dA) = 0."""
        torch.manual_seed(3)
        conv, head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4, bias=False)

        def forward(a, p, n):
            def embed(x):
                return nn.functional.normalize(head(conv(x).mean((2, 3))), dim=1)

            return triplet_loss(embed(a), embed(p), embed(n))

        maps = EmbeddingLayerGradCam(forward, conv).attribute(triplets())
        for one in maps:
            assert one.abs().sum() > 1e-3
            torch.testing.assert_close(one.sum((1, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)

    def test_many_tuples_cost_one_backward_and_equal_their_mean(self, encoder):
        anchor, _, _ = triplets(n=2)
        generator = torch.Generator().manual_seed(5)
        positives, negatives = (
            nn.functional.normalize(torch.randn(2, 6, 6, generator=generator), dim=2)
            for _ in range(2)
        )
        grad_cam = EmbeddingLayerGradCam(TripletForward(encoder, 0.1), encoder.features)
        together = grad_cam.grad_weights(anchor, additional_forward_args=(positives, negatives))
        for i in range(2):
            apart = torch.stack(
                [
                    grad_cam.grad_weights(
                        anchor[i : i + 1],
                        additional_forward_args=(positives[i, m : m + 1], negatives[i, m : m + 1]),
                    )[0]
                    for m in range(6)
                ]
            )
            active = apart.abs().sum(1) > 0
            assert 0 < active.sum() < 6, "the example must hold satisfied and violated tuples"
            torch.testing.assert_close(together[i], apart[active].mean(0))

    def test_channel_filter_is_applied_to_the_map_and_not_to_the_weights(self, encoder):
        images = triplets()
        forward = TripletForward(encoder, 4.0)
        raw = EmbeddingLayerGradCam(forward, encoder.features)
        filtered = EmbeddingLayerGradCam(
            forward, encoder.features, channel_filter=channel_filters.absolute
        )
        weights = raw.grad_weights(images)
        torch.testing.assert_close(filtered.grad_weights(images), weights)
        activation = encoder.features(torch.tanh(encoder.below(images[0]))).detach()
        expected = (weights[0].abs()[:, :, None, None] * activation).sum(1, keepdim=True)
        torch.testing.assert_close(filtered.attribute(images)[0], expected)

    def test_in_batch_scalar_loss_with_labels_works(self, encoder):
        losses = pytest.importorskip("pytorch_metric_learning.losses")
        images = torch.cat(triplets(2))
        labels = torch.tensor([0, 0, 1, 1, 2, 2])
        loss = losses.TripletMarginLoss(margin=1.0)

        def forward(batch, labels):
            return loss(encoder(batch), labels)

        maps = EmbeddingLayerGradCam(forward, encoder.features).attribute(
            images, additional_forward_args=labels
        )
        activation = encoder.features(torch.tanh(encoder.below(images)))
        activation.retain_grad()
        rectified = activation.relu()
        pooled = rectified.mean((2, 3)) + rectified.square().mean((2, 3))
        loss(nn.functional.normalize(encoder.head(pooled), dim=1), labels).backward()
        expected = (activation.grad.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True)
        torch.testing.assert_close(maps, expected.detach())
        assert maps.abs().sum() > 0


class TestLeavesNothingBehind:
    def test_hooks_are_removed_also_after_an_exception(self, encoder):
        def broken(images):
            encoder(images)
            raise RuntimeError("out of film")

        with pytest.raises(RuntimeError, match="out of film"):
            EmbeddingLayerGradCam(broken, encoder.features).attribute(triplets()[0], 0)
        EmbeddingLayerGradCam(encoder, encoder.features).attribute(
            triplets()[0], 0, attribute_to_layer_input=True
        )
        assert not encoder.features._forward_hooks
        assert not encoder.features._forward_pre_hooks

    def test_inputs_parameters_modes_and_rng_are_untouched(self, encoder):
        encoder.train()
        encoder.head.eval()
        images = triplets()
        copies = [image.clone() for image in images]
        rng = torch.get_rng_state()
        with torch.no_grad():
            maps = EmbeddingLayerGradCam(TripletForward(encoder, 4.0), encoder.features).attribute(
                images
            )
            assert not torch.is_grad_enabled()
        assert not any(m.requires_grad for m in maps)
        assert torch.equal(torch.get_rng_state(), rng)
        assert encoder.training
        assert not encoder.head.training
        for image, copy in zip(images, copies, strict=True):
            assert not image.requires_grad
            assert torch.equal(image, copy)
        assert all(p.grad is None and p.requires_grad for p in encoder.parameters())

    def test_nothing_below_the_layer_is_backpropagated_through(self, encoder):
        counts = {"below": 0, "above": 0}

        class Counted(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, place):
                ctx.place = place
                return x.clone()

            @staticmethod
            def backward(ctx, grad):
                counts[ctx.place] += 1
                return grad, None

        below = encoder.below.register_forward_hook(
            lambda module, args, out: Counted.apply(out, "below")
        )
        above = encoder.head.register_forward_hook(
            lambda module, args, out: Counted.apply(out, "above")
        )

        def one_by_one(a, p, n):
            return triplet_loss(encoder(a), encoder(p), encoder(n))

        EmbeddingLayerGradCam(one_by_one, encoder.features).attribute(triplets())
        assert counts == {"below": 0, "above": 3}
        EmbeddingLayerGradCam(TripletForward(encoder, 4.0), encoder.features).attribute(triplets())
        assert counts == {"below": 0, "above": 4}
        # the counter does count: a full backward passes below
        one_by_one(*triplets()).sum().backward()
        assert counts["below"] == 3
        below.remove()
        above.remove()

    def test_captums_warning_of_missing_gradients_is_not_raised(self, encoder):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            EmbeddingLayerGradCam(encoder, encoder.features).attribute(triplets()[0], 0)


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


class TestThreads:
    def test_calls_of_many_threads_do_not_mix(self, encoder):
        forward = TripletForward(encoder.eval(), 4.0)
        queries = [triplets(n=2, seed=seed) for seed in range(8)]
        bank = WeightBank(torch.randn(20, 6), torch.randn(20, 5))
        shared = EmbeddingLayerGradCam(forward, encoder.features)
        of_bank = EmbeddingLayerGradCam(forward, encoder.features, weight_bank=bank)
        expected = [(shared.attribute(q), of_bank.attribute(q)) for q in queries]
        wrong = []

        def explain(place):
            for i in range(CALLS_OF_A_THREAD):
                own = EmbeddingLayerGradCam(forward, encoder.features) if i % 2 else shared
                actual = own.attribute(queries[place]), of_bank.attribute(queries[place])
                for one, other in zip(sum(actual, ()), sum(expected[place], ()), strict=True):
                    if one.shape != other.shape or not torch.allclose(one, other, atol=1e-6):
                        wrong.append(place)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(explain, range(8)))
        assert not wrong
        assert not encoder.features._forward_hooks

    def test_a_thread_that_only_runs_the_network_is_left_alone(self, encoder):
        image = triplets()[0]
        expected = EmbeddingLayerGradCam(encoder, encoder.features).attribute(image, 0)
        gradients = []

        def forward(x):
            def train():
                gradients.append(torch.autograd.grad(encoder(-x).sum(), encoder.below.weight)[0])

            worker = threading.Thread(target=train)
            worker.start()
            worker.join()
            return encoder(x)

        actual = EmbeddingLayerGradCam(forward, encoder.features).attribute(image, 0)
        torch.testing.assert_close(actual, expected)
        plain = torch.autograd.grad(encoder(-image).sum(), encoder.below.weight)[0]
        torch.testing.assert_close(gradients[0], plain)

    def test_a_forward_function_may_run_the_network_in_its_own_threads(self, encoder):
        image = triplets()[0]

        def forward(x):
            outputs = []
            worker = threading.Thread(target=lambda: outputs.append(encoder(x)))
            worker.start()
            worker.join()
            return outputs[0]

        expected = EmbeddingLayerGradCam(encoder, encoder.features).attribute(image, 0)
        actual = EmbeddingLayerGradCam(forward, encoder.features).attribute(image, 0)
        torch.testing.assert_close(actual, expected)
