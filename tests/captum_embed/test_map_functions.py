import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from captum_embed import EmbeddingLayerGradCam, map_functions
from captum_embed.errors import InputError, LayerError


def example(n=2, channels=3, rows=4, columns=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, channels, generator=generator),
        torch.randn(n, channels, rows, columns, generator=generator),
    )


@given(st.integers(1, 3), st.integers(1, 4), st.integers(3, 6), st.integers(3, 6))
def test_each_is_the_formula_written_as_loops(n, channels, rows, columns):
    w, a = example(n, channels, rows, columns)
    total = map_functions.weighted_sum(w, a)
    norm = map_functions.weighted_norm(w, a)
    contrast = map_functions.background_contrast(power=0.5)(w, a)
    for i in range(n):
        ring = [
            (r, c)
            for r in range(rows)
            for c in range(columns)
            if r in (0, rows - 1) or c in (0, columns - 1)
        ]
        b = [sum(float(a[i, k, r, c]) for r, c in ring) / len(ring) for k in range(channels)]
        for r in range(rows):
            for c in range(columns):
                terms = [(float(w[i, k]), float(a[i, k, r, c])) for k in range(channels)]
                assert float(total[i, 0, r, c]) == pytest.approx(
                    sum(x * y for x, y in terms), abs=1e-4
                )
                assert float(norm[i, 0, r, c]) == pytest.approx(
                    sum(abs(x) * y * y for x, y in terms) ** 0.5, abs=1e-4
                )
                square = sum(abs(x) * (y - z) ** 2 for (x, y), z in zip(terms, b, strict=True))
                assert float(contrast[i, 0, r, c]) == pytest.approx(square**0.5, abs=1e-3)


def test_contrast_ignores_offsets_of_the_channels():
    w, a = example()
    offsets = torch.tensor([100.0, -50.0, 7.0]).view(1, 3, 1, 1)
    contrast = map_functions.background_contrast()
    torch.testing.assert_close(contrast(w, a + offsets), contrast(w, a), rtol=1e-3, atol=1e-3)


def test_power_orders_no_two_places_anew():
    w, a = example()
    first, second = (map_functions.background_contrast(p)(w, a).flatten() for p in (1.0, 2.5))
    assert torch.equal(first.argsort(), second.argsort())


def test_map_func_replaces_the_weighted_sum():
    layer = nn.Conv2d(3, 4, 3)
    x = torch.randn(2, 3, 6, 6)

    def forward(images):
        return layer(images).tanh().mean((1, 2, 3))

    plain = EmbeddingLayerGradCam(forward, layer)
    normed = EmbeddingLayerGradCam(forward, layer, map_func=map_functions.weighted_norm)
    expected = map_functions.weighted_norm(plain.grad_weights(x), layer(x).detach())
    torch.testing.assert_close(normed.attribute(x), expected)
    with pytest.raises(InputError, match="attr_dim_summation"):
        normed.attribute(x, attr_dim_summation=False)


@given(
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(3, 5),
    st.integers(3, 5),
    st.floats(0.01, 1.0),
)
def test_background_distance_is_the_formula_written_as_loops(n, channels, rows, columns, nearest):
    w, a = example(n, channels, rows, columns)
    actual = map_functions.background_distance(power=1.5, nearest=nearest)(w, a)
    places = [(r, c) for r in range(rows) for c in range(columns)]
    ring = [(r, c) for r, c in places if r in (0, rows - 1) or c in (0, columns - 1)]
    for i in range(n):
        for r, c in places:
            distances = sorted(
                math.sqrt(
                    sum(
                        abs(float(w[i, k])) * float(a[i, k, r, c] - a[i, k, y, x]) ** 2
                        for k in range(channels)
                    )
                )
                for y, x in ring
            )
            count = max(1, int(nearest * len(ring)))
            expected = (sum(distances[:count]) / count) ** 1.5
            assert float(actual[i, 0, r, c]) == pytest.approx(expected, abs=1e-3)


