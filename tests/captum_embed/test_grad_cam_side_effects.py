"""EmbeddingLayerGradCam leaves the network, its inputs and other threads alone."""

import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from captum_embed import (
    EmbeddingLayerGradCam,
    TripletForward,
    WeightBank,
)

from .conftest import triplet_loss, triplets

# `make torture` makes more.
CALLS_OF_A_THREAD = int(os.environ.get("THREAD_CALLS", "8"))


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
