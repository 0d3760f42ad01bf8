"""The rivals: other maps for embedding networks, as Captum attributions, for comparison.

Zhu et al.'s activation decomposition, EmbeddingCAM, Grad-CAM of the similarity before the L2
norm, LayerCAM and Eigen-CAM. On a network that ends in global average pooling and a linear head
several of them coincide; each class says with which others.
"""

from captum_embed.rivals.activation_decomposition import ActivationDecomposition, SimilarityTerms
from captum_embed.rivals.eigen_cam import EigenCAM
from captum_embed.rivals.embedding_cam import EmbeddingCAM, class_proxies
from captum_embed.rivals.lafam import LaFAM
from captum_embed.rivals.layer_cam import EmbeddingLayerCAM
from captum_embed.rivals.similarity_grad_cam import SimilarityGradCam

__all__ = [
    "ActivationDecomposition",
    "EigenCAM",
    "EmbeddingCAM",
    "EmbeddingLayerCAM",
    "LaFAM",
    "SimilarityGradCam",
    "SimilarityTerms",
    "class_proxies",
]
