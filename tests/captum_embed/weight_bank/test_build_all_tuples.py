"""Banks of all tuples, and how many activations are kept for them."""

import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_embed import (
    LossForward,
    PairForward,
    QuadrupletForward,
    TripletForward,
)
from captum_embed.errors import InputError

from .conftest import Make, build, in_batch_loss, in_double, weights_by_hand


def test_all_tuples_is_the_default_and_every_image_has_an_entry(
    make_encoder: Make, make_dataset: Make
) -> None:
    dataset = in_double(make_dataset(per_class=3))
    encoder = make_encoder().double()
    images = torch.stack([image for image, _ in dataset])
    labels = torch.tensor([label for _, label in dataset])
    e = encoder(images).detach()

    def loss(own: Tensor) -> Tensor:
        """Every triplet, without a hinge."""
        total = own.new_zeros(())
        for a in range(9):
            same = [i for i in range(9) if labels[i] == labels[a] and i != a]
            other = [i for i in range(9) if labels[i] != labels[a]]
            values = [
                (own[a] - e[p]).square().sum() - (own[a] - e[n]).square().sum()
                for p in same
                for n in other
            ]
            total = total + torch.stack(values).mean()
        return total

    expected = weights_by_hand(encoder, encoder.layer, images, loss)
    # A margin at which no hinge is open makes no difference.
    for explains, sign in (("match", -1), ("loss", 1)):
        forward = TripletForward(encoder, margin=-100.0, explains=explains)
        for budget in (0, 1000, 2**30):
            bank = build(forward, encoder.layer, dataset, batch_size=4, activation_budget=budget)
            assert len(bank) == 9
            torch.testing.assert_close(bank.weights, sign * expected)
            torch.testing.assert_close(bank.embeddings, e)
        assert bank.metadata["explains"] == explains
        assert bank.metadata["mining"] == "all"
        assert "num_tuples" not in bank.metadata


@pytest.mark.parametrize("mining", ["all", "hardest", "random"])
@pytest.mark.parametrize(
    "make", [TripletForward, QuadrupletForward, lambda e, **k: PairForward(e, margin=9.0, **k)]
)
def test_the_bank_of_a_match_is_minus_that_of_the_loss(
    make_encoder: Make, make_dataset: Make, make: Make, mining: str
) -> None:
    encoder, dataset = make_encoder(), make_dataset()
    match, loss = (
        build(make(encoder, explains=each), encoder.layer, dataset, mining=mining)
        for each in ("match", "loss")
    )
    assert match.weights.abs().max() > 0
    assert torch.equal(match.weights, -loss.weights)


def test_weights_agree_with_finite_differences(make_encoder: Make, make_dataset: Make) -> None:
    """Adding a constant to a channel of the layer moves the match by its weight times H W."""
    dataset, encoder = in_double(make_dataset(per_class=2)), make_encoder().double()
    forward = TripletForward(encoder, distance="cosine")
    bank = build(forward, encoder.layer, dataset)
    images = torch.stack([image for image, _ in dataset])
    labels = torch.tensor([label for _, label in dataset])
    with torch.no_grad():
        e = encoder(images)

        def match(shift: Tensor) -> float:
            handle = encoder.layer.register_forward_hook(
                lambda _, __, out: out + shift[:, None, None]
            )
            own = encoder(images[:1])
            handle.remove()
            near = F.cosine_similarity(own, e[(labels == labels[0]).nonzero()[1:, 0]]).mean()
            far = F.cosine_similarity(own, e[labels != labels[0]]).mean()
            return float(near - far)

        for channel in range(6):
            shift = torch.zeros(6, dtype=torch.float64)
            shift[channel] = 1e-5
            slope = (match(shift) - match(-shift)) / 2e-5
            assert slope / 64 == pytest.approx(float(bank.weights[0, channel]), rel=1e-5)


def test_a_class_of_a_single_image_is_named(make_encoder: Make, make_dataset: Make) -> None:
    forward = TripletForward(make_encoder())
    with pytest.raises(InputError, match=r"class\(es\) \[99\] have a single image"):
        build(forward, forward.encoder.layer, [*make_dataset(), (torch.rand(3, 8, 8), 99)])


def test_other_distances_are_refused_with_what_to_do(
    make_encoder: Make, make_dataset: Make
) -> None:
    forward = TripletForward(make_encoder(), distance="euclidean")
    forward.encoder.below.register_forward_hook(lambda *_: pytest.fail("encoded an image"))
    with pytest.raises(InputError, match=r"'euclidean'; choose one of these, or pass mining="):
        build(forward, forward.encoder.layer, make_dataset())


@pytest.mark.parametrize("mining", ["all", "hardest"])
def test_a_collapsed_encoder_is_named_as_such(
    make_encoder: Make, make_dataset: Make, mining: str
) -> None:
    encoder = make_encoder()
    encoder.below.weight.data.zero_()
    with pytest.raises(InputError, match=r"all 12 images are the same .* encoder has collapsed"):
        build(TripletForward(encoder), encoder.layer, make_dataset(), mining=mining)
    with pytest.raises(InputError, match="encoder has collapsed"):
        build(LossForward(encoder, in_batch_loss), encoder.layer, make_dataset())


def test_images_within_the_budget_are_run_once(make_encoder: Make, make_dataset: Make) -> None:
    forward = TripletForward(make_encoder())
    runs: list[int] = []
    forward.encoder.below.register_forward_hook(lambda _, __, out: runs.append(len(out)))
    banks = []
    for budget, expected in ((2**30, 12), (0, 24)):
        runs.clear()
        banks.append(
            build(
                forward,
                forward.encoder.layer,
                make_dataset(),
                batch_size=3,
                activation_budget=budget,
            )
        )
        assert sum(runs) == expected
    torch.testing.assert_close(banks[0].weights, banks[1].weights)
    runs.clear()
    build(forward, forward.encoder.layer, make_dataset(), batch_size=3, activation_budget=30_000)
    assert 12 < sum(runs) < 24


def test_what_is_kept_stays_within_the_budget(make_encoder: Make, make_dataset: Make) -> None:
    """The layer's outputs alive at once, 6 x 8 x 8 x 4 bytes per image, and no graph below it."""
    forward = TripletForward(make_encoder())
    alive: dict[str, list[weakref.ref[Tensor]]] = {"below": [], "layer": []}
    most = {"below": 0, "layer": 0}
    for name in alive:

        def watch(_: Any, __: Any, output: Tensor, name: str = name) -> None:
            alive[name].append(weakref.ref(output))
            most[name] = max(most[name], sum(one() is not None for one in alive[name]))

        getattr(forward.encoder, name).register_forward_hook(watch)
    dataset = make_dataset(per_class=10)
    build(forward, forward.encoder.layer, dataset, batch_size=1, activation_budget=10_000)
    assert most["below"] == 1
    assert most["layer"] <= 1 + 10_000 // (6 * 64 * 4)
