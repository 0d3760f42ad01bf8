from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam, Saliency
from torch import Tensor, nn

from benchmarks.methods import (
    METHODS,
    MethodUnavailableError,
    Query,
    Subject,
    distinct_banks,
    heatmap,
    select,
)
from benchmarks.methods.captum_call import seeded_by
from benchmarks.methods.match import Match
from benchmarks.methods.method import RECOMMENDED_LAYER
from benchmarks.networks.build import EmbeddingNetwork
from captum_embed import TripletForward, WeightBank
from captum_embed.errors import InputError
from captum_embed.recipes import EXPLAIN, LOCALIZE

CHANNELS, WIDTH, TUPLES = 60, 6, 5
# They need attention: unavailable on the network here (test_rival_entries.py).
OF_ATTENTION = {"le_grad", "gradient_attention_rollout"}
SERVING = [name for name in METHODS if name not in OF_ATTENTION]


@pytest.fixture(scope="module")
def subject() -> Subject:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, CHANNELS, 3), nn.ReLU()
        )
        network = EmbeddingNetwork(features, nn.Linear(CHANNELS, WIDTH, bias=False)).eval()
        network.requires_grad_(False)
        embeddings, weights = F.normalize(torch.randn(12, WIDTH), dim=1), torch.rand(12, CHANNELS)
        bank = WeightBank(embeddings, weights, labels=torch.arange(12) // 3)
    specs = distinct_banks(METHODS.values())
    return Subject(
        Match(network),
        network.features,
        bank,
        budget=60,
        other_banks=dict.fromkeys(specs, bank),
        other_layers={spec.layer: network.features for spec in specs}
        | {RECOMMENDED_LAYER: network.features[2]},
    )


@pytest.fixture(scope="module")
def query(subject: Subject) -> Query:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(1, 3, 20, 26, generator=generator)
    references = F.normalize(torch.randn(2, 1, TUPLES, WIDTH, generator=generator), dim=-1)
    positives, negatives = references
    return Query(image, (positives, negatives))


def explain(name: str, subject: Subject, query: Query) -> Tensor:
    """Its map, the channels reduced as is customary."""
    return METHODS[name].customary(METHODS[name].build(subject)(query))


@pytest.mark.parametrize("name", SERVING)
def test_every_method_gives_a_finite_map_of_the_image_s_size(
    name: str, subject: Subject, query: Query
) -> None:
    method = METHODS[name]
    attributions = method.build(subject)(query)
    assert attributions.abs().max() > 0
    pixels = heatmap(attributions, (20, 26), method.reduction("where"))
    assert pixels.shape == (20, 26)
    assert np.isfinite(pixels).all()
    assert pixels.min() >= 0


@pytest.mark.parametrize("name", SERVING)
def test_an_image_without_references_has_an_empty_map_or_needs_no_tuples(
    name: str, subject: Subject, query: Query
) -> None:
    nothing = Query(query.image, tuple(r[:, :0] for r in query.references))
    signed = explain(name, subject, nothing)
    assert torch.isfinite(signed).all()
    if METHODS[name].needs_tuples:
        assert (signed == 0).all()
    else:
        assert torch.equal(signed, explain(name, subject, query))


@pytest.mark.parametrize("name", SERVING)
def test_a_method_leaves_the_network_as_it_was(name: str, subject: Subject, query: Query) -> None:
    network = subject.network
    before = {k: v.clone() for k, v in network.state_dict().items()}
    rng = torch.get_rng_state()
    explain(name, subject, query)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    for module in network.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks
        assert not module._forward_pre_hooks
        assert not module.training
    assert all(not p.requires_grad and p.grad is None for p in network.parameters())
    assert not query.image.requires_grad
    assert torch.equal(torch.get_rng_state(), rng)


def test_layer_grad_cam_is_captum_s_called_by_hand(subject: Subject, query: Query) -> None:
    positives, negatives = query.references

    def match(image: Tensor) -> Tensor:
        anchor = subject.network(image)[:, None]
        near = ((anchor - positives) ** 2).sum(-1)
        far = ((anchor - negatives) ** 2).sum(-1)
        return (far - near).mean(1) / 2

    by_hand = LayerGradCam(match, subject.layer).attribute(query.image)
    ours = explain("layer_grad_cam", subject, query)
    torch.testing.assert_close(ours, by_hand, atol=1e-6, rtol=1e-4)


def test_without_a_recipe_ours_is_layer_grad_cam_and_the_loss_its_negative(
    subject: Subject, query: Query
) -> None:
    captums = explain("layer_grad_cam", subject, query)
    torch.testing.assert_close(explain("ours_gradient", subject, query), captums)
    torch.testing.assert_close(explain("layer_grad_cam_loss", subject, query), -captums)


def test_signed_distance_against_references_turns_round_with_references_and_foils(
    subject: Subject, query: Query
) -> None:
    actual = explain("ours_transfer_references", subject, query)
    assert (actual > 0).any()
    assert (actual < 0).any()
    turned = replace(query, references=query.references[::-1])
    torch.testing.assert_close(explain("ours_transfer_references", subject, turned), -actual)


@pytest.mark.parametrize("explains", ["match", "loss"])
def test_the_paper_s_map_weighs_activations_with_the_neighbour_s_fifty_largest_weights(
    explains: str, subject: Subject, query: Query
) -> None:
    bank = subject.needed_bank()
    embedding = subject.network(query.image)
    weights = bank.weights[((bank.embeddings - embedding) ** 2).sum(1).argmin()]
    kept = torch.where(weights >= weights.sort().values[-50], weights, 0)
    by_hand = torch.einsum("c,nchw->nhw", kept, subject.network.features(query.image))[:, None]
    name = "ours_paper" if explains == "match" else "ours_paper_loss"
    torch.testing.assert_close(explain(name, subject, query), by_hand, atol=1e-5, rtol=1e-4)


def test_controls_have_no_use_for_the_bank_s_weights(subject: Subject, query: Query) -> None:
    specs = subject.other_banks
    other = WeightBank(subject.needed_bank().embeddings, torch.rand(12, CHANNELS))
    changed = replace(subject, bank=other, other_banks=dict.fromkeys(specs, other))
    for name in ("control_uniform", "control_explain_uniform"):
        assert torch.equal(explain(name, subject, query), explain(name, changed, query))
    assert not torch.equal(
        explain("ours_localize", subject, query), explain("ours_localize", changed, query)
    )


def test_a_permuted_control_weighs_the_same_channels_otherwise(
    subject: Subject, query: Query
) -> None:
    with seeded_by(subject.seed, query.image):
        order = torch.randperm(CHANNELS)
    weights = subject.needed_bank().weights.mean(0, keepdim=True)[:, order]
    expected = EXPLAIN.map_func(weights, subject.network.features(query.image))
    actual = explain("control_explain_permuted", subject, query)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-4)
    assert not torch.allclose(actual, explain("ours_explain_transfer", subject, query))


