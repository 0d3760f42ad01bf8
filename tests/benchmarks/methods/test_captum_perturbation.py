"""Perturbation methods against brute force."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.methods import METHODS, MethodUnavailableError, Query, Subject
from benchmarks.methods import captum_perturbation as perturbation
from benchmarks.methods.baselines import superpixels
from benchmarks.methods.budget import block_side, window_sides, window_stride
from benchmarks.methods.captum_call import seeded_by


@torch.no_grad()
def loss(subject: Subject, image: Tensor, query: Query) -> float:
    return float(subject.forward(image, *query.references))


def without(image: Tensor, where: Tensor) -> Tensor:
    return image.masked_fill(where, 0.0)


def test_occlusion_is_the_mean_over_the_windows_that_hide_a_pixel(
    tiny_subject: Subject, tiny_query: Query
) -> None:
    height, width = tiny_query.image.shape[2:]
    stride = window_stride((height, width), tiny_subject.budget - 1)
    window = window_sides((height, width), stride)
    whole = loss(tiny_subject, tiny_query.image, tiny_query)
    total, times = np.zeros((height, width)), np.zeros((height, width))
    tops = range(0, height - window[0] + stride, stride)
    lefts = range(0, width - window[1] + stride, stride)
    for top in tops:
        for left in lefts:
            hidden = torch.zeros(height, width, dtype=torch.bool)
            hidden[top : top + window[0], left : left + window[1]] = True
            difference = whole - loss(tiny_subject, without(tiny_query.image, hidden), tiny_query)
            total[hidden] += difference
            times[hidden] += 1
    assert times.min() >= 1
    assert len(tops) * len(lefts) < tiny_subject.budget
    entry = METHODS["occlusion"].customary(METHODS["occlusion"].build(tiny_subject)(tiny_query))
    # All three colours hide together, and each is given the whole difference.
    np.testing.assert_allclose(entry[0, 0], 3 * np.abs(total / times), atol=1e-5)


def test_feature_ablation_is_the_match_without_a_superpixel(
    tiny_subject: Subject, tiny_query: Query
) -> None:
    parts = superpixels(tiny_query.image, tiny_subject.budget - 1)
    whole = loss(tiny_subject, tiny_query.image, tiny_query)
    expected = torch.zeros(parts.shape)
    for part in parts.unique():
        hidden = parts == part
        change = whole - loss(tiny_subject, without(tiny_query.image, hidden), tiny_query)
        expected[hidden] = 3 * abs(change)
    entry = METHODS["feature_ablation"].customary(
        METHODS["feature_ablation"].build(tiny_subject)(tiny_query)
    )
    torch.testing.assert_close(entry, expected, atol=1e-5, rtol=1e-4)


def test_layer_feature_ablation_is_the_match_without_a_position(
    tiny_subject: Subject, tiny_query: Query
) -> None:
    subject = replace(tiny_subject, budget=200)
    network = subject.network
    with torch.no_grad():
        activation = network.features(tiny_query.image)

    def match_of(activation: Tensor) -> float:
        with torch.no_grad():
            embedding = torch.nn.functional.normalize(network.unnormalized(activation), dim=1)
        references, foils = tiny_query.references
        return float((embedding * (references.mean(1) - foils.mean(1))).sum())

    height, width = activation.shape[2:]
    expected = torch.zeros(1, 1, height, width)
    for row in range(height):
        for column in range(width):
            ablated = activation.clone()
            ablated[..., row, column] = 0
            expected[..., row, column] = match_of(activation) - match_of(ablated)
    entry = METHODS["layer_feature_ablation"].customary(
        METHODS["layer_feature_ablation"].build(subject)(tiny_query)
    )
    # Every channel of a position is given the position's difference.
    torch.testing.assert_close(entry / activation.shape[1], expected, atol=1e-5, rtol=1e-3)


def test_a_small_budget_ablates_blocks_of_the_layer(
    tiny_subject: Subject, tiny_query: Query
) -> None:
    entry = METHODS["layer_feature_ablation"].customary(
        METHODS["layer_feature_ablation"].build(replace(tiny_subject, budget=12))(tiny_query)
    )
    side = block_side((9, 11), 9)
    assert entry.shape[2:] == (9, 11)
    assert side == 4
    assert (entry[0, 0, :side, :side] == entry[0, 0, 0, 0]).all()
    assert len(entry.unique()) == 9


@pytest.mark.parametrize(
    ("attribute", "tolerance"),
    [(perturbation.shapley_value_sampling, 1e-5), (perturbation.kernel_shap, 2e-3)],
)
def test_shapley_values_sum_to_the_change_of_the_loss(
    attribute, tolerance: float, tiny_subject: Subject, tiny_query: Query
) -> None:
    subject = replace(tiny_subject, budget=100)
    most = {perturbation.kernel_shap: 25}.get(attribute, 14)
    parts = superpixels(tiny_query.image, most)[0, 0]
    with seeded_by(0, tiny_query.image):
        attributions = attribute(subject, tiny_query)[0]
    values = []
    for part in parts.unique():
        inside = attributions[:, parts == part]
        assert (inside == inside[0, 0]).all()
        values.append(float(inside[0, 0]))
    nothing = torch.zeros_like(tiny_query.image)
    change = loss(subject, tiny_query.image, tiny_query) - loss(subject, nothing, tiny_query)
    assert abs(change) > 0.005
    assert sum(values) == pytest.approx(change, abs=tolerance)


def test_lime_is_a_ridge_regression_on_which_superpixels_are_shown(
    tiny_subject: Subject, tiny_query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sklearn.linear_model import Ridge

    shown: list[np.ndarray] = []
    weights: list[float] = []
    fit = Ridge.fit

    def recording(self: Ridge, x: np.ndarray, y: np.ndarray, sample_weight: np.ndarray) -> Ridge:
        shown.append(x)
        weights.append(sample_weight)
        return fit(self, x, y, sample_weight=sample_weight)

    monkeypatch.setattr(Ridge, "fit", recording)
    with seeded_by(0, tiny_query.image):
        attributions = perturbation.lime(tiny_subject, tiny_query)[0, 0]
    parts = superpixels(tiny_query.image, tiny_subject.budget // 4)[0, 0]
    x, weight = shown[0], weights[0]
    assert x.shape == (tiny_subject.budget, int(parts.max()) + 1)
    images = torch.cat([without(tiny_query.image, torch.from_numpy(row)[parts] == 0) for row in x])
    y = np.array([loss(tiny_subject, image[None], tiny_query) for image in images])
    centred_x = x - np.average(x, axis=0, weights=weight)
    centred_y = y - np.average(y, weights=weight)
    gram = centred_x.T @ (weight[:, None] * centred_x) + perturbation.LIME_PENALTY * np.eye(
        x.shape[1]
    )
    coefficients = np.linalg.solve(gram, centred_x.T @ (weight * centred_y))
    np.testing.assert_allclose(attributions, coefficients[parts], atol=1e-5)
    assert np.abs(coefficients).max() > 1e-4


def test_without_scikit_learn_the_regressions_are_unavailable(
    tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perturbation.importlib.util, "find_spec", lambda name: None)
    for name in ("lime", "kernel_shap"):
        with pytest.raises(MethodUnavailableError, match=r"scikit-learn.*pip install"):
            METHODS[name].build(tiny_subject)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 400))
def test_windows_cover_every_pixel_within_the_budget(height: int, width: int, budget: int) -> None:
    stride = window_stride((height, width), budget)
    window = window_sides((height, width), stride)
    covered = []
    count = 1
    for side, length in zip((height, width), window, strict=True):
        starts = range(0, side - length + stride, stride)
        count *= len(starts)
        hidden = np.zeros(side, dtype=bool)
        for start in starts:
            hidden[start : start + length] = True
        covered.append(hidden.all())
    assert all(covered)
    assert count <= max(1, budget)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 300))
def test_blocks_are_within_the_budget(height: int, width: int, budget: int) -> None:
    side = block_side((height, width), budget)
    blocks = -(-height // side) * -(-width // side)
    assert blocks <= budget
    if side > 1:
        finer = -(-height // (side - 1)) * -(-width // (side - 1))
        assert finer > budget


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 60), st.integers(2, 60), st.integers(2, 80), st.integers(0, 10**6))
def test_superpixels_are_two_or_more_and_no_more_than_allowed(
    height: int, width: int, most: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(1, 3, height, width, generator=generator)
    parts = superpixels(image, most)
    assert parts.shape == (1, 1, height, width)
    numbers = parts.unique()
    assert 2 <= len(numbers) <= most
    assert numbers.tolist() == list(range(len(numbers)))


def test_superpixels_follow_the_colours() -> None:
    image = torch.zeros(1, 3, 40, 40)
    image[..., 13:] = 1.5
    parts = superpixels(image, 12)[0, 0]
    left, right = set(parts[:, :13].unique().tolist()), set(parts[:, 13:].unique().tolist())
    assert len(left | right) > 4
    assert not left & right
