import random
import weakref
from collections.abc import Callable, Iterator
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
    build_weight_bank,
)
from captum_embed.errors import InputError, LayerError
from captum_embed.metric_forwards import MetricForward
from captum_embed.weight_bank import encoder_fingerprint
from captum_embed.weight_bank.mining import MinedTuples, mine_tuples

Make = Callable[..., Any]
FORWARDS = [
    lambda encoder: TripletForward(encoder, margin=0.5, explains="loss"),
    lambda encoder: TripletForward(encoder, margin=0.5, distance="euclidean", explains="loss"),
    lambda encoder: TripletForward(encoder, margin=0.5, distance="cosine", explains="loss"),
    lambda encoder: PairForward(encoder, explains="loss"),
    lambda encoder: PairForward(encoder, "similarity", distance="cosine", explains="loss"),
    lambda encoder: QuadrupletForward(encoder, margin=0.5, explains="loss"),
]


def build(forward: MetricForward, layer: nn.Module, dataset: Any, **arguments: Any) -> WeightBank:
    """From the hardest tuples, in two passes, with indices as keys."""
    usual: dict[str, Any] = {"mining": "hardest", "activation_budget": 0, "progress": False}
    if hasattr(dataset, "__len__"):
        usual["keys"] = [str(index) for index in range(len(dataset))]
    return build_weight_bank(forward, layer, dataset, **{**usual, **arguments})


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
    bank = build(forward, forward.encoder.layer, dataset, **settings)
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
    bank = build(forward, forward.encoder.layer, dataset, num_tuples=6, batch_size=5)
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
    bank = build(forward, layer, dataset, num_tuples=7)
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
    build(forward, forward.encoder.layer, make_dataset(), num_tuples=40, batch_size=5)
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
    build(forward, forward.encoder.layer, make_dataset(per_class=8), batch_size=2)
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
        return build(
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
    bank = build(forward, forward.encoder.layer, dataset, keys=[f"{i}.jpg" for i in range(12)])
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
        bank = build(forward, forward.encoder.layer, Counted(), keys=list("abcdef"))
    assert read == [0, 1, 2, 3, 4, 5, 1, 2, 4, 5]
    # Tuples of image b: (e, c). Of e: (b, c) and (b, f). All three channels alike.
    assert bank.weights[0].tolist() == pytest.approx([2 * (0.1 - 0.2) / 4] * 3)
    assert bank.weights[2].tolist() == pytest.approx([(0.1 + 0.35 - 2 * 0.02) / 4] * 3)
    assert bank.keys == ("b", "c", "e", "f")
    assert bank.labels is not None
    assert bank.labels.tolist() == [1, 2, 1, 2]
    assert bank.embeddings[:, 0].tolist() == pytest.approx([0.02, 0.1, 0.2, 0.35])
    assert bank.metadata["num_skipped"] == "2"


def test_no_loss_at_all_is_an_error_that_says_what_to_do(
    make_encoder: Make, make_dataset: Make
) -> None:
    forward = TripletForward(make_encoder(), margin=-100.0)
    message = r"none of the 12 images .*margin -100\.0.*\(take mining='all'"
    with pytest.raises(InputError, match=message):
        build(forward, forward.encoder.layer, make_dataset())


def test_a_single_image_of_a_class_is_refused_before_any_image_is_encoded(
    make_encoder: Make, make_dataset: Make
) -> None:
    forward = TripletForward(make_encoder())
    forward.encoder.below.register_forward_hook(lambda *_: pytest.fail("encoded an image"))
    dataset = [*make_dataset(), (torch.rand(3, 8, 8), 99)]
    with pytest.raises(InputError, match=r"class\(es\) \[99\] have a single image"):
        build(forward, forward.encoder.layer, dataset)


def test_a_single_image_of_a_class_in_a_stream_is_refused_after_the_first_pass(
    make_encoder: Make, make_dataset: Make
) -> None:
    content = [*make_dataset(), (torch.rand(3, 8, 8), 99)]

    class Stream:
        def __iter__(self) -> Iterator[tuple[Tensor, int]]:
            return iter(content)

    forward = TripletForward(make_encoder())
    with pytest.raises(InputError, match=r"class\(es\) \[99\] have a single image"):
        build(forward, forward.encoder.layer, Stream())
    content.pop()
    assert len(build(forward, forward.encoder.layer, Stream())) == 12
    with pytest.raises(InputError, match="keys are 13 names for 12 images"):
        build(forward, forward.encoder.layer, Stream(), keys=[str(i) for i in range(13)])
    content.clear()
    with pytest.raises(InputError, match="dataset is empty"):
        build(forward, forward.encoder.layer, Stream())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"forward": nn.Identity()}, "forward is Identity; expected a TripletForward"),
        ({"layer": "conv"}, "layer is 'conv'; expected a module"),
        ({"layer": []}, r"layer is \[\]; expected a module"),
        ({"activation_budget": "1GB"}, "activation_budget is '1GB'; expected a number of bytes"),
        ({"layout": "tokens", "grid": 7}, r"grid is 7; expected \(rows, columns\)"),
        ({"dataset": []}, "dataset is empty"),
        ({"num_tuples": 0}, "num_tuples is 0"),
        ({"mining": "easiest"}, "mining is 'easiest'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": "x"}, "seed is 'x'"),
        ({"keys": ["a"]}, "keys are 1 names; expected 12"),
        ({"keys": ["a"] * 12}, "key 'a' occurs twice"),
        ({"device": "meta"}, "device is meta, and the encoder is on cpu"),
    ],
)
def test_arguments_are_refused_before_work_starts(
    make_encoder: Make, make_dataset: Make, arguments: dict[str, Any], message: str
) -> None:
    forward = TripletForward(make_encoder())
    forward.encoder.below.register_forward_hook(lambda *_: pytest.fail("encoded an image"))
    given = {"forward": forward, "layer": forward.encoder.layer, "dataset": make_dataset()}
    with pytest.raises(InputError, match=message):
        build(**{**given, **arguments})


