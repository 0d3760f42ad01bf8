"""What no bank can be built of is refused, before work where that can be known."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_embed import (
    TripletForward,
)
from captum_embed.errors import InputError, LayerError
from captum_embed.weight_bank import encoder_fingerprint

from .conftest import Make, build_hardest


def test_no_loss_at_all_is_an_error_that_says_what_to_do(
    make_encoder: Make, make_dataset: Make
) -> None:
    forward = TripletForward(make_encoder(), margin=-100.0)
    message = r"none of the 12 images .*margin -100\.0.*\(take mining='all'"
    with pytest.raises(InputError, match=message):
        build_hardest(forward, forward.encoder.layer, make_dataset())


def test_a_single_image_of_a_class_is_refused_before_any_image_is_encoded(
    make_encoder: Make, make_dataset: Make
) -> None:
    forward = TripletForward(make_encoder())
    forward.encoder.below.register_forward_hook(lambda *_: pytest.fail("encoded an image"))
    dataset = [*make_dataset(), (torch.rand(3, 8, 8), 99)]
    with pytest.raises(InputError, match=r"class\(es\) \[99\] have a single image"):
        build_hardest(forward, forward.encoder.layer, dataset)


def test_a_single_image_of_a_class_in_a_stream_is_refused_after_the_first_pass(
    make_encoder: Make, make_dataset: Make
) -> None:
    content = [*make_dataset(), (torch.rand(3, 8, 8), 99)]

    class Stream:
        def __iter__(self) -> Iterator[tuple[Tensor, int]]:
            return iter(content)

    forward = TripletForward(make_encoder())
    with pytest.raises(InputError, match=r"class\(es\) \[99\] have a single image"):
        build_hardest(forward, forward.encoder.layer, Stream())
    content.pop()
    assert len(build_hardest(forward, forward.encoder.layer, Stream())) == 12
    with pytest.raises(InputError, match="keys are 13 names for 12 images"):
        build_hardest(forward, forward.encoder.layer, Stream(), keys=[str(i) for i in range(13)])
    content.clear()
    with pytest.raises(InputError, match="dataset is empty"):
        build_hardest(forward, forward.encoder.layer, Stream())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"forward": nn.Identity()}, "forward is Identity; expected a TripletForward"),
        ({"layer": "conv"}, "layer is 'conv'; expected a module"),
        ({"layer": []}, r"layer is \[\]; expected a module"),
        ({"activation_budget": "1GB"}, "activation_budget is '1GB'; expected a number of bytes"),
        ({"layout": "tokens", "grid": 7}, r"grid is 7; expected \(rows, columns\)"),
        ({"layout": "tokens", "grid": (0, 5)}, r"grid is \(0, 5\); .* each at least 1"),
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
        build_hardest(**{**given, **arguments})


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
            build_hardest(forward, layer, make_dataset(), batch_size=3)
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
        build_hardest(forward, forward.encoder.layer, make_dataset(), batch_size=3)


def test_embeddings_that_are_cut_off_from_the_layer_are_refused(
    make_encoder: Make, make_dataset: Make
) -> None:
    forward = TripletForward(make_encoder())
    forward.encoder.register_forward_hook(lambda _, __, output: output.detach())
    with pytest.raises(LayerError, match="does not depend on the layer 'layer' through a graph"):
        build_hardest(forward, forward.encoder.layer, make_dataset())


def test_images_that_make_activations_nan_are_named(make_encoder: Make, make_dataset: Make) -> None:
    dataset = make_dataset()
    dataset[7][0][0, 0, 0] = torch.nan
    forward = TripletForward(make_encoder())
    with pytest.raises(LayerError, match=r"activations of layer 'layer' of image '7' \(number 7\)"):
        build_hardest(forward, forward.encoder.layer, dataset, batch_size=5)
    keys = [f"{i}.jpg" for i in range(12)]
    with pytest.raises(LayerError, match=r"of image '7\.jpg' \(number 7\) holds NaN"):
        build_hardest(forward, forward.encoder.layer, dataset, keys=keys, batch_size=5)


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
            build_hardest(forward, forward.encoder.layer, Augmented(shuffled))


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
        build_hardest(forward, forward.encoder.layer, Broken(), batch_size=3)
    assert state() == before
    with torch.no_grad():
        bank = build_hardest(forward, forward.encoder.layer, content, batch_size=3)
    assert state() == before
    assert (bank.weights != 0).any(1).all()
