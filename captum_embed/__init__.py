"""Grad-CAM for embedding networks, as a Captum attribution.

``EmbeddingLayerGradCam`` explains metric-learning models, which have no class score: by the
gradients of a metric loss, or with a ``WeightBank`` by the grad-weights of the nearest training
images, in one forward pass (Chen et al., WACV 2020).
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
else:
    _HOMES = {
        "EmbeddingLayerGradCam": "grad_cam",
        "LossForward": "loss_forward",
        "MetricForward": "metric_forwards",
        "PairForward": "metric_forwards",
        "QuadrupletForward": "metric_forwards",
        "SimilarityForward": "metric_forwards",
        "TripletForward": "metric_forwards",
        "WeightBank": "weight_bank",
        "build_weight_bank": "weight_bank",
    }

    def __getattr__(name):
        # Imported when first used: `captum-embed --help` must not wait for torch.
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = import_module(f"{__name__}.{_HOMES.get(name, name)}")
        globals()[name] = getattr(home, name) if name in _HOMES else home
        return globals()[name]

    def __dir__():
        return sorted({*globals(), *__all__})


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
