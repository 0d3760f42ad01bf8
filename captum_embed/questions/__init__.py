"""Everyday questions about an embedding network, one call each.

Each call explains a similarity with :class:`SimilarityForward`, a recipe and
:class:`EmbeddingLayerGradCam`, and returns an :class:`Answer`: signed maps, the scores that they
explain, and a way to draw them. In all of them a map is above zero where the picture raises the
score, and below zero where it lowers it.
"""

from captum_embed.questions.answers import Answer, Borrowed
from captum_embed.questions.asking import (
    class_look,
    whose_weights,
    why_alike,
    why_before,
    why_not,
)
from captum_embed.questions.explainer import IMAGENET, Settings, default_preprocess

__all__ = [
    "IMAGENET",
    "Answer",
    "Borrowed",
    "Settings",
    "class_look",
    "default_preprocess",
    "whose_weights",
    "why_alike",
    "why_before",
    "why_not",
]
