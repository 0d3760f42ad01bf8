"""Entries against Captum called by hand, all at once and without batches."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from captum.attr import (
    GradientShap,
    InputXGradient,
    IntegratedGradients,
    InternalInfluence,
    LayerConductance,
    LayerGradientShap,
    LayerIntegratedGradients,
)
from torch import Tensor

from benchmarks.methods import METHODS, Query, Subject, budget, captum_call, captum_paths
from benchmarks.methods.budget import num_steps
from benchmarks.methods.match import Match


def magnitude(attributions: Tensor) -> Tensor:
    return attributions.detach().abs().sum(1, keepdim=True)


def signed_sum(attributions: Tensor) -> Tensor:
    return attributions.detach().sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("name", "create", "reduce", "steps"),
    [
        ("integrated_gradients", lambda f, _: IntegratedGradients(f), magnitude, 24),
        ("internal_influence", InternalInfluence, signed_sum, 24),
        ("layer_conductance", LayerConductance, signed_sum, 12),
        ("layer_integrated_gradients", LayerIntegratedGradients, signed_sum, 22),
    ],
)
def test_a_path_method_is_captum_s(
    name: str,
    create: Callable,
    reduce: Callable[[Tensor], Tensor],
    steps: int,
    tiny_subject: Subject,
    tiny_query: Query,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by_hand = create(tiny_subject.forward, tiny_subject.layer).attribute(
        tiny_query.image.clone().requires_grad_(),
        torch.zeros_like(tiny_query.image),
        additional_forward_args=tiny_query.references,
        n_steps=steps,
    )
    # Five images to a batch, so that there are several.
    pixels = 5 * tiny_query.image[0, 0].numel()
    monkeypatch.setattr(budget, "BATCH_PIXELS", {"cpu": pixels})
    entry = METHODS[name].customary(METHODS[name].build(tiny_subject)(tiny_query))
    torch.testing.assert_close(entry, reduce(by_hand), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "create", "reduce", "samples"),
    [
        ("gradient_shap", lambda f, _: GradientShap(f), magnitude, 24),
        ("layer_gradient_shap", LayerGradientShap, signed_sum, 8),
    ],
)
def test_a_shap_method_is_captum_s(
    name: str,
    create: Callable,
    reduce: Callable[[Tensor], Tensor],
    samples: int,
    tiny_subject: Subject,
    tiny_query: Query,
) -> None:
    """Small enough for one batch, so that the draws are the same."""
    with captum_call.seeded_by(tiny_subject.seed, tiny_query.image):
        by_hand = create(tiny_subject.forward, tiny_subject.layer).attribute(
            tiny_query.image.clone().requires_grad_(),
            captum_paths.plain_images(tiny_query.image, samples),
            n_samples=samples,
            additional_forward_args=tiny_query.references,
        )
    entry = METHODS[name].customary(METHODS[name].build(tiny_subject)(tiny_query))
    torch.testing.assert_close(entry, reduce(by_hand))


def test_batches_of_shap_samples_count_by_their_size(
    tiny_subject: Subject, tiny_query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 samples in batches of 10, 10 and 4, all of whose attributions are one."""

    class Ones:
        def attribute(self, image: Tensor, *_: object, **__: object) -> Tensor:
            return torch.ones_like(image)

    monkeypatch.setattr(budget, "BATCH_PIXELS", {"cpu": 10 * tiny_query.image[0, 0].numel()})
    build = captum_paths.shap(lambda _: Ones())
    signed = build(tiny_subject)(tiny_query)
    torch.testing.assert_close(signed, torch.ones_like(signed))


def test_smoothgrad_is_the_mean_of_noisy_saliencies(
    tiny_subject: Subject, tiny_query: Query
) -> None:
    entry = METHODS["noise_tunnel_saliency"]
    noise = captum_paths.NOISE * float(tiny_query.image.max() - tiny_query.image.min())
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(1, 1, *tiny_query.image.shape[2:])
    for _ in range(200):
        drawn = torch.randn(tiny_query.image.shape, generator=generator) * noise
        noisy = (tiny_query.image + drawn).requires_grad_()
        loss = tiny_subject.forward(noisy, *tiny_query.references).sum()
        total += magnitude(torch.autograd.grad(loss, noisy)[0]) / 200
    for samples in (24, 50):
        explain = entry.build(replace(tiny_subject, budget=samples))
        estimate = entry.customary(explain(tiny_query))
        closeness = torch.nn.functional.cosine_similarity(estimate.flatten(), total.flatten(), 0)
        assert closeness > 0.9


def test_input_x_gradient_is_captum_s(tiny_subject: Subject, tiny_query: Query) -> None:
    by_hand = InputXGradient(tiny_subject.forward).attribute(
        tiny_query.image.clone().requires_grad_(), additional_forward_args=tiny_query.references
    )
    entry = METHODS["input_x_gradient"].customary(
        METHODS["input_x_gradient"].build(tiny_subject)(tiny_query)
    )
    torch.testing.assert_close(entry, magnitude(by_hand))


def test_guidance_follows_its_definition(bias_free_subject: Subject, tiny_query: Query) -> None:
    """One convolution and one ReLU, where both rules can be written down."""
    from torch import nn

    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv = nn.Conv2d(3, 6, 3).requires_grad_(False)
    network = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    subject = replace(bias_free_subject, forward=Match(network), layer=conv)
    image = tiny_query.image.clone().requires_grad_()
    before = conv(image)
    after = before.detach().relu().requires_grad_()
    rest = nn.Sequential(*network[2:])
    references, foils = tiny_query.references
    match = (rest(after) * (references.mean(1) - foils.mean(1))).sum()
    (arriving,) = torch.autograd.grad(match, after)
    for name, passing in (
        ("guided_backprop", arriving.relu() * (before > 0)),
        ("deconvolution", arriving.relu()),
    ):
        (gradient,) = torch.autograd.grad(before, image, passing, retain_graph=True)
        entry = METHODS[name].customary(METHODS[name].build(subject)(tiny_query))
        torch.testing.assert_close(entry, magnitude(gradient))


def test_steps_stay_between_one_and_the_most() -> None:
    assert num_steps(1, evaluations=3, extra=2) == 1
    assert num_steps(10**6) == budget.MOST_STEPS
