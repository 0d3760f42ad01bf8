import pytest
import torch
import torch.nn.functional as F
from captum.attr import DeepLift
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.methods import METHODS, MethodUnavailableError, Query, Subject
from benchmarks.methods.availability import trial_query
from benchmarks.methods.canonical import MaxPool, canonical
from benchmarks.methods.deep_lift_rules import max_pool_rule, unit_length_rule
from benchmarks.methods.match import Match
from benchmarks.networks.build import EmbeddingNetwork


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.integers(1, 8), st.floats(0.1, 10), st.integers(0, 10**6))
def test_the_rule_for_the_l2_norm_sums_to_the_change(
    rows: int, width: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(2 * rows, width, generator=generator, dtype=torch.float64)
    inputs[rows:] *= scale
    multipliers = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    outputs = F.normalize(inputs, dim=1)
    actual = unit_length_rule(
        nn.Identity(), inputs, outputs, torch.empty(0), torch.cat([multipliers] * 2)
    )
    change = (multipliers * (outputs[:rows] - outputs[rows:])).sum(1)
    total = (actual[:rows] * (inputs[:rows] - inputs[rows:])).sum(1)
    torch.testing.assert_close(total, change)


@pytest.mark.parametrize("zero", ["baseline", "image", "both"])
def test_the_rule_for_the_l2_norm_stands_vectors_of_length_zero(zero: str) -> None:
    vectors, multipliers = torch.randn(2, 3, 5, dtype=torch.float64)
    inputs = torch.cat([vectors, vectors + 1])
    if zero != "image":
        inputs[3] = 0
    if zero != "baseline":
        inputs[0] = 0
    outputs = F.normalize(inputs, dim=1)
    actual = unit_length_rule(
        nn.Identity(), inputs, outputs, torch.empty(0), torch.cat([multipliers] * 2)
    )
    change = (multipliers * (outputs[:3] - outputs[3:])).sum(1)
    assert torch.isfinite(actual[1:]).all()
    torch.testing.assert_close((actual[:3] * (inputs[:3] - inputs[3:])).sum(1), change)


def test_the_rule_for_the_l2_norm_is_its_gradient_where_nothing_changes() -> None:
    vectors = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    multipliers = torch.randn(3, 5, dtype=torch.float64)
    outputs = F.normalize(vectors, dim=1)
    (gradient,) = torch.autograd.grad((outputs * multipliers).sum(), vectors)
    twice = torch.cat([vectors.detach()] * 2)
    actual = unit_length_rule(
        nn.Identity(), twice, F.normalize(twice, dim=1), twice, torch.cat([multipliers] * 2)
    )
    torch.testing.assert_close(actual[:3], gradient)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(0, 1), st.booleans(), st.integers(0, 10**6)
)
def test_the_rule_for_max_pooling_sums_to_the_change_where_windows_overlap(
    kernel: int, stride: int, padding: int, ceil: bool, seed: int
) -> None:
    padding = min(padding, kernel // 2)
    pool = MaxPool(kernel, stride, padding, ceil_mode=ceil)
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(4, 2, 7, 6, generator=generator, dtype=torch.float64)
    # Equal to the baseline in places, as after a ReLU.
    inputs = inputs.relu()
    outputs = pool(inputs)
    arriving = torch.randn(2, *outputs.shape[1:], generator=generator, dtype=torch.float64)
    actual = max_pool_rule(
        pool, inputs, outputs, torch.zeros_like(inputs), torch.cat([arriving] * 2)
    )
    change = (arriving * (outputs[:2] - outputs[2:])).sum((1, 2, 3))
    total = (actual[:2] * (inputs[:2] - inputs[2:])).sum((1, 2, 3))
    torch.testing.assert_close(total, change)


def test_the_rule_for_max_pooling_is_captum_s_where_windows_do_not_overlap() -> None:
    from captum.attr._core.deep_lift import maxpool2d

    pool = MaxPool(2)
    inputs = torch.randn(4, 2, 8, 6, dtype=torch.float64)
    arriving = torch.randn(2, 2, 4, 3, dtype=torch.float64)
    pool.input = inputs
    given_to_rule = (pool, inputs, pool(inputs), inputs, torch.cat([arriving] * 2))
    torch.testing.assert_close(max_pool_rule(*given_to_rule), maxpool2d(*given_to_rule))


def change_of_match(subject: Subject, query: Query) -> Tensor:
    """From the mean image."""
    with torch.no_grad():
        at_image = subject.forward(query.image, *query.references)
        return (at_image - subject.forward(torch.zeros_like(query.image), *query.references))[0]


def test_deep_lift_sums_to_the_change_of_the_match(
    tiny_subject: Subject, tiny_query: Query
) -> None:
    network = canonical(tiny_subject.network, tiny_subject.layer)
    forward = Match(network.encoder)
    attributions = DeepLift(forward).attribute(
        tiny_query.image.clone().requires_grad_(),
        torch.zeros_like(tiny_query.image),
        additional_forward_args=tiny_query.references,
    )
    change = change_of_match(tiny_subject, tiny_query)
    assert change.abs() > 0.005
    torch.testing.assert_close(attributions.sum(), change, rtol=1e-3, atol=1e-5)
    # The entry is this, with its colours reduced.
    expected = attributions.detach().abs().sum(1, keepdim=True)
    entry = METHODS["deep_lift"].customary(METHODS["deep_lift"].build(tiny_subject)(tiny_query))
    torch.testing.assert_close(entry, expected)


def test_captum_on_the_network_as_it_is_would_miss_the_change(
    bias_free_subject: Subject, tiny_query: Query
) -> None:
    class Normalized(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.head, self.pool = network.head, network.pool

        def forward(self, image: Tensor) -> Tensor:
            return F.normalize(self.head(self.pool(image).flatten(1)), dim=1)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 12, 3, bias=False), nn.ReLU())
            self.rest = Normalized(bias_free_subject.network)

        def forward(self, image: Tensor) -> Tensor:
            return self.rest(self.features(image))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network().requires_grad_(False)
    forward = Match(network)
    references = tiny_query.references
    baseline = torch.full_like(tiny_query.image, 0.3)
    image = tiny_query.image.clone().requires_grad_()
    plain = DeepLift(forward).attribute(image, baseline, additional_forward_args=references)
    ruled = DeepLift(Match(canonical(network, network.features).encoder))
    attributions = ruled.attribute(image, baseline, additional_forward_args=references)
    with torch.no_grad():
        change = (forward(image, *references) - forward(baseline, *references)).sum()
    torch.testing.assert_close(attributions.sum(), change, rtol=1e-3, atol=1e-5)
    assert (plain.sum() - change).abs() > 0.2 * change.abs()


