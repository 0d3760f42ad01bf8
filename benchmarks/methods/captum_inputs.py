"""Captum's attributions to the pixels of the image."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from captum.attr import GuidedGradCam, Saliency
from torch import Tensor, nn

from benchmarks.methods.method import Explainer, Method, MethodUnavailableError, Query, Subject
from benchmarks.methods.reductions import ABSOLUTE


def _pixels(attribute: Callable[..., Tensor], **options: Any) -> Explainer:
    """An explainer of Captum's usual call."""

    def explain(query: Query) -> Tensor:
        with warnings.catch_warnings():
            # Captum announces its hooks, and that it switches requires_grad on, at every call.
            warnings.filterwarnings("ignore", "Setting (backward|forward)")
            warnings.filterwarnings("ignore", "Input Tensor 0 did not already require gradients")
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


METHODS = (
    Method(
        "saliency",
        "Saliency",
        "captum: input",
        "absolute gradient of the match at the pixels",
        _saliency,
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
