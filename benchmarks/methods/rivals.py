"""The rivals of the paper, from `captum_embed.rivals`.

Where a rival explains a similarity it is the one to the references; those that take any score take
the match itself. Where it needs a class, that of the bank which is
nearest to the image: the species of a test image is not among them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.methods.availability import tried
from benchmarks.methods.method import (
    BankSpec,
    Explainer,
    Method,
    MethodUnavailableError,
    Query,
    Subject,
)
from captum_embed import WeightBank
from captum_embed.rivals import (
    ActivationDecomposition,
    EigenCAM,
    EmbeddingCAM,
    EmbeddingLayerCAM,
    SimilarityGradCam,
    class_proxies,
)
from captum_embed.rivals.activations import ActivationMap
from captum_embed.rivals.linear_embedding import Pooling


def _with_tuples(explain: Explainer) -> Explainer:
    """An empty map where the image has no tuple, and so no positive."""

    def explain_where_possible(query: Query) -> Tensor:
        if not query.references or not query.references[0].shape[1]:
            return query.image.new_zeros(1, 1, 1, 1)
        return explain(query)

    return explain_where_possible


def _head(subject: Subject) -> nn.Module:
    head = getattr(subject.network, "head", None)
    if not isinstance(head, nn.Module):
        raise MethodUnavailableError(
            "the network has no module `head`, whose output is the embedding before the L2 norm"
        )
    return head


def _pooling(subject: Subject) -> Pooling:
    pool = getattr(subject.network, "pool", None)
    if isinstance(pool, nn.AdaptiveAvgPool2d):
        return "average"
    if isinstance(pool, nn.AdaptiveMaxPool2d):
        return "max"
    raise MethodUnavailableError(
        "the network has no module `pool` that is an nn.AdaptiveAvgPool2d or nn.AdaptiveMaxPool2d"
    )


def _decomposition(subject: Subject) -> ActivationDecomposition:
    return ActivationDecomposition(
        subject.network, subject.layer, _head(subject), _pooling(subject)
    )


def _decomposition_of_positives(subject: Subject) -> Explainer:
    method = _decomposition(subject)

    def explain(query: Query) -> Tensor:
        signed_map = method.attribute(query.image, query.references[0])
        assert isinstance(signed_map, Tensor)
        return signed_map

    return _with_tuples(explain)


def _decomposition_of_itself(subject: Subject) -> Explainer:
    method = _decomposition(subject)

    def explain(query: Query) -> Tensor:
        signed_map = method.attribute(query.image)
        assert isinstance(signed_map, Tensor)
        return signed_map

    return explain


def _embedding_cam(
    proxies_of: Callable[[WeightBank], Tensor],
) -> Callable[[Subject], Explainer]:
    """EmbeddingCAM with the nearest of the proxies made from the bank."""

    def build(subject: Subject) -> Explainer:
        method = EmbeddingCAM(subject.network, subject.layer, _head(subject), _pooling(subject))
        proxies = F.normalize(proxies_of(subject.needed_bank()), dim=1)

        def explain(query: Query) -> Tensor:
            with torch.no_grad():
                embedding = subject.network(query.image)
            similarities = proxies.to(embedding) @ embedding[0]
            return method.attribute(query.image, proxies[similarities.argmax()][None])

        return explain

    return build


def _mean_proxies(bank: WeightBank) -> Tensor:
    if bank.labels is None:
        raise MethodUnavailableError("the weight bank has no labels to average over")
    return class_proxies(bank.embeddings.float(), bank.labels)[1]


def _single_point_proxies(bank: WeightBank) -> Tensor:
    return bank.embeddings.float()


def _similarity_grad_cam(subject: Subject) -> Explainer:
    method = SimilarityGradCam(subject.network, subject.layer, _head(subject))

    def explain(query: Query) -> Tensor:
        signed_map = method.attribute(query.image, query.references[0])
        assert isinstance(signed_map, Tensor)
        return signed_map

    return _with_tuples(explain)


def _embedding_layer_cam(subject: Subject) -> Explainer:
    method = EmbeddingLayerCAM(subject.forward, subject.layer)

    def explain(query: Query) -> Tensor:
        signed_map = method.attribute(query.image, additional_forward_args=query.references)
        assert isinstance(signed_map, Tensor)
        return signed_map

    return _with_tuples(explain)


def of_activations(method: type[ActivationMap]) -> Callable[[Subject], Explainer]:
    """A map of what the layer puts out, whatever the match."""

    def build(subject: Subject) -> Explainer:
        attribution = method(subject.network, subject.layer)

        def explain(query: Query) -> Tensor:
            signed_map = attribution.attribute(query.image)
            assert isinstance(signed_map, Tensor)
            return signed_map

        return explain

    return tried(build)


METHODS = (
    Method(
        "activation_decomposition",
        "Activation decomposition",
        "rival",
        "Zhu et al.: share in the cosine similarity to the references, without foils",
        tried(_decomposition_of_positives),
        shares_forward=True,
    ),
    Method(
        "activation_decomposition_self",
        "Activation decomposition, itself",
        "rival",
        "Zhu et al.: share in the cosine similarity to itself",
        tried(_decomposition_of_itself),
        needs_tuples=False,
        shares_forward=True,
    ),
    Method(
        "embedding_cam_mean",
        "EmbeddingCAM, mean proxy",
        "rival",
        "Bachhawat: CAM of the nearest training class's mean embedding",
        tried(_embedding_cam(_mean_proxies)),
        bank=BankSpec(),
        needs_tuples=False,
        shares_forward=True,
    ),
    Method(
        "embedding_cam_point",
        "EmbeddingCAM, single-point proxy",
        "rival",
        "Bachhawat: CAM of the nearest training image's embedding",
        tried(_embedding_cam(_single_point_proxies)),
        bank=BankSpec(),
        needs_tuples=False,
        shares_forward=True,
    ),
    Method(
        "similarity_grad_cam",
        "Similarity Grad-CAM",
        "rival",
        "Grad-CAM of the dot product with the references, without foils, before the L2 norm",
        tried(_similarity_grad_cam),
        shares_forward=True,
    ),
    Method(
        "embedding_layer_cam",
        "LayerCAM",
        "rival",
        "positive gradient of the match times activation, position by position",
        tried(_embedding_layer_cam),
        shares_forward=True,
    ),
    Method(
        "eigen_cam",
        "Eigen-CAM",
        "rival",
        "activation along its first principal direction, whatever the match",
        of_activations(EigenCAM),
        needs_tuples=False,
        shares_forward=True,
    ),
)