def test_layer_deep_lift_sums_to_the_change_of_the_loss(
    tiny_subject: Subject, tiny_query: Query
) -> None:
    signed = METHODS["layer_deep_lift"].customary(
        METHODS["layer_deep_lift"].build(tiny_subject)(tiny_query)
    )
    change = change_of_match(tiny_subject, tiny_query)
    torch.testing.assert_close(signed.sum(), change, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["layer_deep_lift_shap", "deep_lift_shap"])
def test_the_shap_variants_average_over_the_plain_baselines(
    name: str, tiny_subject: Subject, tiny_query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the mean image as every baseline they are their single-baseline counterparts."""
    from benchmarks.methods import captum_deep_lift

    monkeypatch.setattr(
        captum_deep_lift, "plain_images", lambda image, n: torch.zeros(n, *image.shape[1:])
    )
    shap = METHODS[name].customary(METHODS[name].build(tiny_subject)(tiny_query))
    single = METHODS[name.removesuffix("_shap")].customary(
        METHODS[name.removesuffix("_shap")].build(tiny_subject)(tiny_query)
    )
    torch.testing.assert_close(shap, single, rtol=1e-4, atol=1e-6)


def test_on_a_network_that_captum_supports_it_is_captum_s_deep_lift(tiny_query: Query) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6)
    ).requires_grad_(False)
    forward = Match(network)
    by_hand = DeepLift(forward).attribute(
        tiny_query.image.clone().requires_grad_(),
        torch.zeros_like(tiny_query.image),
        additional_forward_args=tiny_query.references,
    )
    entry = METHODS["deep_lift"].customary(
        METHODS["deep_lift"].build(Subject(forward, network[1]))(tiny_query)
    )
    torch.testing.assert_close(entry, by_hand.detach().abs().sum(1, keepdim=True))


def test_a_nonlinearity_without_a_rule_makes_it_unavailable(tiny_subject: Subject) -> None:
    class Gated(nn.Module):
        def __init__(self, features: nn.Module) -> None:
            super().__init__()
            self.features = features

        def forward(self, image: Tensor) -> Tensor:
            x = self.features(image)
            return (x * x.mean((2, 3), keepdim=True).exp()).sum((2, 3))

    network = Gated(tiny_subject.layer)
    subject = Subject(Match(network), network.features)
    with pytest.raises(
        MethodUnavailableError, match=r"sum to .* without a DeepLift rule: exp, mul"
    ):
        METHODS["deep_lift"].build(subject)


@pytest.mark.parametrize("name", ["deep_lift", "layer_deep_lift", "lrp", "layer_lrp"])
def test_torchvision_s_resnet_is_served(name: str) -> None:
    """Its ReLU modules run twice, work in place and feed an overlapping max pooling."""
    from torchvision.models import resnet18

    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = nn.Sequential(*list(resnet18().children())[:-2])
        network = EmbeddingNetwork(features, nn.Linear(512, 6, bias=False))
    network.eval().requires_grad_(False)
    subject = Subject(Match(network), network.features)
    explain = METHODS[name].build(subject)
    query = trial_query(subject)
    assert query is not None
    assert explain(query).abs().max() > 0
