"""Banks of all tuples, of other libraries' losses, of several layers and layouts."""

import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset

from captum_embed import (
    EmbeddingLayerGradCam,
    LossForward,
    PairForward,
    QuadrupletForward,
    SimilarityForward,
    TripletForward,
    WeightBank,
    build_weight_bank,
)
from captum_embed.errors import InputError, LayerError
from captum_embed.weight_bank import encoder_fingerprint
from captum_embed.weight_bank.mining import mixed_batches

Make = Callable[..., Any]


def build(forward: Any, layer: Any, dataset: Any, **arguments: Any) -> Any:
    return build_weight_bank(forward, layer, dataset, **{"progress": False, **arguments})


def weights_by_hand(
    encoder: nn.Module, layer: nn.Module, images: Tensor, value_of: Callable[[Tensor], Tensor]
) -> Tensor:
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, __, output: kept.append(output))
    value = value_of(encoder(images))
    handle.remove()
    (gradient,) = torch.autograd.grad(value, kept)
    return gradient.flatten(2).mean(2)


def in_double(dataset: list[tuple[Tensor, int]]) -> list[tuple[Tensor, int]]:
    return [(image.double(), label) for image, label in dataset]


# All tuples


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


# The budget of activations


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


# Losses that make their own tuples


def in_batch_loss(e: Tensor, labels: Tensor) -> Tensor:
    """Mean squared distance within classes less that between them."""
    squared = (e[:, None] - e[None]).square().sum(-1)
    same = labels[:, None] == labels[None]
    return squared[same].mean() - squared[~same].mean()


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


# Several layers


@pytest.mark.parametrize("budget", [0, 2**30])
@pytest.mark.parametrize("mining", ["all", "hardest", "batch"])
def test_several_layers_share_the_passes(
    make_encoder: Make, make_dataset: Make, mining: str, budget: int
) -> None:
    encoder, dataset = make_encoder(), make_dataset()
    forward: Any = TripletForward(encoder, margin=5.0)
    settings: dict[str, Any] = {"mining": mining, "activation_budget": budget}
    if mining == "batch":
        forward, settings = LossForward(encoder, in_batch_loss), {}
    layers = [encoder.head, encoder.layer, encoder.below]
    alone = [build(forward, layer, dataset, **settings) for layer in layers]
    runs: list[int] = []
    encoder.below.register_forward_hook(lambda _, __, out: runs.append(len(out)))
    banks = build(forward, layers, dataset, batch_size=32, **settings)
    # One image more tells which layer is the lowest, where the graph is cut.
    assert sum(runs) == 1 + (24 if budget == 0 and mining != "batch" else 12)
    assert isinstance(banks, tuple)
    for layer, bank, expected in zip(layers, banks, alone, strict=True):
        assert bank.metadata == expected.metadata
        torch.testing.assert_close(bank.weights, expected.weights, rtol=1e-4, atol=1e-7)
        assert sum(len(module._forward_hooks) for module in encoder.modules()) == 1
        EmbeddingLayerGradCam(forward, layer, weight_bank=bank).attribute(dataset[0][0][None])
    (one,) = build(forward, [encoder.layer], dataset, **settings)
    torch.testing.assert_close(one.weights, alone[1].weights)


# Keys


def test_paths_of_image_folders_become_keys(make_encoder: Make, make_dataset: Make) -> None:
    content = make_dataset()
    root = Path("/data/birds")
    folder = SimpleNamespace(
        root=str(root), samples=[(str(root / f"c{i % 3}" / f"{i}.jpg"), i % 3) for i in range(12)]
    )

    class Folder:
        root, samples = folder.root, folder.samples

        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return content[index]

    forward = TripletForward(make_encoder())
    bank = build(forward, forward.encoder.layer, Folder())
    assert bank.keys == tuple(f"c{i % 3}/{i}.jpg" for i in range(12))
    part = build(forward, forward.encoder.layer, Subset(Folder(), [5, 2, 0, 3, 1, 4]))
    assert part.keys == ("c2/5.jpg", "c2/2.jpg", "c0/0.jpg", "c0/3.jpg", "c1/1.jpg", "c1/4.jpg")
    named = build(forward, forward.encoder.layer, Folder(), keys=[f"x{i}" for i in range(12)])
    assert named.keys is not None
    assert named.keys[0] == "x0"


