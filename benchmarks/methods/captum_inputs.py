"""Captum's attributions to the pixels of the image from one backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from captum.attr import Deconvolution, GuidedBackprop, GuidedGradCam, InputXGradient, Saliency
from torch import Tensor, nn

from benchmarks.methods.availability import tried
from benchmarks.methods.captum_call import explainer, quiet
from benchmarks.methods.method import Explainer, Method, MethodUnavailableError, Query, Subject
from benchmarks.methods.reductions import ABSOLUTE


def _pixels(attribute: Callable[..., Tensor], **options: Any) -> Explainer:
    """An explainer of Captum's usual call."""

    def explain(query: Query) -> Tensor:
        with quiet():
            attributions: Tensor = attribute(
                query.image, additional_forward_args=query.references, **options
            )
            return attributions

    return explain


def _saliency(subject: Subject) -> Explainer:
    return _pixels(Saliency(subject.forward).attribute)


def require_relu_modules(network: nn.Module) -> None:
    """Guided methods change nothing, silently, in a network that calls ReLU as a function."""
    if not any(isinstance(module, nn.ReLU) for module in network.modules()):
        raise MethodUnavailableError("the network has no nn.ReLU module for the method to guide")


def _guided_grad_cam(subject: Subject) -> Explainer:
    require_relu_modules(subject.network)
    method = GuidedGradCam(subject.forward, subject.layer)
    return _pixels(method.attribute, interpolate_mode="bilinear")


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
        "saliency",
        "Saliency",
        "captum: input",
        "absolute gradient of the match at the pixels",
        _saliency,
        customary=ABSOLUTE,
    ),
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

GUIDED_GRAD_CAM = Method(
    "guided_grad_cam",
    "GuidedGradCam",
    "captum: input",
    "guided backpropagation within the positive part of LayerGradCam",
    _guided_grad_cam,
    customary=ABSOLUTE,
)
