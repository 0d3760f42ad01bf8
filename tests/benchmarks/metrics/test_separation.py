import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from benchmarks.metrics.separation import auroc, paired_auroc
from captum_embed.errors import InputError

NUMBERS = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12)


@given(NUMBERS, NUMBERS)
def test_it_agrees_with_scikit_learn(higher: list[float], lower: list[float]) -> None:
    labels = [1] * len(higher) + [0] * len(lower)
    assert auroc(higher, lower) == pytest.approx(roc_auc_score(labels, higher + lower))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=8),
       st.integers(0, 1000))  # fmt: skip
def test_a_resample_is_its_images_one_after_the_other(
    pairs: list[tuple[int, int]], seed: int
) -> None:
    values = np.array(pairs, dtype=float)
    drawn = np.random.default_rng(seed).integers(len(values), size=len(values))
    counts = np.bincount(drawn, minlength=len(values))[None].astype(float)
    expected = auroc(*values[drawn].T)
    assert paired_auroc(values, counts) == pytest.approx([expected])


def test_nothing_and_nan_are_refused() -> None:
    with pytest.raises(InputError, match="two groups"):
        auroc([], [1.0])
    with pytest.raises(InputError, match="finite"):
        auroc([np.nan], [1.0])