def test_saliency_adds_the_colours_magnitudes(subject: Subject, query: Query) -> None:
    image = query.image.clone().requires_grad_()
    gradient = Saliency(subject.forward).attribute(
        image, abs=False, additional_forward_args=query.references
    )
    by_hand = gradient[:, :1].abs() + gradient[:, 1:2].abs() + gradient[:, 2:].abs()
    torch.testing.assert_close(explain("saliency", subject, query), by_hand)


def test_layer_activation_is_the_norm_over_channels(subject: Subject, query: Query) -> None:
    activation = subject.network.features(query.image)
    by_hand = (activation**2).sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(explain("layer_activation", subject, query), by_hand)


def test_a_transfer_method_without_a_bank_is_unavailable(subject: Subject) -> None:
    with pytest.raises(MethodUnavailableError, match="no weight bank"):
        METHODS["ours_paper"].build(Subject(subject.forward, subject.layer))


def test_a_guided_method_without_relu_modules_is_unavailable() -> None:
    network = EmbeddingNetwork(nn.Conv2d(3, 4, 3), nn.Identity())
    with pytest.raises(MethodUnavailableError, match=r"no nn\.ReLU module"):
        METHODS["guided_grad_cam"].build(Subject(Match(network), network.features))


def test_a_heatmap_is_rectified_before_it_is_resized() -> None:
    pixels = heatmap(torch.tensor([[[[-100.0, 4.0]]]]), (1, 4))
    np.testing.assert_allclose(pixels, [[0, 1, 3, 4]])


def test_nan_stays_visible_in_a_heatmap() -> None:
    assert np.isnan(heatmap(torch.full((1, 1, 2, 2), torch.nan), (4, 4))).any()


def test_methods_are_chosen_by_name_and_by_group() -> None:
    assert [m.name for m in select(["saliency", "ours_paper"])] == ["ours_paper", "saliency"]
    assert {m.name for m in select(["all"])} == set(METHODS)
    assert {m.cost for m in select(["fast"])} == {"fast"}
    assert select(["fast", "saliency"]) == select(["fast"])
    assert {m.name for m in select(["core"])} < {m.name for m in select(["fast"])}


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        InputError, match=r"unknown method grad_cam; known: core, fast, all, variants, ours_"
    ):
        select(["saliency", "grad_cam"])


def test_a_recipe_explains_the_layer_its_bank_was_built_for(subject: Subject, query: Query) -> None:
    spec = METHODS["ours_localize"].bank
    assert spec is not None
    earlier = subject.network.features[0]
    small = WeightBank(subject.needed_bank().embeddings, torch.rand(12, 8))
    other = Subject(
        subject.forward,
        subject.layer,
        subject.bank,
        other_banks={spec: small},
        other_layers={spec.layer: earlier},
    )
    expected = LOCALIZE.grad_cam(TripletForward(subject.network), earlier, weight_bank=small)
    actual = METHODS["ours_localize"].build(other)(query)
    torch.testing.assert_close(actual, expected.attribute(query.image))


def test_equal_bank_specs_share_a_bank_and_others_do_not() -> None:
    specs = distinct_banks(METHODS.values())
    assert len(specs) == len(set(specs)) == len({spec.folder_name for spec in specs})
