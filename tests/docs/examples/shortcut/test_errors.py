import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captum_embed.errors import InputError
from docs.examples.shortcut.errors import attribute_errors, held_out_recall


def test_an_error_with_the_querys_background_is_told_from_another() -> None:
    # Pairs of nearest neighbours: wrong class and same background, both right, wrong and other.
    embeddings = torch.tensor([[0.0, 0], [0, 1], [9, 0], [9, 1], [0, 20], [0, 21.5]])
    labels = [1, 2, 1, 1, 2, 3]
    backgrounds = ["moon", "moon", "wood", "wood", "wood", "moon"]
    errors = attribute_errors(embeddings, labels, backgrounds)
    assert errors.nearest.tolist() == [1, 0, 3, 2, 5, 4]
    assert errors.right_class.tolist() == [False, False, True, True, False, False]
    assert errors.same_background.tolist() == [True, True, True, True, False, False]
    # Of class 2 or 3: moon, wood, moon. Of class 1 or 3: moon, wood, wood, moon.
    assert errors.chance[0] == pytest.approx(2 / 3)
    assert errors.chance[4] == pytest.approx(2 / 4)
    summary = errors.as_json()
    assert summary["recall_at_1"][0] == pytest.approx(2 / 6)
    assert summary["errors"] == 4
    assert summary["errors_with_the_querys_background"] == 2
    assert summary["share_with_the_querys_background"][0] == 0.5
    assert summary["neighbours_with_the_querys_background"][0] == pytest.approx(4 / 6)


def test_without_errors_there_is_no_share_of_them() -> None:
    errors = attribute_errors(torch.tensor([[0.0], [1.0]]), [7, 7], ["moon", "wood"]).as_json()
    assert errors["recall_at_1"] == (1.0, 1.0, 1.0)
    assert errors["errors"] == 0
    assert errors["share_with_the_querys_background"] is None
    assert errors["share_by_chance"] is None
    json.dumps(errors, allow_nan=False)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 30), st.integers(1, 4), st.integers(0, 2**31))
def test_neighbours_are_those_of_a_loop(count: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Whole numbers, so that there are ties, which go to the lower index.
    points = rng.integers(-3, 4, (count, width))
    labels = rng.integers(0, 3, count).tolist()
    places = rng.choice(["moon", "wood"], count).tolist()
    errors = attribute_errors(torch.from_numpy(points).float(), labels, places)
    for i in range(count):
        others = [j for j in range(count) if j != i]
        nearest = min(others, key=lambda j, i=i: (((points[i] - points[j]) ** 2).sum(), j))
        assert errors.nearest[i] == nearest
        assert errors.right_class[i] == (labels[nearest] == labels[i])
        assert errors.same_background[i] == (places[nearest] == places[i])
        wrong = [j for j in others if labels[j] != labels[i]]
        alike = sum(places[j] == places[i] for j in wrong)
        assert errors.chance[i] == pytest.approx(alike / max(1, len(wrong)))


@pytest.mark.parametrize(
    ("embeddings", "labels", "backgrounds", "message"),
    [
        (torch.zeros(1, 2), [1], ["moon"], "2 images or more"),
        (torch.zeros(3), [1, 1, 1], ["moon"] * 3, "expected \\(N, D\\)"),
        (torch.zeros(3, 2), [1, 1], ["moon"] * 3, "3 embeddings, 2 labels"),
        (torch.zeros(3, 2), [1, 1, 2], ["moon"], "1 backgrounds"),
    ],
)
def test_errors_of_unequal_lists_are_refused(
    embeddings: torch.Tensor, labels: list[int], backgrounds: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        attribute_errors(embeddings, labels, backgrounds)


def test_held_out_images_are_looked_up_among_the_training_images() -> None:
    gallery = torch.tensor([[0.0], [10.0], [20.0]])
    queries = torch.tensor([[1.0], [9.0], [19.0], [2.0]])
    assert held_out_recall(queries, [1, 2, 1, 2], gallery, [1, 2, 3]) == 0.5
