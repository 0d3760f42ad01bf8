"""Banks of losses that make their own tuples within a batch."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_embed import (
    EmbeddingLayerGradCam,
    LossForward,
    SimilarityForward,
)
from captum_embed.errors import InputError, LayerError
from captum_embed.weight_bank import encoder_fingerprint
from captum_embed.weight_bank.mining import mixed_batches

from .conftest import Make, build, in_batch_loss, in_double, weights_by_hand


@pytest.mark.parametrize("explains", ["match", "loss"])
def test_a_loss_of_the_batch_is_explained_in_one_pass_over_mixed_batches(
    make_encoder: Make, make_dataset: Make, explains: str
) -> None:
    content = sorted(in_double(make_dataset(per_class=8)), key=lambda item: item[1])
    encoder = make_encoder().double()
    seen: list[set[int]] = []

    def loss(e: Tensor, labels: Tensor) -> Tensor:
        seen.append(set(labels.tolist()))
        return in_batch_loss(e, labels)

    runs: list[int] = []
    handle = encoder.below.register_forward_hook(lambda _, __, out: runs.append(len(out)))
    forward = LossForward(encoder, loss, explains)
    bank = build(forward, encoder.layer, content, batch_size=8, seed=5)
    handle.remove()
    assert sum(runs) == len(bank) == 24
    assert seen == [{10, 11, 12}] * len(runs)  # of a data set sorted by class
    images = torch.stack([image for image, _ in content])
    labels = torch.tensor([label for _, label in content])
    sign = -1 if explains == "match" else 1
    for batch in mixed_batches(labels, 8, torch.Generator().manual_seed(5)):
        expected = weights_by_hand(
            encoder, encoder.layer, images[batch], lambda e, b=batch: in_batch_loss(e, labels[b])
        )
        torch.testing.assert_close(bank.weights[batch], sign * expected)
    torch.testing.assert_close(bank.embeddings, encoder(images).detach())
    assert bank.labels is not None
    assert torch.equal(bank.labels, labels)
    facts = bank.metadata
    assert (facts["explains"], facts["mining"], facts["forward"]) == (
        explains,
        "batch",
        "LossForward",
    )
    assert not torch.equal(
        build(forward, encoder.layer, content, batch_size=8).weights, bank.weights
    )
    assert torch.equal(
        build(forward, encoder.layer, content, batch_size=8, seed=5).weights, bank.weights
    )


@pytest.mark.parametrize(
    "name",
    [
        "TripletMarginLoss",
        "ContrastiveLoss",
        "NTXentLoss",
        "MultiSimilarityLoss",
        "ProxyNCALoss",
        "ProxyAnchorLoss",
        "ArcFaceLoss",
    ],
)
def test_losses_of_pytorch_metric_learning_make_banks(
    make_encoder: Make, make_dataset: Make, name: str
) -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    dataset = [(image, label - 10) for image, label in make_dataset()]
    encoder = make_encoder()
    torch.manual_seed(0)
    make = getattr(losses, name)
    loss = make(3, 5) if "Proxy" in name or name == "ArcFaceLoss" else make()
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    forward = LossForward(encoder, loss)
    bank = build(forward, encoder.layer, dataset, batch_size=12)
    images = torch.stack([image for image, _ in dataset])
    labels = torch.tensor([label for _, label in dataset])
    (order,) = mixed_batches(labels, 12, torch.Generator().manual_seed(0))
    by_hand = weights_by_hand(
        encoder, encoder.layer, images[order], lambda e: -loss(e, labels[order])
    )
    assert by_hand.abs().max() > 0
    torch.testing.assert_close(bank.weights, by_hand[order.argsort()])
    assert all(torch.equal(value, before[key]) for key, value in loss.state_dict().items())
    assert all(parameter.grad is None for parameter in forward.parameters())
    maps = EmbeddingLayerGradCam(forward, encoder.layer, weight_bank=bank)
    assert maps.attribute(images[:2]).shape == (2, 1, 8, 8)


def test_any_callable_that_states_encoder_and_direction_serves(
    make_encoder: Make, make_dataset: Make
) -> None:
    class Plain:
        explains = "loss"

        def __init__(self) -> None:
            self.encoder = make_encoder().train()

        def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(self.encoder(images), labels - 10, reduction="none")

    forward = Plain()
    bank = build(forward, forward.encoder.layer, make_dataset())
    assert bank.metadata["explains"] == "loss"
    assert forward.encoder.training
    images = torch.stack([image for image, _ in make_dataset()])
    labels = torch.tensor([label for _, label in make_dataset()])
    expected = weights_by_hand(
        forward.encoder, forward.encoder.layer, images, lambda e: forward_sum(e, labels)
    )
    torch.testing.assert_close(bank.weights, expected, rtol=1e-4, atol=1e-7)


def forward_sum(e: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(e, labels - 10, reduction="sum")


def test_what_a_loss_of_the_batch_cannot_do_is_refused(
    make_encoder: Make, make_dataset: Make
) -> None:
    encoder, dataset = make_encoder(), make_dataset()
    forward = LossForward(encoder, in_batch_loss)
    for arguments in ({"mining": "hardest"}, {"num_tuples": 5}, {"reference_pool": 50}):
        with pytest.raises(InputError, match="LossForward makes its own tuples within a batch"):
            build(forward, encoder.layer, dataset, **arguments)
    with pytest.raises(InputError, match="seed is -1"):
        build(forward, encoder.layer, dataset, seed=-1)
    with pytest.raises(InputError, match=r"shape \(3, 6, 9\), unlike others .* one size"):
        build(forward, encoder.layer, make_dataset(sizes=((6, 9), (8, 8))))

    class Stream:
        def __iter__(self) -> Any:
            return iter(dataset)

    with pytest.raises(InputError, match="dataset is a Stream, which has no len and indexing"):
        build(forward, encoder.layer, Stream())
    with pytest.raises(InputError, match="forward is SimilarityForward; expected"):
        build(SimilarityForward(encoder, torch.ones(1, 5)), encoder.layer, dataset)

    class Twice(LossForward):
        def forward(self, images: Tensor, labels: Tensor) -> Tensor:
            return super().forward(images[:4], labels[:4]) + super().forward(images, labels)

    with pytest.raises((InputError, LayerError), match=r"2 times"):
        build(Twice(encoder, in_batch_loss), encoder.layer, dataset)
    assert not any(module._forward_hooks for module in encoder.modules())


def test_labels_that_must_be_read_are_read_first(make_encoder: Make, make_dataset: Make) -> None:
    content = make_dataset()

    class Unlisted:
        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return content[index]

    forward = LossForward(make_encoder(), in_batch_loss)
    banks = [build(forward, forward.encoder.layer, each) for each in (Unlisted(), content)]
    assert torch.equal(banks[0].weights, banks[1].weights)


def test_a_refusal_in_any_pass_leaves_nothing_behind(
    make_encoder: Make, make_dataset: Make
) -> None:
    encoder = make_encoder().train()
    before = encoder_fingerprint(encoder)

    class Broken(LossForward):
        def forward(self, images: Tensor, labels: Tensor) -> Tensor:
            super().forward(images, labels)
            raise RuntimeError("no loss today")

    forward = Broken(encoder, in_batch_loss)
    for layer in (encoder.layer, [encoder.layer, encoder.head]):
        with pytest.raises(RuntimeError, match="no loss today"):
            build(forward, layer, make_dataset())
        assert all(module.training for module in forward.modules())
        assert not any(module._forward_hooks for module in forward.modules())
    assert encoder_fingerprint(encoder) == before
    assert torch.is_grad_enabled()