def test_layers_that_do_not_serve_are_refused_at_the_first_batch(
    make_encoder: Make, make_dataset: Make
) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make_encoder()
            self.idle, self.twice, self.flat = (nn.Identity() for _ in range(3))
            self.aside = nn.Tanh()
            self.batches = 0

        def forward(self, images: Tensor) -> Tensor:
            self.batches += 1
            self.aside(images)
            self.flat(images.flatten())
            return self.inner(self.twice(self.twice(images)))

    forward = TripletForward(Odd())
    for layer, message in (
        (make_encoder().layer, "is not a module of forward.encoder"),
        (forward.encoder.idle, "'idle' is in the model, but nothing calls it"),
        (forward.encoder.twice, "'twice' runs 2 times"),
        (forward.encoder.aside, "embedding does not depend on the layer 'aside'"),
        (forward.encoder.flat, r"'flat' gives shape \(576,\) for 3 images"),
    ):
        forward.encoder.batches = 0
        with pytest.raises(LayerError, match=message):
            build(forward, layer, make_dataset(), batch_size=3)
        assert forward.encoder.batches <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e[:, :, None].repeat(1, 1, 2), r"returned shape \(3, 5, 2\); expected emb"),
        (lambda e: e[:2], r"returned \(2, 5\) for 3 images"),
        (lambda e: (e, e), r"returned tuple of \[\(3, 5\), \(3, 5\)\]"),
    ],
)
def test_encoders_that_give_no_vectors_are_refused(
    make_encoder: Make, make_dataset: Make, change: Callable[[Tensor], Any], message: str
) -> None:
    forward = TripletForward(make_encoder())
    forward.encoder.register_forward_hook(lambda _, __, output: change(output))
    with pytest.raises(InputError, match=message):
        build(forward, forward.encoder.layer, make_dataset(), batch_size=3)


def test_embeddings_that_are_cut_off_from_the_layer_are_refused(
    make_encoder: Make, make_dataset: Make
) -> None:
    forward = TripletForward(make_encoder())
    forward.encoder.register_forward_hook(lambda _, __, output: output.detach())
    with pytest.raises(LayerError, match="does not depend on the layer 'layer' through a graph"):
        build(forward, forward.encoder.layer, make_dataset())


def test_images_that_make_activations_nan_are_named(make_encoder: Make, make_dataset: Make) -> None:
    dataset = make_dataset()
    dataset[7][0][0, 0, 0] = torch.nan
    forward = TripletForward(make_encoder())
    with pytest.raises(LayerError, match=r"activations of layer 'layer' of image '7' \(number 7\)"):
        build(forward, forward.encoder.layer, dataset, batch_size=5)
    keys = [f"{i}.jpg" for i in range(12)]
    with pytest.raises(LayerError, match=r"of image '7\.jpg' \(number 7\) holds NaN"):
        build(forward, forward.encoder.layer, dataset, keys=keys, batch_size=5)


def test_images_that_change_between_the_passes_are_refused(
    make_encoder: Make, make_dataset: Make
) -> None:
    class Augmented:
        """Turns images about at random; or, in another order, gives other labels."""

        def __init__(self, shuffled: bool) -> None:
            self.content = make_dataset()
            self.shuffled = shuffled

        def __iter__(self) -> Iterator[tuple[Tensor, int]]:
            if self.shuffled:
                self.content = self.content[1:] + self.content[:1]
                return iter(self.content)
            self.content = [(1 - 2 * image, label) for image, label in self.content]
            return iter(self.content)

    forward = TripletForward(make_encoder(), margin=5.0)
    for shuffled in (False, True):
        with pytest.raises(InputError, match=r"image '0' \(number 0\) was another one in the seco"):
            build(forward, forward.encoder.layer, Augmented(shuffled))


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
    bank = build(forward, forward.encoder.layer, make_dataset())
    assert [module.training for module in forward.modules()] == modes
    assert encoder_fingerprint(forward.encoder) == before
    forward.eval()
    calm = build(forward, forward.encoder.layer, make_dataset())
    assert torch.equal(bank.weights, calm.weights)
    assert not any(module.training for module in forward.modules())


