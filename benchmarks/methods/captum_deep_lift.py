"""Captum's DeepLift and DeepSHAP, at the pixels and at a layer.

They run on the canonical network, where every nonlinearity has a rule, so that the attributions
sum to what the match changes by from the baseline to the image. On the network as it is they do
not: Captum takes the plain gradient through the L2 norm, along which the match does not change, and
they sum to about zero whatever the change is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr import DeepLift, DeepLiftShap, LayerDeepLift, LayerDeepLiftShap
from captum.attr._utils.custom_modules import Addition_Module
from torch import Tensor, nn

from benchmarks.methods.availability import trial_query, tried
from benchmarks.methods.baselines import mean_image, plain_images
from benchmarks.methods.canonical import CanonicalNetwork, LayerOutput, canonical
from benchmarks.methods.captum_call import explainer
from benchmarks.methods.deep_lift_rules import SUPPORTED_NON_LINEAR
from benchmarks.methods.match import Match
from benchmarks.methods.method import Explainer, Method, MethodUnavailableError, Query, Subject
from benchmarks.methods.reductions import ABSOLUTE

# Baselines of the Shap methods, at most; two at a time, so that a batch holds four images.
NUM_BASELINES = 8
BASELINES_AT_A_TIME = 2

# How far the attributions' sum may be from the change of the loss, as a part of both.
TOLERANCE = 0.02

_LINEAR = frozenset(
    {
        nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, Addition_Module,
        LayerOutput, operator.sub, F.dropout, F.pad, torch.cat, torch.flatten, torch.mean,
        torch.sum, "contiguous", "flatten", "mean", "permute", "reshape", "sum", "view", "view_as",
    }
)  # fmt: skip


def _create(forward: nn.Module, network: CanonicalNetwork, *, at_layer: bool, shap: bool) -> Any:
    if at_layer:
        return (LayerDeepLiftShap if shap else LayerDeepLift)(forward, network.layer)
    return (DeepLiftShap if shap else DeepLift)(forward)


def _plain_baselines(image: Tensor, budget: int) -> Tensor:
    # An evaluation of the image goes with each of a baseline.
    together = min(NUM_BASELINES, budget // 2) // BASELINES_AT_A_TIME
    return plain_images(image, BASELINES_AT_A_TIME * max(1, together))


def _deep_lift(*, at_layer: bool, shap: bool) -> Callable[[Subject], Explainer]:
    def build(subject: Subject) -> Explainer:
        network = canonical(subject.network, subject.layer)
        forward = Match(network.encoder).eval()
        _require_completeness(
            subject, network, forward, _create(forward, network, at_layer=at_layer, shap=False)
        )
        method = _create(forward, network, at_layer=at_layer, shap=shap)

        def attribute(query: Query) -> Tensor:
            image = query.image
            baselines = _plain_baselines(image, subject.budget) if shap else mean_image(image)
            parts = [
                method.attribute(image, some, additional_forward_args=query.references).detach()
                for some in baselines.split(BASELINES_AT_A_TIME)
            ]
            return torch.stack(parts).mean(0)

        return explainer(subject, attribute, network=forward)

    return tried(build)


def _require_completeness(
    subject: Subject, network: CanonicalNetwork, forward: Match, method: Any
) -> None:
    """Raises where a nonlinearity without a rule keeps the attributions from summing up."""
    query = trial_query(subject)
    if query is None:
        return

    def attribute(query: Query) -> Tensor:
        baseline = mean_image(query.image)
        attributions = method.attribute(
            query.image, baseline, additional_forward_args=query.references
        )
        with torch.no_grad():
            change = forward(query.image, *query.references)
            change -= forward(baseline, *query.references)
        return torch.stack([attributions.sum(), change.sum()])

    total, change = explainer(subject, attribute, network=forward)(query)
    if not (total - change).abs() <= TOLERANCE * (total.abs() + change.abs()):
        beside = network.beside(_LINEAR | frozenset(SUPPORTED_NON_LINEAR))
        raise MethodUnavailableError(
            f"its attributions sum to {float(total):.3g} where the match changes by "
            f"{float(change):.3g}; without a DeepLift rule: {beside or 'none known'}"
        )


METHODS_OF_LAYERS = (
    Method(
        "layer_deep_lift",
        "LayerDeepLift",
        "captum: layer",
        "change of the activation from the mean image's, times the match's change with it",
        _deep_lift(at_layer=True, shap=False),
    ),
    Method(
        "layer_deep_lift_shap",
        "LayerDeepLiftShap",
        "captum: layer",
        "LayerDeepLift averaged over plain baselines",
        _deep_lift(at_layer=True, shap=True),
        cost="slow",
    ),
)

METHODS_OF_PIXELS = (
    Method(
        "deep_lift",
        "DeepLift",
        "captum: input",
        "change of the match from the mean image, shared out by the rescale rule",
        _deep_lift(at_layer=False, shap=False),
        customary=ABSOLUTE,
    ),
    Method(
        "deep_lift_shap",
        "DeepLiftShap",
        "captum: input",
        "DeepLift averaged over plain baselines",
        _deep_lift(at_layer=False, shap=True),
        customary=ABSOLUTE,
        cost="slow",
    ),
)
