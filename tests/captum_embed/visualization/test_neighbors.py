import numpy as np
import pytest
import torch

from captum_embed.errors import InputError
from captum_embed.visualization import visualize_neighbors
from captum_embed.weight_bank.queries import Neighbors

NEIGHBORS = Neighbors(
    [["b", "a", "c"]],
    torch.tensor([[7, 5, 9]]),
    torch.tensor([[0.125, 0.25, 3.0]]),
    torch.tensor([[1, 0, 2]]),
)
PICTURES = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 3, 4, 4)


@pytest.mark.parametrize(
    "images",
    [
        dict(zip("abc", PICTURES, strict=True)),
        list(PICTURES),
        PICTURES,
        lambda index: PICTURES[index],
    ],
)
def test_neighbours_are_drawn_nearest_first(images):
    _, axes = visualize_neighbors(NEIGHBORS, images, shown=2)
    assert [float(axis.images[0].get_array().mean()) for axis in axes[0]] == [0.5, 0.0]
    assert [axis.get_title() for axis in axes[0]] == ["b\nlabel 7\nat 0.125", "a\nlabel 5\nat 0.25"]


def test_the_query_comes_first_with_its_map():
    query = np.full((4, 4), 0.5)
    _, axes = visualize_neighbors(NEIGHBORS, PICTURES, query, torch.ones(1, 1, 2, 2))
    assert axes.shape == (1, 4)
    red = axes[0, 0].images[0].get_array()
    assert (red[..., 0] > red[..., 2]).all()
    _, axes = visualize_neighbors(NEIGHBORS, PICTURES, query)
    assert (axes[0, 0].images[0].get_array() == 0.5).all()


def test_entries_without_names_are_numbered():
    _, axes = visualize_neighbors(NEIGHBORS._replace(keys=None, labels=None), PICTURES)
    assert axes[0, 0].get_title() == "entry 1\nat 0.125"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": PICTURES[:1]}, "'b'.*index 1"),
        ({"images": {"a": PICTURES[0]}}, "'b'"),
        ({"neighbors": NEIGHBORS._replace(keys=None), "images": {}}, "no keys"),
        ({"neighbors": Neighbors(None, None, *torch.ones(2, 2, 3).unbind())}, "2 queries"),
        ({"attr": torch.ones(1, 1, 2, 2)}, "query"),
        ({"shown": 0}, "shown"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        visualize_neighbors(**{"neighbors": NEIGHBORS, "images": PICTURES, **change})