@pytest.mark.parametrize("broken", [3, 9, 15, 21])
def test_nothing_is_left_changed_by_an_exception_in_either_pass(
    make_encoder: Make, make_dataset: Make, broken: int
) -> None:
    content = make_dataset()

    class Broken:
        reads = 0

        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            self.reads += 1
            if self.reads == broken:
                raise OSError("unreadable.jpg")
            return content[index]

    forward = TripletForward(make_encoder(), margin=5.0)
    forward.encoder.below.requires_grad_(False)
    forward.encoder.head.eval()

    def state() -> Any:
        return (
            [module.training for module in forward.modules()],
            [len(module._forward_hooks) for module in forward.modules()],
            [len(module._forward_pre_hooks) for module in forward.modules()],
            [parameter.requires_grad for parameter in forward.parameters()],
            [parameter.grad for parameter in forward.parameters()],
            encoder_fingerprint(forward.encoder),
            torch.is_grad_enabled(),
        )

    before = state()
    with pytest.raises(OSError, match=r"unreadable\.jpg"):
        build(forward, forward.encoder.layer, Broken(), batch_size=3)
    assert state() == before
    with torch.no_grad():
        bank = build(forward, forward.encoder.layer, content, batch_size=3)
    assert state() == before
    assert (bank.weights != 0).any(1).all()


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
    bank = build(forward, forward.encoder.layer, dataset, num_tuples=1)
    e, _, tuples = mined(forward, dataset, num_tuples=1)
    p, n = e[tuples.references[:, 0]].unbind(1)
    expected = 2 * (n - p) * torch.tensor([1 / 64, 2, 2])
    assert bank.num_channels == 6
    torch.testing.assert_close(bank.weights[:, :3], expected, rtol=1e-4, atol=1e-6)
    assert (bank.weights[:, 3:] == 0).all()  # this tensor of the layer has no influence


def test_a_bank_of_a_wrapped_encoder_serves_the_plain_one(
    make_encoder: Make, make_dataset: Make
) -> None:
    encoder = make_encoder()
    wrapped = TripletForward(nn.DataParallel(encoder), margin=5.0)
    plain = TripletForward(encoder, margin=5.0)
    bank = build(wrapped, encoder.layer, make_dataset())
    other = build(plain, encoder.layer, make_dataset())
    assert dict(bank.metadata) == dict(other.metadata)
    assert torch.equal(bank.weights, other.weights)
    image = make_dataset()[0][0][None]
    for forward in (wrapped, plain):
        maps = EmbeddingLayerGradCam(forward, encoder.layer, weight_bank=bank).attribute(image)
        assert maps.shape == (1, 1, 8, 8)


def test_layers_without_space_keep_their_gradient(make_encoder: Make, make_dataset: Make) -> None:
    forward = TripletForward(make_encoder(), margin=5.0)
    dataset = make_dataset()
    bank = build(forward, forward.encoder.head, dataset, num_tuples=3)
    assert bank.num_channels == 5
    maps = EmbeddingLayerGradCam(forward, forward.encoder.head, weight_bank=bank)
    assert maps.attribute(dataset[0][0][None]).shape == (1, 1)


def test_half_precision_encoders_give_banks_in_single_precision(
    make_encoder: Make, make_dataset: Make
) -> None:
    forward = TripletForward(make_encoder().to(torch.bfloat16), margin=5.0)
    dataset = [(image.to(torch.bfloat16), label) for image, label in make_dataset()]
    bank = build(forward, forward.encoder.layer, dataset)
    exact = TripletForward(make_encoder(), margin=5.0)
    expected = build(exact, exact.encoder.layer, make_dataset())
    assert bank.weights.dtype == torch.float32
    similarity = torch.cosine_similarity(bank.weights.flatten(), expected.weights.flatten(), dim=0)
    assert similarity > 0.95


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
    bank = build(forward, forward.encoder.layer, make_dataset(), mining=nearest_negative)
    assert bank.metadata["mining"].endswith("nearest_negative")
    assert len(bank) == 12


def test_bars_show_both_passes_unless_told_not_to(
    make_encoder: Make, make_dataset: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = TripletForward(make_encoder(), margin=5.0)
    build(forward, forward.encoder.layer, make_dataset(), progress=True)
    shown = capsys.readouterr().err
    assert "embedding images" in shown
    assert "grad-weights" in shown
    assert "12/12" in shown
    build(forward, forward.encoder.layer, make_dataset(), progress=False)
    assert capsys.readouterr().err == ""


def test_a_built_bank_survives_the_disk(
    make_encoder: Make, make_dataset: Make, tmp_path: Any
) -> None:
    forward = TripletForward(make_encoder(), margin=5.0)
    bank = build(forward, forward.encoder.layer, make_dataset())
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
