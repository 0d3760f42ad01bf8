"""The rivals: other maps for embedding networks, as Captum attributions, for comparison.

Each explains the score that its forward function returns, such as the similarity to references,
or makes one of an encoder. On a network that ends in global average pooling and a linear head
several of them coincide; each class says with which others.
"""

from captum_embed.rivals.ablation_cam import AblationCAM
from captum_embed.rivals.activation_decomposition import ActivationDecomposition, SimilarityTerms
from captum_embed.rivals.cocoa import COCOA
from captum_embed.rivals.eigen_cam import EigenCAM
from captum_embed.rivals.embedding_cam import EmbeddingCAM, class_proxies
from captum_embed.rivals.gradient_attention_rollout import GradientAttentionRollout
from captum_embed.rivals.label_free import LabelFree
from captum_embed.rivals.lafam import LaFAM
from captum_embed.rivals.layer_cam import EmbeddingLayerCAM
from captum_embed.rivals.le_grad import LeGrad
from captum_embed.rivals.relax import RELAX
from captum_embed.rivals.sbsm import SBSM
from captum_embed.rivals.score_cam import ScoreCAM
from captum_embed.rivals.second_order import SecondOrderAttribution
from captum_embed.rivals.similarity_grad_cam import SimilarityGradCam

__all__ = [
    "COCOA",
    "RELAX",
    "SBSM",
    "AblationCAM",
    "ActivationDecomposition",
    "EigenCAM",
    "EmbeddingCAM",
    "EmbeddingLayerCAM",
    "GradientAttentionRollout",
    "LaFAM",
    "LabelFree",
    "LeGrad",
    "ScoreCAM",
    "SecondOrderAttribution",
    "SimilarityGradCam",
    "SimilarityTerms",
    "class_proxies",
]