def test_signed_distance_is_above_zero_where_the_weights_want_the_difference_from_the_border():
    w, a = example(2, 3, 4, 5)
    distance = map_functions.background_distance(power=1.5)(w, a)
    signed = map_functions.background_distance(power=1.5, signed=True)(w, a)
    torch.testing.assert_close(signed.abs(), distance)
    ring = [(r, c) for r in range(4) for c in range(5) if r in (0, 3) or c in (0, 4)]
    for i, r, c in itertools.product(range(2), range(4), range(5)):
        evidence = sum(
            float(w[i, k] * (a[i, k, r, c] - sum(a[i, k, y, x] for y, x in ring) / len(ring)))
            for k in range(3)
        )
        assert float(signed[i, 0, r, c]) * evidence >= 0
    assert (signed < 0).any()
    torch.testing.assert_close(
        map_functions.background_distance(power=1.5, signed=True)(-w, a), -signed
    )


def test_background_distance_is_exact_far_from_zero():
    w, a = example()
    distance = map_functions.background_distance()
    torch.testing.assert_close(distance(w, a + 1000), distance(w, a), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    "make", [map_functions.background_contrast, map_functions.background_distance]
)
@pytest.mark.parametrize("power", [0, -1, float("nan")])
def test_power_must_be_above_zero(make, power):
    with pytest.raises(InputError, match="above zero"):
        make(power)


@pytest.mark.parametrize("nearest", [0, -0.5, 1.5, float("nan")])
def test_share_of_the_border_must_be_one(nearest):
    with pytest.raises(InputError, match="share of the border"):
        map_functions.background_distance(nearest=nearest)


@pytest.mark.parametrize(
    "make", [map_functions.background_contrast, map_functions.background_distance]
)
def test_layers_without_a_border_are_refused(make):
    with pytest.raises(LayerError, match="no border"):
        make()(torch.ones(2, 3), torch.ones(2, 3))


@pytest.mark.parametrize(
    "make", [map_functions.background_contrast, map_functions.background_distance]
)
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (2, 9), (9, 1)])
def test_layers_that_are_all_border_are_refused(make, size):
    with pytest.raises(LayerError, match="all border"):
        make()(torch.ones(2, 3), torch.rand(2, 3, *size))


@settings(deadline=None)
@given(
    n=st.integers(1, 3),
    channels=st.integers(1, 4),
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    power=st.floats(0, 3),
    seed=st.integers(0, 99),
)
def test_agreed_evidence_is_the_formula_written_as_loops(n, channels, rows, columns, power, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(n, channels, generator=generator, dtype=torch.float64)
    activations = torch.randn(n, channels, rows, columns, generator=generator, dtype=torch.float64)
    expected = torch.zeros(n, 1, rows, columns, dtype=torch.float64)
    terms = weights[:, :, None, None] * activations
    for i, y, x in itertools.product(range(n), range(rows), range(columns)):
        pro = contra = 0.0
        for v, u in itertools.product(range(rows), range(columns)):
            if max(abs(v - y), abs(u - x)) <= 5:
                near = math.exp(-((v - y) ** 2 + (u - x) ** 2) / (2 * 1.5**2))
                pro += near * sum(max(float(t), 0) for t in terms[i, :, v, u])
                contra += near * sum(max(-float(t), 0) for t in terms[i, :, v, u])
        total = sum(
            math.exp(-((v - y) ** 2 + (u - x) ** 2) / (2 * 1.5**2))
            for v, u in itertools.product(range(rows), range(columns))
            if max(abs(v - y), abs(u - x)) <= 5
        )
        net = (pro - contra) / total
        expected[i, 0, y, x] = net * abs((pro - contra) / (pro + contra)) ** power
    actual = map_functions.agreed_evidence(power, 1.5)(weights, activations)
    torch.testing.assert_close(actual, expected)
    plain = map_functions.agreed_evidence(0, 0)(weights, activations)
    torch.testing.assert_close(plain, map_functions.weighted_sum(weights, activations))


@pytest.mark.parametrize("settings", [(-1, 1), (1, -1), (float("nan"), 1), (1, float("inf"))])
def test_agreed_evidence_refuses_settings_without_a_meaning(settings):
    with pytest.raises(InputError, match="agreed_evidence has power"):
        map_functions.agreed_evidence(*settings)
