import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from benchmarks.metrics.complexity import complexity_rise, histogram_entropy
from captum_embed.errors import InputError


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40), st.integers(1, 12))
def test_entropy_by_hand(values: list[float], bins: int) -> None:
    low, high = min(values), max(values)
    counts = [0] * bins
    if high == low:
        counts[0] = len(values)
    else:
        edges = np.linspace(low, high, bins + 1)
        for value in values:
            counts[min(int(np.searchsorted(edges, value, "right")) - 1, bins - 1)] += 1
    shares = [count / len(values) for count in counts if count]
    expected = -sum(share * math.log(share) for share in shares)
    # A value on an edge may go to either side by a rounding.
    assert histogram_entropy(values, bins) == pytest.approx(
        expected, abs=0.7 / math.sqrt(len(values))
    )


def test_a_constant_map_has_no_complexity_and_scale_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(8, 8)), rng.normal(size=(8, 8)) ** 3
    assert histogram_entropy(np.full((4, 4), 3.0)) == 0
    assert complexity_rise(np.zeros((4, 4)), one) == 0
    assert complexity_rise(one, np.zeros((4, 4))) == -1
    assert complexity_rise(5 * one - 1, other) == pytest.approx(
        complexity_rise(one, other), abs=0.05
    )
    assert complexity_rise(one, one) == 0


def test_nan_is_refused() -> None:
    with pytest.raises(InputError, match="finite map"):
        histogram_entropy([math.nan])


def test_it_agrees_with_quantus() -> None:
    """Quantus randomises a network of its own; its maps are written down, and scored by ours."""
    quantus: Any = pytest.importorskip(
        "quantus", reason="Quantus is no dependency of this project: pip install quantus"
    )
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 5)
    ).eval()
    images = np.random.default_rng(0).normal(size=(3, 3, 16, 16)).astype(np.float32)
    seen: list[np.ndarray] = []

    def explain(model: nn.Module, inputs: Any, targets: Any, **options: Any) -> np.ndarray:
        x = torch.as_tensor(inputs).float().requires_grad_()
        score = model(x).gather(1, torch.as_tensor(targets).long()[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, x)
        maps: np.ndarray = (gradient * x).sum(1, keepdim=True).detach().numpy()
        seen.append(maps)
        return maps

    metric = quantus.EfficientMPRT(disable_warnings=True)
    scores = metric(
        model=network, x_batch=images, y_batch=np.array([0, 1, 2]), explain_func=explain,
        device="cpu", batch_size=3,
    )  # fmt: skip
    trained, random = seen[0], seen[-1]
    assert not np.allclose(trained, random)
    ours = [complexity_rise(a, b) for a, b in zip(trained, random, strict=True)]
    np.testing.assert_allclose(ours, scores, rtol=1e-6)