def test_banks_without_names_have_no_keys_and_can_be_joined(
    make_encoder: Make, make_dataset: Make
) -> None:
    forward = TripletForward(make_encoder())
    bank = build(forward, forward.encoder.layer, make_dataset())
    assert bank.keys is None
    assert len(WeightBank.concat([bank, bank])) == 24


# What encoders and layers return


class TokenEncoder(nn.Module):
    """Patches as tokens behind a class token; embeds the mean of all."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.block = nn.Linear(3, 4)
        self.last = nn.Identity()
        self.block.weight.data = torch.randn(4, 3, generator=generator)

    def forward(self, images: Tensor) -> Any:
        patches = F.avg_pool2d(images, 2).flatten(2).transpose(1, 2)
        tokens = self.block(torch.cat([patches.mean(1, keepdim=True), patches], dim=1))
        channels_last = self.last(tokens[:, 1:].unflatten(1, (4, 4)).tanh())
        return {"last_hidden_state": tokens, "pooler_output": channels_last.mean((1, 2))}


@pytest.mark.parametrize("prefix_tokens", [None, 1])
def test_tokens_and_channels_last_are_weighed_over_their_places(
    make_dataset: Make, prefix_tokens: int | None
) -> None:
    encoder, dataset = TokenEncoder(), make_dataset()
    forward = TripletForward(encoder, distance="cosine")
    bank = build(
        forward, encoder.block, dataset, layout="tokens", prefix_tokens=prefix_tokens, grid=(4, 4)
    )
    images = torch.stack([image for image, _ in dataset])
    labels = torch.tensor([label for _, label in dataset])
    unit = F.normalize(encoder(images)["pooler_output"]).detach()

    def match(output: Any) -> Tensor:
        own = F.normalize(output["pooler_output"])
        total = own.new_zeros(())
        for i in range(12):
            same = (labels == labels[i]) & (torch.arange(12) != i)
            near, far = unit[same].mean(0), unit[labels != labels[i]].mean(0)
            total = total + own[i] @ (near - far)
        return total

    for layer, layout in ((encoder.block, "tokens"), (encoder.last, "channels_last")):
        kept: list[Tensor] = []
        handle = layer.register_forward_hook(lambda _, __, out, into=kept: into.append(out))
        value = match(encoder(images))
        handle.remove()
        (gradient,) = torch.autograd.grad(value, kept)
        places = gradient[:, 1:] if layout == "tokens" else gradient.flatten(1, 2)
        if layout == "channels_last":
            bank = build(forward, layer, dataset, layout=layout)
        torch.testing.assert_close(bank.weights, places.mean(1), rtol=1e-4, atol=1e-7)
        assert bank.metadata["layout"] == layout
        assert bank.metadata.get("prefix_tokens") == ("1" if layout == "tokens" else None)
    with pytest.raises(LayerError, match=r"pass layout='tokens'"):
        build(forward, encoder.block, dataset)


def test_weights_are_single_precision_under_autocast(
    make_encoder: Make, make_dataset: Make
) -> None:
    forward = TripletForward(make_encoder())
    expected = build(forward, forward.encoder.layer, make_dataset())
    with torch.autocast("cpu", torch.bfloat16):
        bank = build(forward, forward.encoder.layer, make_dataset())
    assert bank.weights.dtype is torch.float32
    similarity = torch.cosine_similarity(bank.weights.flatten(), expected.weights.flatten(), dim=0)
    assert similarity > 0.95


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
