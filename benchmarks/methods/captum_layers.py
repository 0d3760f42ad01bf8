"""Captum's attributions to a layer."""

from __future__ import annotations

from captum.attr import LayerActivation, LayerGradCam, LayerGradientXActivation
from torch import Tensor

from benchmarks.methods.method import Explainer, Method, Query, Subject
from benchmarks.methods.reductions import NORM


def _layer_grad_cam(subject: Subject) -> Explainer:
    method = LayerGradCam(subject.forward, subject.layer)
    # The channels are summed up where those of all methods are.
    return lambda query: method.attribute(
        query.image, additional_forward_args=query.references, attr_dim_summation=False
    )


def _layer_grad_cam_of_the_loss(subject: Subject) -> Explainer:
    explain = _layer_grad_cam(subject)
    # Without a hinge the loss is the negative of the match, up to a constant.
    return lambda query: -explain(query)


def _layer_activation(subject: Subject) -> Explainer:
    method = LayerActivation(subject.network, subject.layer)
    return lambda query: method.attribute(query.image)


def _layer_gradient_x_activation(subject: Subject) -> Explainer:
    method = LayerGradientXActivation(subject.forward, subject.layer)

    def explain(query: Query) -> Tensor:
        attributions: Tensor = method.attribute(
            query.image, additional_forward_args=query.references
        )
        return attributions

    return explain


METHODS = (
    Method(
        "layer_grad_cam",
        "LayerGradCam",
        "captum: layer",
        "channel means of the gradient, times the activation",
        _layer_grad_cam,
        shares_forward=True,
    ),
    Method(
        "layer_grad_cam_loss",
        "LayerGradCam, loss",
        "captum: layer",
        "LayerGradCam of the loss: evidence against the match",
        _layer_grad_cam_of_the_loss,
        shares_forward=True,
    ),
    Method(
        "layer_activation",
        "LayerActivation",
        "captum: layer",
        "norm of the activation: what is active, whatever the match",
        _layer_activation,
        customary=NORM,
        needs_tuples=False,
        shares_forward=True,
    ),
    Method(
        "layer_gradient_x_activation",
        "LayerGradientXActivation",
        "captum: layer",
        "gradient times activation, position by position",
        _layer_gradient_x_activation,
        shares_forward=True,
    ),
)
