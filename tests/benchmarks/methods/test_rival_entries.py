from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.methods import METHODS, MethodUnavailableError, Query, Subject
from benchmarks.methods.match import Match
from captum_embed import WeightBank


def explain(name: str, subject: Subject, query: Query) -> Tensor:
    return METHODS[name].build(subject)(query)


def weighed(subject: Subject, query: Query, direction: Tensor) -> Tensor:
    """Share of each position in the dot product of the unnormalized embedding and a direction."""
    activation = subject.network.features(query.image)
    weights = direction @ subject.network.head.weight
    positions = activation.shape[2] * activation.shape[3]
    return torch.einsum("c,nchw->nhw", weights, activation)[:, None] / positions


def test_the_decomposition_is_of_the_mean_similarity_to_the_positives(
    tiny_subject: Subject, tiny_query: Query
) -> None:
    network = tiny_subject.network
    unnormalized = network.unnormalized(network.features(tiny_query.image))
    positives = tiny_query.references[0][0]
    expected = weighed(tiny_subject, tiny_query, positives.mean(0)) / unnormalized.norm()
    actual = explain("activation_decomposition", tiny_subject, tiny_query)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)
    similarity = (network(tiny_query.image) * positives).sum(1).mean()
    torch.testing.assert_close(actual.sum(), similarity, rtol=1e-4, atol=1e-5)


def test_the_decomposition_of_itself_sums_to_one(tiny_subject: Subject, tiny_query: Query) -> None:
    actual = explain("activation_decomposition_self", tiny_subject, tiny_query)
    assert actual.sum().item() == pytest.approx(1, abs=1e-4)


def test_a_mean_proxy_is_that_of_the_nearest_class(
    tiny_subject: Subject, tiny_query: Query
) -> None:
    bank = tiny_subject.needed_bank()
    assert bank.labels is not None
    means = torch.stack([bank.embeddings[bank.labels == c].mean(0) for c in bank.labels.unique()])
    proxies = means / means.norm(dim=1, keepdim=True)
    nearest = (proxies @ tiny_subject.network(tiny_query.image)[0]).argmax()
    actual = explain("embedding_cam_mean", tiny_subject, tiny_query)
    expected = weighed(tiny_subject, tiny_query, proxies[nearest])
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_a_single_point_proxy_is_the_nearest_training_image(
    tiny_subject: Subject, tiny_query: Query
) -> None:
    bank = tiny_subject.needed_bank()
    _, nearest = bank.search(tiny_subject.network(tiny_query.image))
    actual = explain("embedding_cam_point", tiny_subject, tiny_query)
    expected = weighed(tiny_subject, tiny_query, bank.embeddings[nearest[0, 0]])
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_similarity_grad_cam_bypasses_the_l2_norm(tiny_subject: Subject, tiny_query: Query) -> None:
    expected = weighed(tiny_subject, tiny_query, tiny_query.references[0][0].mean(0))
    actual = explain("similarity_grad_cam", tiny_subject, tiny_query)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_layer_cam_explains_the_match(tiny_subject: Subject, tiny_query: Query) -> None:
    activation = tiny_subject.network.features(tiny_query.image).requires_grad_()
    embedding = F.normalize(tiny_subject.network.unnormalized(activation), dim=1)
    references, foils = tiny_query.references
    match = (embedding * (references.mean(1) - foils.mean(1))).sum()
    (gradient,) = torch.autograd.grad(match, activation)
    expected = (gradient.relu() * activation).sum(1, keepdim=True)
    actual = explain("embedding_layer_cam", tiny_subject, tiny_query)
    torch.testing.assert_close(actual, expected.detach(), rtol=1e-4, atol=1e-6)


def test_eigen_cam_needs_neither_bank_nor_tuples(tiny_subject: Subject, tiny_query: Query) -> None:
    alone = Query(tiny_query.image)
    actual = explain("eigen_cam", replace(tiny_subject, bank=None), alone)
    assert torch.equal(actual, explain("eigen_cam", tiny_subject, tiny_query))


def test_rivals_of_a_bank_are_unavailable_without_one_or_without_its_labels(
    tiny_subject: Subject,
) -> None:
    for name in ("embedding_cam_mean", "embedding_cam_point"):
        with pytest.raises(MethodUnavailableError, match="no weight bank"):
            METHODS[name].build(replace(tiny_subject, bank=None))
    bank = tiny_subject.needed_bank()
    unlabelled = replace(tiny_subject, bank=WeightBank(bank.embeddings, bank.weights))
    with pytest.raises(MethodUnavailableError, match="no labels"):
        METHODS["embedding_cam_mean"].build(unlabelled)


@pytest.mark.parametrize(
    ("pool", "reason"),
    [(None, "no module `pool`"), (nn.Identity(), "no module `pool` that is")],
)
def test_rivals_that_need_a_linear_head_say_so(
    pool: nn.Module | None, reason: str, tiny_subject: Subject
) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = tiny_subject.layer
            self.head = nn.Identity()
            if pool is not None:
                self.pool = pool

        def forward(self, image: Tensor) -> Tensor:
            return self.head(self.features(image).mean((2, 3)))

    network = Network()
    subject = replace(tiny_subject, forward=Match(network))
    with pytest.raises(MethodUnavailableError, match=reason):
        METHODS["activation_decomposition"].build(subject)
    with pytest.raises(MethodUnavailableError, match="no module `head`"):
        METHODS["similarity_grad_cam"].build(
            replace(subject, forward=Match(nn.Sequential(network)))
        )


def test_a_layer_before_the_last_is_refused_by_the_decomposition(tiny_subject: Subject) -> None:
    subject = replace(tiny_subject, layer=tiny_subject.layer.block)
    with pytest.raises(MethodUnavailableError, match=r"LayerError: .*decomposition does not hold"):
        METHODS["activation_decomposition"].build(subject)
