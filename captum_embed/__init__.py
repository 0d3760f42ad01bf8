"""Grad-CAM for embedding networks, as a Captum attribution.

``EmbeddingLayerGradCam`` explains metric-learning models, which have no class score: by the
gradients of a metric loss, or with a ``WeightBank`` by the grad-weights of the nearest training
images, in one forward pass (Chen et al., WACV 2020).
"""

from captum_embed import (
    channel_filters,
    map_functions,
    questions,
    recipes,
    rivals,
    visualization,
)
from captum_embed.grad_cam import EmbeddingLayerGradCam
from captum_embed.loss_forward import LossForward
from captum_embed.metric_forwards import (
    MetricForward,
    PairForward,
    QuadrupletForward,
    SimilarityForward,
    TripletForward,
)
from captum_embed.weight_bank import WeightBank, build_weight_bank

__all__ = [
    "EmbeddingLayerGradCam",
    "LossForward",
    "MetricForward",
    "PairForward",
    "QuadrupletForward",
    "SimilarityForward",
    "TripletForward",
    "WeightBank",
    "build_weight_bank",
    "channel_filters",
    "map_functions",
    "questions",
    "recipes",
    "rivals",
    "visualization",
]

__version__ = "0.2.0"
