"""Banks of mined tuples: weights against a pass per tuple, entries, and the passes they take."""

import random
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captum_embed import (
    EmbeddingLayerGradCam,
    PairForward,
    QuadrupletForward,
    TripletForward,
    WeightBank,
)
from captum_embed.metric_forwards import MetricForward
from captum_embed.weight_bank import encoder_fingerprint
from captum_embed.weight_bank.mining import MinedTuples, mine_tuples

from .conftest import Make, build_hardest

FORWARDS = [
    lambda encoder: TripletForward(encoder, margin=0.5, explains="loss"),
    lambda encoder: TripletForward(encoder, margin=0.5, distance="euclidean", explains="loss"),
    lambda encoder: TripletForward(encoder, margin=0.5, distance="cosine", explains="loss"),
    lambda encoder: PairForward(encoder, explains="loss"),
    lambda encoder: PairForward(encoder, "similarity", distance="cosine", explains="loss"),
    lambda encoder: QuadrupletForward(encoder, margin=0.5, explains="loss"),
]


def mined(
    forward: MetricForward, dataset: list[tuple[Tensor, int]], **arguments: Any
) -> tuple[Tensor, Tensor, MinedTuples]:
    """What the bank mines: embeddings, labels, tuples."""
    with torch.no_grad():
        embeddings = torch.cat([forward.encoder(image[None]) for image, _ in dataset])
    labels = torch.tensor([label for _, label in dataset])
    settings = {"num_tuples": 50, "mining": "hardest", "seed": 0, **arguments}
    return embeddings, labels, mine_tuples(forward, embeddings, labels, **settings)


