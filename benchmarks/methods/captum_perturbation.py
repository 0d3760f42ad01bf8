"""Captum's methods that switch off parts of the image, or of the layer, and look at the match.

What is switched off shows the baseline, see `benchmarks.methods.baselines`. Captum's attribution
is the match with a part less the match without it.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable

import torch
from captum._utils.models.linear_model import SkLearnRidge
from captum.attr import (
    FeatureAblation,
    KernelShap,
    LayerActivation,
    LayerFeatureAblation,
    Lime,
    Occlusion,
    ShapleyValueSampling,
)
from torch import Tensor

from benchmarks.methods.availability import tried
from benchmarks.methods.baselines import mean_image, superpixels
from benchmarks.methods.budget import batch_size, block_side, window_sides, window_stride
from benchmarks.methods.captum_call import explainer
from benchmarks.methods.match import MatchAtLayer
from benchmarks.methods.method import Explainer, Method, MethodUnavailableError, Query, Subject
from benchmarks.methods.reductions import ABSOLUTE

# Blocks of positions ablated at once.
MOST_BLOCKS = 32

# Samples per superpixel of the methods that fit a linear model to samples.
SAMPLES_PER_SUPERPIXEL = 4

# Of the ridge regression, as in the LIME authors' own code for images. Captum's default, a lasso
# with a penalty of 0.01, sets all coefficients to zero at the scale of a metric loss.
LIME_PENALTY = 1.0


def _pixels(attribute: Callable[[Subject, Query], Tensor]) -> Callable[[Subject], Explainer]:
    def build(subject: Subject) -> Explainer:
        return explainer(subject, lambda query: attribute(subject, query))

    return tried(build)


def _occlusion(subject: Subject, query: Query) -> Tensor:
    size = (query.image.shape[2], query.image.shape[3])
    stride = window_stride(size, subject.budget - 1)
    attributions: Tensor = Occlusion(subject.forward).attribute(
        query.image,
        sliding_window_shapes=(3, *window_sides(size, stride)),
        strides=(3, stride, stride),
        baselines=mean_image(query.image),
        additional_forward_args=query.references,
        perturbations_per_eval=batch_size(query.image),
    )
    return attributions


def _feature_ablation(subject: Subject, query: Query) -> Tensor:
    attributions: Tensor = FeatureAblation(subject.forward).attribute(
        query.image,
        mean_image(query.image),
        additional_forward_args=query.references,
        feature_mask=superpixels(query.image, max(2, subject.budget - 1)),
        perturbations_per_eval=batch_size(query.image),
    )
    return attributions


def shapley_value_sampling(subject: Subject, query: Query) -> Tensor:
    # Half as many permutations as superpixels: a permutation takes an evaluation for each.
    parts = superpixels(query.image, max(2, math.isqrt(2 * subject.budget)))
    num_parts = int(parts.max()) + 1
    attributions: Tensor = ShapleyValueSampling(subject.forward).attribute(
        query.image,
        mean_image(query.image),
        additional_forward_args=query.references,
        feature_mask=parts,
        n_samples=max(1, (subject.budget - 1) // num_parts),
        perturbations_per_eval=batch_size(query.image),
    )
    return attributions


def _regression_parts(subject: Subject, query: Query) -> Tensor:
    return superpixels(query.image, max(2, subject.budget // SAMPLES_PER_SUPERPIXEL))


def kernel_shap(subject: Subject, query: Query) -> Tensor:
    attributions: Tensor = KernelShap(subject.forward).attribute(
        query.image,
        mean_image(query.image),
        additional_forward_args=query.references,
        feature_mask=_regression_parts(subject, query),
        n_samples=subject.budget,
        perturbations_per_eval=batch_size(query.image),
    )
    return attributions


def lime(subject: Subject, query: Query) -> Tensor:
    method = Lime(subject.forward, interpretable_model=SkLearnRidge(alpha=LIME_PENALTY))
    attributions: Tensor = method.attribute(
        query.image,
        mean_image(query.image),
        additional_forward_args=query.references,
        feature_mask=_regression_parts(subject, query),
        n_samples=subject.budget,
        perturbations_per_eval=batch_size(query.image),
    )
    return attributions


def _regression(
    attribute: Callable[[Subject, Query], Tensor],
) -> Callable[[Subject], Explainer]:
    build_and_try = _pixels(attribute)

    def build(subject: Subject) -> Explainer:
        if importlib.util.find_spec("sklearn") is None:
            raise MethodUnavailableError(
                "Captum fits its linear model with scikit-learn, which is not installed: "
                'pip install -e ".[benchmarks]" in a checkout'
            )
        return build_and_try(subject)

    return build


def _layer_feature_ablation(subject: Subject) -> Explainer:
    method = LayerFeatureAblation(MatchAtLayer(subject.network), subject.layer)
    activation = LayerActivation(subject.network, subject.layer)

    def attribute(query: Query) -> Tensor:
        with torch.no_grad():
            height, width = activation.attribute(query.image).shape[2:]
        # An evaluation here, one more in Captum for the activation, and one of nothing ablated.
        side = block_side((height, width), subject.budget - 3)
        rows = torch.arange(height, device=query.image.device) // side
        columns = torch.arange(width, device=query.image.device) // side
        blocks = rows[:, None] * (int(columns.max()) + 1) + columns
        attributions: Tensor = method.attribute(
            query.image,
            layer_baselines=0,
            additional_forward_args=query.references,
            layer_mask=blocks[None, None],
            # Only what is behind the layer is evaluated again.
            perturbations_per_eval=MOST_BLOCKS,
        )
        return attributions

    return explainer(subject, attribute)


METHODS_OF_LAYERS = (
    Method(
        "layer_feature_ablation",
        "LayerFeatureAblation",
        "captum: layer",
        "the match with a position of the layer, less the match with zeros there",
        tried(_layer_feature_ablation),
        cost="slow",
        shares_forward=True,
    ),
)

METHODS_OF_PIXELS = (
    Method(
        "occlusion",
        "Occlusion",
        "captum: input",
        "the match, less the match with a window set to the mean colour",
        _pixels(_occlusion),
        cost="slow",
        customary=ABSOLUTE,
    ),
    Method(
        "feature_ablation",
        "FeatureAblation, superpixels",
        "captum: input",
        "the match, less the match with a superpixel set to the mean colour",
        _pixels(_feature_ablation),
        cost="slow",
        customary=ABSOLUTE,
    ),
    Method(
        "shapley_value_sampling",
        "ShapleyValueSampling, superpixels",
        "captum: input",
        "a superpixel's contribution to the match, averaged over random orders",
        _pixels(shapley_value_sampling),
        cost="slow",
        customary=ABSOLUTE,
    ),
    Method(
        "kernel_shap",
        "KernelShap, superpixels",
        "captum: input",
        "a superpixel's coefficient in a linear model of the match, Shapley weights",
        _regression(kernel_shap),
        cost="slow",
        customary=ABSOLUTE,
    ),
    Method(
        "lime",
        "Lime, superpixels",
        "captum: input",
        "a superpixel's coefficient in a linear model of the match near the image",
        _regression(lime),
        cost="slow",
        customary=ABSOLUTE,
    ),
)
