"""Maps and grad-weights of every image of a tuple, against full autograd."""

import pytest
import torch
from captum.attr import LayerGradCam
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from captum_embed import (
    EmbeddingLayerGradCam,
    TripletForward,
    channel_filters,
)
from captum_embed.errors import InputError, LayerError

from .conftest import by_full_autograd, triplet_loss, triplets


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
