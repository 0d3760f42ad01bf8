"""Captum's methods that average gradients: along paths from a baseline, or over noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from captum.attr import (
    GradientShap,
    IntegratedGradients,
    InternalInfluence,
    LayerConductance,
    LayerGradientShap,
    LayerIntegratedGradients,
    NoiseTunnel,
    Saliency,
)
from torch import Tensor, nn

from benchmarks.methods.availability import tried
from benchmarks.methods.baselines import mean_image, plain_images
from benchmarks.methods.budget import MOST_STEPS, batch_size, num_steps
from benchmarks.methods.captum_call import explainer
from benchmarks.methods.match import MatchAtLayer
from benchmarks.methods.method import Explainer, Method, Query, Subject
from benchmarks.methods.reductions import ABSOLUTE

# Deviation of SmoothGrad's noise, as a part of the image's range (Smilkov et al. 2017: 0.1-0.2).
NOISE = 0.15


@contextmanager
def _cut_below(layer: nn.Module) -> Iterator[None]:
    """Ends the graph at the layer, where Captum's layer methods hold on to that of past batches."""
    hook = layer.register_forward_hook(lambda _, __, output: output.detach().requires_grad_())
    try:
        yield
    finally:
        hook.remove()


def _path(
    create: Callable[[Subject], Any],
    *,
    at_layer: bool = False,
    evaluations: int = 1,
    extra: int = 0,
    batch: int | None = None,
) -> Callable[[Subject], Explainer]:
    """Steps from the mean image to the image, each of so many evaluations."""

    def build(subject: Subject) -> Explainer:
        method = create(subject)

        def attribute(query: Query) -> Tensor:
            with _cut_below(subject.layer) if at_layer else nullcontext():
                attributions: Tensor = method.attribute(
                    query.image,
                    mean_image(query.image),
                    additional_forward_args=query.references,
                    n_steps=num_steps(subject.budget, evaluations, extra),
                    # Conductance evaluates one image of a batch again in the next.
                    internal_batch_size=batch or batch_size(query.image, least=4),
                )
            return attributions

        return explainer(subject, attribute)

    return tried(build)


def shap(
    create: Callable[[Subject], Any], *, at_layer: bool = False, evaluations: int = 1
) -> Callable[[Subject], Explainer]:
    """Gradients at random points between plain baselines and the image."""

    def build(subject: Subject) -> Explainer:
        method = create(subject)

        def attribute(query: Query) -> Tensor:
            count = num_steps(subject.budget, evaluations)
            total = torch.zeros(())
            # Captum evaluates all samples of a call at once.
            for baselines in plain_images(query.image, count).split(batch_size(query.image)):
                mean: Tensor = method.attribute(
                    query.image,
                    baselines,
                    n_samples=len(baselines),
                    additional_forward_args=query.references,
                ).detach()
                total = total + mean * (len(baselines) / count)
            return total

        return explainer(subject, attribute)

    return tried(build)


def _noise_tunnel(subject: Subject) -> Explainer:
    method = NoiseTunnel(Saliency(subject.forward))

    def attribute(query: Query) -> Tensor:
        least, greatest = query.image.detach().aminmax()
        attributions: Tensor = method.attribute(
            query.image,
            nt_type="smoothgrad",
            nt_samples=num_steps(subject.budget),
            nt_samples_batch_size=batch_size(query.image),
            stdevs=NOISE * float(greatest - least),
            additional_forward_args=query.references,
        )
        return attributions

    return explainer(subject, attribute)


METHODS_OF_LAYERS = (
    Method(
        "internal_influence",
        "InternalInfluence",
        "captum: layer",
        "gradient at the layer, averaged from the mean image to the image",
        _path(lambda s: InternalInfluence(s.forward, s.layer), at_layer=True),
        cost="slow",
    ),
    Method(
        "layer_conductance",
        "LayerConductance",
        "captum: layer",
        "integrated gradients of the pixels as far as they flow through the layer",
        _path(lambda s: LayerConductance(s.forward, s.layer), at_layer=True, evaluations=2),
        cost="slow",
    ),
    Method(
        "layer_integrated_gradients",
        "LayerIntegratedGradients",
        "captum: layer",
        "gradient at the layer, integrated from the mean image's activation",
        _path(
            lambda s: LayerIntegratedGradients(MatchAtLayer(s.network), s.layer),
            at_layer=True,
            extra=2,
            batch=MOST_STEPS,
        ),
        cost="slow",
        shares_forward=True,
    ),
    Method(
        "layer_gradient_shap",
        "LayerGradientShap",
        "captum: layer",
        "gradient at the layer between plain baselines and the image, times the difference",
        shap(lambda s: LayerGradientShap(s.forward, s.layer), at_layer=True, evaluations=3),
        cost="slow",
    ),
)

METHODS_OF_PIXELS = (
    Method(
        "integrated_gradients",
        "IntegratedGradients",
        "captum: input",
        "gradient at the pixels, integrated from the mean image to the image",
        _path(lambda s: IntegratedGradients(s.forward)),
        customary=ABSOLUTE,
        cost="slow",
    ),
    Method(
        "gradient_shap",
        "GradientShap",
        "captum: input",
        "gradient at the pixels between plain baselines and the image, times the difference",
        shap(lambda s: GradientShap(s.forward)),
        customary=ABSOLUTE,
        cost="slow",
    ),
    Method(
        "noise_tunnel_saliency",
        "NoiseTunnel, Saliency",
        "captum: input",
        "SmoothGrad: Saliency averaged over noisy copies of the image",
        tried(_noise_tunnel),
        customary=ABSOLUTE,
        cost="slow",
    ),
)
