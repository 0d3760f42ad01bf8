"""Rivals that explain any score. Here it is the match, as for Captum's methods."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from benchmarks.methods.availability import tried
from benchmarks.methods.budget import batch_size, window_sides, window_stride
from benchmarks.methods.captum_call import explainer
from benchmarks.methods.match import direction
from benchmarks.methods.method import Explainer, Method, Query, Subject
from benchmarks.methods.rivals import of_activations
from captum_embed.errors import LayerError
from captum_embed.families import place_of
from captum_embed.layouts import LayerLayout
from captum_embed.rivals import (
    RELAX,
    SBSM,
    AblationCAM,
    GradientAttentionRollout,
    LaFAM,
    LeGrad,
    ScoreCAM,
    SecondOrderAttribution,
)


def _scored(
    create: Callable[[Subject], Any], arguments: Callable[[Subject, Query], dict[str, Any]]
) -> Callable[[Subject], Explainer]:
    def build(subject: Subject) -> Explainer:
        method = create(subject)

        def attribute(query: Query) -> Tensor:
            signed_map: Tensor = method.attribute(
                query.image, additional_forward_args=query.references, **arguments(subject, query)
            )
            return signed_map

        return explainer(subject, attribute)

    return tried(build)


def _windows(subject: Subject, query: Query) -> dict[str, Any]:
    size = (query.image.shape[2], query.image.shape[3])
    stride = window_stride(size, subject.budget - 1)
    return {
        "window": window_sides(size, stride),
        "stride": (stride, stride),
        "perturbations_per_eval": batch_size(query.image),
    }


def _masks(subject: Subject, query: Query) -> dict[str, Any]:
    return {
        "num_masks": subject.budget,
        # From the global generator, which is seeded by the run and the image.
        "seed": int(torch.randint(2**31, ())),
        "perturbations_per_eval": batch_size(query.image),
    }


def _channels(subject: Subject, query: Query) -> dict[str, Any]:
    # One evaluation for the activations, and one of the image as it is.
    return {
        "max_channels": max(1, subject.budget - 2),
        "perturbations_per_eval": batch_size(query.image),
    }


def _tokens(subject: Subject) -> dict[str, Any]:
    """Prefix of a known network, and the grid of one that resizes its images."""
    layout = getattr(subject.network, "layout", None)
    if isinstance(layout, LayerLayout) and layout.layout == "tokens":
        return {"prefix_tokens": layout.prefix_tokens, "grid": layout.grid}
    with suppress(LayerError):
        return {"prefix_tokens": place_of(subject.network).prefix_tokens}
    return {}


def _second_order(subject: Subject) -> Explainer:
    head = getattr(subject.network, "head", None)
    method = SecondOrderAttribution(subject.network, subject.layer, head, similarity="cosine")

    def attribute(query: Query) -> Tensor:
        # The mean of unit references: the map is linear in the reference.
        mean = direction(query.references[0], query.references[0][:, :0])
        signed_map = method.attribute(query.image, mean)
        assert isinstance(signed_map, Tensor)
        return signed_map

    return explainer(subject, attribute)


METHODS = (
    Method(
        "lafam",
        "LaFAM",
        "rival",
        "mean of the channels, whatever the match",
        of_activations(LaFAM),
        needs_tuples=False,
        shares_forward=True,
    ),
    Method(
        "ablation_cam",
        "Ablation-CAM",
        "rival",
        "activations weighed by what the match loses without each channel",
        _scored(lambda s: AblationCAM(s.forward, s.layer), lambda *_: {}),
    ),
    Method(
        "score_cam",
        "Score-CAM",
        "rival",
        "activations weighed by the match of the image seen through each channel",
        _scored(lambda s: ScoreCAM(s.forward, s.layer, softmax=False), _channels),
        cost="slow",
    ),
    Method(
        "sbsm",
        "SBSM",
        "rival",
        "mean loss of match over the windows that hide each pixel",
        _scored(lambda s: SBSM(s.forward), _windows),
        cost="slow",
    ),
    Method(
        "relax",
        "RELAX",
        "rival",
        "mean match of randomly masked images in which each pixel is visible",
        _scored(lambda s: RELAX(s.forward), _masks),
        cost="slow",
    ),
    Method(
        "second_order",
        "Second order",
        "rival",
        "Jacobians at the layer along the path from zero, times the references, without foils",
        tried(_second_order),
    ),
    Method(
        "le_grad",
        "LeGrad",
        "rival",
        "positive gradients of the attention by the match that each block would give",
        _scored(lambda s: LeGrad(s.forward, **_tokens(s)), lambda *_: {}),
    ),
    Method(
        "gradient_attention_rollout",
        "Chefer et al.",
        "rival",
        "attention times its gradient by the match, rolled out over the blocks",
        _scored(lambda s: GradientAttentionRollout(s.forward, **_tokens(s)), lambda *_: {}),
    ),
)