class LinearEncoder(nn.Module):
    """A head W on the pooled layer, nothing in between: gradients can be written down."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.layer = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 5, bias=False)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layer(images).mean((2, 3)))


@pytest.mark.parametrize("num_tuples", [20, 40])  # an image has 24
@pytest.mark.parametrize("mining", ["hardest", "random"])
def test_triplet_weights_are_the_closed_form(
    make_dataset: Make, mining: str, num_tuples: int
) -> None:
    """dL/da = 2 (n - p), and so dL/dA = W^T 2 (n - p) / (H W): mean over tuples with a loss."""
    settings = {"num_tuples": num_tuples, "mining": mining, "seed": 4}
    dataset = make_dataset()
    forward = TripletForward(LinearEncoder(), margin=0.1, explains="loss")
    bank = build_hardest(forward, forward.encoder.layer, dataset, **settings)
    e, _, tuples = mined(forward, dataset, **settings)
    head = forward.encoder.head.weight.detach()
    assert not tuples.active.all()  # some tuples have no loss, and must not count
    for row, key in enumerate(bank.keys or ()):
        kept = [
            (p, n)
            for (p, n), active in zip(
                tuples.references[int(key)].tolist(), tuples.active[int(key)].tolist(), strict=True
            )
            if active
        ]
        for p, n in kept:
            loss = (e[int(key)] - e[p]).square().sum() - (e[int(key)] - e[n]).square().sum() + 0.1
            assert loss > 0
        gradient = torch.stack([2 * (e[n] - e[p]) for p, n in kept]).mean(0)
        torch.testing.assert_close(bank.weights[row], gradient @ head / 64, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(bank.embeddings[row], e[int(key)])


@pytest.mark.parametrize("make_forward", FORWARDS)
def test_weights_are_the_average_of_one_full_backward_pass_per_tuple(
    make_encoder: Make, make_dataset: Make, make_forward: Callable[[nn.Module], MetricForward]
) -> None:
    dataset = make_dataset(sizes=((8, 8), (6, 9)))
    forward = make_forward(make_encoder().double())
    dataset = [(image.double(), label) for image, label in dataset]
    bank = build_hardest(forward, forward.encoder.layer, dataset, num_tuples=6, batch_size=5)
    e, labels, tuples = mined(forward, dataset, num_tuples=6)
    assert len(bank) > 6
    for row, key in enumerate(bank.keys or ()):
        anchor = int(key)
        gradients = []
        for references in tuples.references[anchor][tuples.active[anchor]].tolist():
            activations: list[Tensor] = []
            hook = forward.encoder.layer.register_forward_hook(
                lambda _, __, output, into=activations: into.append(output)
            )
            own = forward.encoder(dataset[anchor][0][None])
            hook.remove()
            same = [labels[anchor] == labels[references[:1]]] if len(references) == 1 else []
            loss = forward.tuple_loss(own, *(e[[i]] for i in references), *same)
            (gradient,) = torch.autograd.grad(loss.sum(), activations)
            gradients.append(gradient.mean((2, 3))[0])
        torch.testing.assert_close(bank.weights[row], torch.stack(gradients).mean(0))


@pytest.mark.parametrize("make_forward", [FORWARDS[0], FORWARDS[5]])
def test_an_entry_gives_its_own_image_the_map_of_the_gradient(
    make_encoder: Make, make_dataset: Make, make_forward: Callable[[nn.Module], MetricForward]
) -> None:
    dataset = make_dataset()
    forward = make_forward(make_encoder())
    layer = forward.encoder.layer
    bank = build_hardest(forward, layer, dataset, num_tuples=7)
    e, _, tuples = mined(forward, dataset, num_tuples=7)
    transferred = EmbeddingLayerGradCam(forward, layer, weight_bank=bank)
    by_gradient = EmbeddingLayerGradCam(forward, layer)
    for key in bank.keys or ():
        image = dataset[int(key)][0][None]
        chosen = tuples.references[int(key)][tuples.active[int(key)]]
        references = tuple(e[column][None] for column in chosen.unbind(1))
        expected = by_gradient.attribute(image, additional_forward_args=references)
        actual = transferred.attribute(image)
        assert expected.abs().max() > 0
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-7)


def test_nothing_below_the_layer_is_backpropagated_and_a_batch_costs_one_pass_above(
    make_encoder: Make, make_dataset: Make
) -> None:
    forward = TripletForward(make_encoder(), margin=5.0)
    passes = {"below": 0, "layer": 0, "head": 0}
    for name in passes:

        def count(*_: Any, name: str = name) -> None:
            passes[name] += 1

        getattr(forward.encoder, name).register_full_backward_hook(count)
    build_hardest(forward, forward.encoder.layer, make_dataset(), num_tuples=40, batch_size=5)
    # 12 images are 3 batches; one more pass tells at the start whether the layer matters.
    assert passes == {"below": 0, "layer": 0, "head": 4}


def test_activations_of_one_batch_only_are_alive(make_encoder: Make, make_dataset: Make) -> None:
    forward = TripletForward(make_encoder(), margin=5.0)
    alive: list[weakref.ref[Tensor]] = []
    graphs: list[bool] = []
    most = 0

    def watch(_: nn.Module, __: Any, output: Tensor) -> None:
        nonlocal most
        alive.append(weakref.ref(output))
        graphs.append(torch.is_grad_enabled())
        most = max(most, sum(one() is not None for one in alive))

    forward.encoder.layer.register_forward_hook(watch)
    build_hardest(forward, forward.encoder.layer, make_dataset(per_class=8), batch_size=2)
    assert len(alive) == 24
    assert most <= 2
    # Graphs are kept for the batch that tells whether the layer matters, and for the gradients.
    assert graphs == [True] + [False] * 11 + [True] * 12


@pytest.mark.parametrize("mining", ["hardest", "random"])
def test_the_same_seed_gives_the_same_bank_whatever_the_batch_size(
    make_encoder: Make, make_dataset: Make, mining: str
) -> None:
    dataset = [(image.double(), label) for image, label in make_dataset(sizes=((8, 8), (6, 7)))]
    forward = TripletForward(make_encoder().double(), margin=0.5)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002

    def banks(**arguments: Any) -> WeightBank:
        return build_hardest(
            forward, forward.encoder.layer, dataset, num_tuples=3, mining=mining, **arguments
        )

    first = banks(seed=1)
    again = banks(seed=1)
    assert torch.equal(first.weights, again.weights)
    assert torch.equal(first.embeddings, again.embeddings)
    for batch_size in (1, 5, 12):
        other = banks(seed=1, batch_size=batch_size)
        assert other.keys == first.keys
        torch.testing.assert_close(other.weights, first.weights)
        torch.testing.assert_close(other.embeddings, first.embeddings)
    if mining == "random":
        assert not torch.allclose(banks(seed=2).weights, first.weights)
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])


def test_entries_carry_labels_keys_and_the_facts_of_the_build(
    make_encoder: Make, make_dataset: Make
) -> None:
    dataset = make_dataset()
    forward = TripletForward(make_encoder(), margin=0.7)
    bank = build_hardest(
        forward, forward.encoder.layer, dataset, keys=[f"{i}.jpg" for i in range(12)]
    )
    assert bank.keys == tuple(f"{i}.jpg" for i in range(12))
    assert bank.labels is not None
    assert bank.labels.tolist() == [label for _, label in dataset]
    facts = dict(bank.metadata)
    assert facts["torch_version"] in torch.__version__
    assert {k: v for k, v in facts.items() if not k.endswith("version")} == {
        "layer": "layer",
        "encoder_fingerprint": encoder_fingerprint(forward.encoder),
        "num_images": "12",
        "num_skipped": "0",
        "num_tuples": "50",
        "mining": "hardest",
        "seed": "0",
        "explains": "match",
        "layout": "channels_first",
        "forward": "TripletForward",
        "distance": "squared_euclidean",
        "margin": "0.7",
    }


def test_images_without_a_loss_get_no_entry_and_are_counted(make_encoder: Make) -> None:
    """Class 0 is far from the others, which overlap: its images carry no gradient."""

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, images: Tensor) -> Tensor:
            return self.layer(images).mean((2, 3))

    def image(value: float) -> Tensor:
        return torch.full((3, 2, 2), value)

    dataset = [
        (image(9.0), 0),
        (image(0.02), 1),
        (image(0.1), 2),
        (image(9.1), 0),
        (image(0.2), 1),
        (image(0.35), 2),
    ]
    read = []

    class Counted:
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            read.append(index)
            return dataset[index]

    forward = TripletForward(Mean(), margin=0.2, explains="loss")
    with pytest.warns(UserWarning, match=r"2 of 6 images carry no gradient .*margin 0\.2"):
        bank = build_hardest(forward, forward.encoder.layer, Counted(), keys=list("abcdef"))
    assert read == [0, 1, 2, 3, 4, 5, 1, 2, 4, 5]
    # Tuples of image b: (e, c). Of e: (b, c) and (b, f). All three channels alike.
    assert bank.weights[0].tolist() == pytest.approx([2 * (0.1 - 0.2) / 4] * 3)
    assert bank.weights[2].tolist() == pytest.approx([(0.1 + 0.35 - 2 * 0.02) / 4] * 3)
    assert bank.keys == ("b", "c", "e", "f")
    assert bank.labels is not None
    assert bank.labels.tolist() == [1, 2, 1, 2]
    assert bank.embeddings[:, 0].tolist() == pytest.approx([0.02, 0.1, 0.2, 0.35])
    assert bank.metadata["num_skipped"] == "2"


def test_an_encoder_in_training_is_run_in_evaluation_and_left_in_training(
    make_encoder: Make, make_dataset: Make
) -> None:
    class Trained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.inner = make_encoder()
            self.layer = self.inner.layer
            self.dropout = nn.Dropout(0.5)

        def forward(self, images: Tensor) -> Tensor:
            return self.dropout(self.inner(self.norm(images)))

    forward = TripletForward(Trained(), margin=5.0)
    forward.encoder.inner.head.eval()
    modes = [module.training for module in forward.modules()]
    before = encoder_fingerprint(forward.encoder)
    assert any(modes)
    bank = build_hardest(forward, forward.encoder.layer, make_dataset())
    assert [module.training for module in forward.modules()] == modes
    assert encoder_fingerprint(forward.encoder) == before
    forward.eval()
    calm = build_hardest(forward, forward.encoder.layer, make_dataset())
    assert torch.equal(bank.weights, calm.weights)
    assert not any(module.training for module in forward.modules())


def test_channels_of_a_layer_of_several_tensors_are_concatenated(make_dataset: Make) -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3)

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            a, b, c = self.conv(images).split([1, 2, 3], dim=1)
            return a, b.mean((2, 3)), c

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Split()

        def forward(self, images: Tensor) -> Tensor:
            a, b, _ = self.layer(images)
            return torch.cat([a.mean((2, 3)), 2 * b], dim=1)

    forward = TripletForward(Encoder(), margin=9.0, explains="loss")
    dataset = make_dataset(sizes=((10, 10),))
    bank = build_hardest(forward, forward.encoder.layer, dataset, num_tuples=1)
    e, _, tuples = mined(forward, dataset, num_tuples=1)
    p, n = e[tuples.references[:, 0]].unbind(1)
    expected = 2 * (n - p) * torch.tensor([1 / 64, 2, 2])
    assert bank.num_channels == 6
    torch.testing.assert_close(bank.weights[:, :3], expected, rtol=1e-4, atol=1e-6)
    assert (bank.weights[:, 3:] == 0).all()  # this tensor of the layer has no influence


def test_a_callable_mines_and_is_named(make_encoder: Make, make_dataset: Make) -> None:
    def nearest_negative(
        anchor: int, e: Tensor, labels: Tensor, num_tuples: int, generator: torch.Generator
    ) -> Tensor:
        positives = (labels == labels[anchor]).nonzero()[:, 0]
        positives = positives[positives != anchor][:num_tuples]
        far = (labels == labels[anchor]) * 1e9
        negative = ((e - e[anchor]).square().sum(1) + far).argmin()
        return torch.stack([positives, negative.expand(len(positives))], dim=1)

    forward = TripletForward(make_encoder(), margin=5.0)
    bank = build_hardest(forward, forward.encoder.layer, make_dataset(), mining=nearest_negative)
    assert bank.metadata["mining"].endswith("nearest_negative")
    assert len(bank) == 12


def test_bars_show_both_passes_unless_told_not_to(
    make_encoder: Make, make_dataset: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = TripletForward(make_encoder(), margin=5.0)
    build_hardest(forward, forward.encoder.layer, make_dataset(), progress=True)
    shown = capsys.readouterr().err
    assert "embedding images" in shown
    assert "grad-weights" in shown
    assert "12/12" in shown
    build_hardest(forward, forward.encoder.layer, make_dataset(), progress=False)
    assert capsys.readouterr().err == ""


def test_a_built_bank_survives_the_disk(
    make_encoder: Make, make_dataset: Make, tmp_path: Any
) -> None:
    forward = TripletForward(make_encoder(), margin=5.0)
    bank = build_hardest(forward, forward.encoder.layer, make_dataset())
    bank.save(tmp_path / "bank", max_shard_size=200)
    loaded = WeightBank.load(tmp_path / "bank")
    image = make_dataset()[0][0][None]
    maps = [
        EmbeddingLayerGradCam(forward, forward.encoder.layer, weight_bank=each).attribute(
            image, num_neighbors=3
        )
        for each in (bank, loaded)
    ]
    assert torch.equal(*maps)
