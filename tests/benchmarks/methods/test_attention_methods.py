import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from benchmarks.methods import METHODS, MethodUnavailableError, Query, Subject
from benchmarks.methods.match import Match
from captum_embed.rivals import GradientAttentionRollout, LeGrad

CLASSES = {"le_grad": LeGrad, "gradient_attention_rollout": GradientAttentionRollout}


@pytest.fixture
def subject() -> Subject:
    torch.manual_seed(0)
    network = VisionTransformer(64, 16, 2, 2, 16, 32)
    network.heads = nn.Identity()
    forward = Match(network.eval().requires_grad_(False)).eval()
    return Subject(forward, network.encoder.layers[-1])


@pytest.mark.parametrize("name", CLASSES)
def test_they_explain_the_match_foils_included(name: str, subject: Subject) -> None:
    references: tuple[Tensor, ...] = tuple(F.normalize(torch.randn(2, 1, 3, 16), dim=-1))
    query = Query(torch.randn(1, 3, 64, 64), references)
    actual = METHODS[name].build(subject)(query)
    expected = CLASSES[name](subject.forward).attribute(query.image, references)
    assert actual.shape == (1, 1, 4, 4)
    torch.testing.assert_close(actual, expected)
    mean = references[0].mean(1) - references[1].mean(1)
    alone = CLASSES[name](lambda x: subject.network(x) @ mean[0], *blocks(name, subject))
    torch.testing.assert_close(actual, alone.attribute(query.image))


def blocks(name: str, subject: Subject) -> list[list[nn.Module]]:
    return [list(subject.network.encoder.layers)] if name == "le_grad" else []  # type: ignore


@pytest.mark.parametrize("name", CLASSES)
def test_a_network_without_attention_is_named(name: str, tiny_subject: Subject) -> None:
    with pytest.raises(MethodUnavailableError, match="attention"):
        METHODS[name].build(tiny_subject)
