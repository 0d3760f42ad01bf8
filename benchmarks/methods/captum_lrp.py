"""Captum's layer-wise relevance propagation, at the pixels and at a layer.

It runs on the canonical network, with the match as the linear layer that it is. Rules are
Captum's own: epsilon, its default, for convolutions, batch norms, poolings, linear layers and
residual additions; activations and the L2 norm pass their relevance on. Biases absorb relevance,
as always under these rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr import LRP, LayerLRP
from captum.attr._core.lrp import SUPPORTED_LAYERS_WITH_RULES, SUPPORTED_NON_LINEAR_LAYERS
from captum.attr._utils.lrp_rules import EpsilonRule, IdentityRule
from torch import Tensor, nn

from benchmarks.methods.availability import tried
from benchmarks.methods.canonical import Elementwise, LayerOutput, MaxPool, UnitLength, canonical
from benchmarks.methods.captum_call import explainer
from benchmarks.methods.match import as_linear
from benchmarks.methods.method import Explainer, Method, MethodUnavailableError, Query, Subject
from benchmarks.methods.reductions import ABSOLUTE

_PASSES_RELEVANCE_ON = (Elementwise, UnitLength, LayerOutput)
# They only move numbers, and so does the gradient through them.
_MOVES_NUMBERS = frozenset(
    {
        F.dropout, F.pad, torch.cat, torch.flatten,
        "contiguous", "flatten", "permute", "reshape", "view", "view_as",
    }
)  # fmt: skip
_KNOWN = (
    frozenset(SUPPORTED_LAYERS_WITH_RULES)
    | frozenset(SUPPORTED_NON_LINEAR_LAYERS)
    | frozenset(_PASSES_RELEVANCE_ON)
    | {MaxPool}
    | _MOVES_NUMBERS
)


def _lrp(
    create: Callable[[nn.Module, nn.Module], Any],
) -> Callable[[Subject], Explainer]:
    def build(subject: Subject) -> Explainer:
        network = canonical(subject.network, subject.layer)
        if beside := network.beside(_KNOWN):
            raise MethodUnavailableError(f"Captum has no relevance rule for {beside}")

        def attribute(query: Query) -> Tensor:
            match = as_linear(*query.references)
            for module in network.encoder.modules():
                if isinstance(module, _PASSES_RELEVANCE_ON):
                    module.rule = IdentityRule()
                elif isinstance(module, MaxPool):
                    module.rule = EpsilonRule()
            method = create(nn.Sequential(network.encoder, match), network.layer)
            relevance: Tensor = method.attribute(query.image, target=0)
            return relevance

        return explainer(subject, attribute, network=network.encoder)

    return tried(build)


METHODS_OF_LAYERS = (
    Method(
        "layer_lrp",
        "LayerLRP",
        "captum: layer",
        "relevance of the activations, by Captum's default rules",
        _lrp(LayerLRP),
    ),
)

METHODS_OF_PIXELS = (
    Method(
        "lrp",
        "LRP",
        "captum: input",
        "relevance of the pixels, by Captum's default rules",
        _lrp(lambda model, _: LRP(model)),
        customary=ABSOLUTE,
    ),
)
