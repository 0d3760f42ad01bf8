"""Captum's attributions to the pixels from one backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from captum.attr import Deconvolution, GuidedBackprop, InputXGradient
from torch import Tensor

from benchmarks.methods.availability import tried
from benchmarks.methods.captum_call import explainer
from benchmarks.methods.captum_inputs import require_relu_modules
from benchmarks.methods.method import Explainer, Method, Query, Subject
from benchmarks.methods.reductions import ABSOLUTE


def _backpropagation(
    create: Callable[[Subject], Any], *, guides_relus: bool = False
) -> Callable[[Subject], Explainer]:
    def build(subject: Subject) -> Explainer:
        if guides_relus:
            require_relu_modules(subject.network)
        method = create(subject)

        def attribute(query: Query) -> Tensor:
            attributions: Tensor = method.attribute(
                query.image, additional_forward_args=query.references
            )
            return attributions

        return explainer(subject, attribute)

    return tried(build)


METHODS = (
    Method(
        "input_x_gradient",
        "InputXGradient",
        "captum: input",
        "gradient of the match at the pixels, times the pixels less ImageNet's mean",
        _backpropagation(lambda s: InputXGradient(s.forward)),
        customary=ABSOLUTE,
    ),
    Method(
        "guided_backprop",
        "GuidedBackprop",
        "captum: input",
        "gradient, of which every ReLU passes the positive part where it is active",
        _backpropagation(lambda s: GuidedBackprop(s.forward), guides_relus=True),
        customary=ABSOLUTE,
    ),
    Method(
        "deconvolution",
        "Deconvolution",
        "captum: input",
        "gradient, of which every ReLU passes the positive part, active or not",
        _backpropagation(lambda s: Deconvolution(s.forward), guides_relus=True),
        customary=ABSOLUTE,
    ),
)
