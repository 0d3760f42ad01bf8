"""Whose map is whose, where a plain function encodes its inputs in any order and any way."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from captum_embed import EmbeddingLayerGradCam
from captum_embed.errors import LayerError

CONV = nn.Conv2d(3, 4, 3)
RELU = nn.ReLU()


def features(images):
    """Runs RELU twice."""
    return RELU(RELU(CONV(images)) - 0.1)


def pooled(images):
    return features(images).mean((2, 3))


def images(k=2, n=2, seed=0):
    return tuple(torch.randn(k, n, 3, 6, 7, generator=torch.Generator().manual_seed(seed)))


def value(embeddings):
    """Treats each embedding by its place, so that maps of two inputs differ."""
    return sum((place + 2) * one.square().sum(1) for place, one in enumerate(embeddings))


@settings(max_examples=30, deadline=None)
@given(
    order=st.integers(2, 4).flatmap(lambda k: st.permutations(range(k))),
    joined=st.booleans(),
    n=st.integers(1, 3),
    execution=st.sampled_from([0, 1, -1]),
    differentiable=st.booleans(),
)
def test_inputs_in_any_order(order, joined, n, execution, differentiable):
    inputs = images(len(order), n)

    def forward(*given):
        chosen = [given[place] for place in order]
        embeddings = pooled(torch.cat(chosen)).split(n) if joined else list(map(pooled, chosen))
        return value([embeddings[order.index(place)] for place in range(len(order))])

    grad_cam = EmbeddingLayerGradCam(forward, RELU, execution=execution)
    maps = grad_cam.attribute(inputs, grad_kwargs={"create_graph": differentiable})
    for place, one in enumerate(inputs):

        def of_one(x, weight=place + 2):
            return weight * pooled(x).square().sum(1)

        alone = EmbeddingLayerGradCam(of_one, RELU, execution=execution)
        torch.testing.assert_close(maps[place].detach(), alone.attribute(one))
        assert not one.requires_grad


def test_inputs_layer_by_layer():
    def forward(*given):
        first = [RELU(CONV(one)) for one in given]
        second = [RELU(one - 0.1) for one in reversed(first)]
        return value([one.mean((2, 3)) for one in reversed(second)])

    def by_itself(*given):
        return value(list(map(pooled, given)))

    for execution in (0, 1):
        maps, expected = (
            EmbeddingLayerGradCam(each, RELU, execution=execution).attribute(images())
            for each in (forward, by_itself)
        )
        torch.testing.assert_close(maps, expected)


def clips():
    return tuple(torch.randn(2, 2, 3, 3, 6, 7, generator=torch.Generator().manual_seed(1)))


def of_frames(first, second):
    """Joined frames of two clips: 12 rows, twice."""
    embeddings = pooled(torch.cat([first, second]).flatten(0, 1)).unflatten(0, (4, 3)).mean(1)
    return value(embeddings.split(2))


def of_windows(first, second):
    """Joined, then cut into windows: 8 rows, twice."""
    windows = torch.cat([first, second]).unflatten(3, (-1, 1)).movedim(3, 1).flatten(0, 1)
    embeddings = pooled(windows.expand(-1, -1, -1, 3)).unflatten(0, (4, -1)).mean(1)
    return value(embeddings.split(2))


def of_both(first, second):
    """Two images seen as one: 2 rows, twice."""
    return pooled(first + second).sum(1)


def side_by_side(first, second):
    return pooled(torch.cat([first, second], dim=-1)).sum(1)


def interleaved(first, second):
    embeddings = pooled(torch.stack([first, second], 1).flatten(0, 1)).unflatten(0, (2, 2))
    return value(embeddings.unbind(1))


def shuffled(first, second):
    embeddings = pooled(torch.cat([first, second])[torch.tensor([2, 0, 3, 1])])
    return value(embeddings[torch.tensor([1, 3, 0, 2])].split(2))


def reordered(change):
    def forward(first, second):
        return value(pooled(change(torch.cat([first, second]))).split(2))

    return forward


def shuffled_within(first, second):
    order = torch.tensor([1, 0])
    return value([pooled(first), pooled(second[order])[order]])


def some_by_themselves(first, second):
    return value([pooled(first), pooled(torch.cat([first, second]))[2:]])


def one_oftener(first, second):
    return value([features(first).mean((2, 3)), features(features(second)[:, :3]).mean((2, 3))])


@pytest.mark.parametrize(
    ("forward", "inputs"),
    [
        (of_frames, clips()),
        (of_windows, images()),
        (of_both, images()),
        (side_by_side, images()),
        (interleaved, images()),
        (shuffled, images()),
        (reordered(lambda rows: rows.flip(0)), images()),
        (reordered(lambda rows: rows.flip((-4, 3))), images()),
        (reordered(lambda rows: rows.roll(1, 0)), images()),
        (reordered(lambda rows: rows.roll(126)), images()),
        (
            reordered(lambda rows: rows.gather(0, torch.ones_like(rows, dtype=torch.long))),
            images(),
        ),
        (shuffled_within, images()),
        (some_by_themselves, images()),
        (one_oftener, images()),
    ],
)
def test_what_belongs_to_no_single_input_is_refused(forward, inputs):
    for execution in (None, 0, 1):
        with pytest.raises(LayerError, match="which rows belong to which input is unknown"):
            EmbeddingLayerGradCam(forward, RELU, execution=execution).attribute(inputs)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.flip(3),
        lambda rows: rows.roll(1, -1),
        lambda rows: rows[:, torch.tensor([2, 0, 1])],
        lambda rows: rows.gather(1, torch.zeros_like(rows, dtype=torch.long)),
    ],
)
def test_what_moves_pixels_or_channels_leaves_the_rows(change):
    def by_itself(first, second):
        return value([pooled(change(first)), pooled(change(second))])

    maps, expected = (
        EmbeddingLayerGradCam(each, RELU, execution=0).attribute(images())
        for each in (reordered(change), by_itself)
    )
    torch.testing.assert_close(maps, expected)


def test_an_input_may_be_changed_in_place_or_encoded_without_a_graph():
    inputs = images()
    before = [one.clone() for one in inputs]

    def forward(first, second):
        first.mul_(2)
        with torch.no_grad():
            constant = pooled(second)
        return value([pooled(first), constant])

    maps = EmbeddingLayerGradCam(forward, RELU, execution=-1).attribute(inputs)
    alone = EmbeddingLayerGradCam(
        lambda x: 2 * pooled(2 * x).square().sum(1), RELU, execution=-1
    ).attribute(before[0])
    torch.testing.assert_close(maps[0], alone)
    assert not maps[1].any()
    assert all(map(torch.equal, inputs, before))


def test_numbers_of_runs_alone_tell_only_whole_batches():
    """Of bytes there is no graph: as many rows as images, or a refusal."""
    inputs = tuple((255 * torch.rand(2, 2, 3, 3, 6, 7)).byte())

    def forward(first, second):
        return value([pooled(one.flatten(0, 1).float()).sum(0)[None] for one in (first, second)])

    grad_cam = EmbeddingLayerGradCam(forward, RELU, execution=0)
    with pytest.raises(LayerError, match="unknown"):
        grad_cam.attribute(inputs)
    with pytest.warns(UserWarning, match="be in the order of the inputs"):
        first, second = grad_cam.attribute(tuple(one[:, :1] for one in inputs))
    assert first.shape == second.shape == (2, 1, 4, 5)
