"""Each variant changes one setting of EXPLAIN, and its map shows that."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from benchmarks.methods import METHODS, Query, Subject, distinct_banks, select
from benchmarks.methods.variants import BESIDE
from captum_embed import EmbeddingLayerGradCam, WeightBank
from captum_embed.map_functions import agreed_evidence, border_mean

VARIANTS = select(["variants"])


@pytest.fixture(scope="module")
def subject(tiny_subject: Subject) -> Subject:
    """With a bank of its own for each spec, of more entries than any variant averages."""
    given = tiny_subject.needed_bank()
    banks = {}
    for seed, spec in enumerate(distinct_banks(VARIANTS)):
        generator = torch.Generator().manual_seed(seed)
        banks[spec] = WeightBank(
            F.normalize(torch.randn(150, given.embeddings.shape[1], generator=generator), dim=1),
            torch.randn(150, given.weights.shape[1], generator=generator),
        )
    return replace(tiny_subject, bank=next(iter(banks.values())), other_banks=banks)


def test_variants_stand_in_their_group_alone_beside_the_recipe() -> None:
    names = {method.name for method in VARIANTS}
    assert names & set(METHODS) == set(BESIDE)
    assert not (names - set(BESIDE)) & {method.name for method in select(["all", "fast"])}


def test_no_two_variants_draw_the_same_map(subject: Subject, tiny_query: Query) -> None:
    maps = {method.name: method.build(subject)(tiny_query) for method in VARIANTS}
    # Fewer channels than the 50 that it keeps: the recipe's own map.
    torch.testing.assert_close(maps.pop("explain_50_channels"), maps["ours_explain"])
    names = list(maps)
    for place, name in enumerate(names):
        for other in names[place + 1 :]:
            same = maps[name].shape == maps[other].shape
            assert not (same and torch.allclose(maps[name], maps[other])), (name, other)


def test_the_border_is_taken_off_before_the_evidence(subject: Subject, tiny_query: Query) -> None:
    grad_cam = EmbeddingLayerGradCam(subject.forward, subject.layer)
    given = {"additional_forward_args": tiny_query.references}
    weights = grad_cam.grad_weights(tiny_query.image, **given)
    activations = subject.layer(tiny_query.image)
    (method,) = select(["explain_minus_the_border"])
    torch.testing.assert_close(
        method.build(subject)(tiny_query),
        agreed_evidence()(weights, activations - border_mean(activations)),
    )
