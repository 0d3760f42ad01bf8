"""Measure grad-weights and maps in half precision against single precision.

    python -m docs.examples.measure_precision --checkpoint CHECKPOINT --images FOLDER

Triplets of photographs of a folder, cropped, at the last activation: the error of each image's
grad-weights (and its map) is the norm of the difference over the norm in single precision; the
table has the median and the largest over the images. The margin is so large that all triplets
count. ResNet-18 has torchvision's initial weights (seed 0); ``--pretrained`` downloads others.
"""

import argparse
import copy
import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from benchmarks.datasets.preprocess import resize_center_crop, to_tensor
from benchmarks.networks.build import load_checkpoint
from captum_embed import EmbeddingLayerGradCam, TripletForward


def networks(checkpoint: Path | None, pretrained: bool) -> Iterator[tuple[str, nn.Module, str]]:
    """Networks with the names of their last activations."""
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18(weights="DEFAULT" if pretrained else None)
    resnet.fc = nn.Identity()
    yield "ResNet-18", resnet.eval(), "layer4"
    if checkpoint is not None:
        yield "EfficientNet-Lite0", load_checkpoint(checkpoint), "features"


def photographs(folder: Path, count: int, size: int) -> Tensor:
    """As many photographs, spread over the folder, as (3, count / 3, 3, size, size)."""
    paths = sorted(folder.rglob("*.jpg"))
    chosen = paths[:: max(1, len(paths) // count)][:count]
    images = [
        to_tensor(resize_center_crop(Image.open(path).convert("RGB"), size, size))
        for path in chosen
    ]
    return torch.stack(images).unflatten(0, (3, -1))


def errors(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> Tensor:
    """Relative error of each image."""
    pairs = (
        (one.flatten(1), other.flatten(1)) for one, other in zip(actual, expected, strict=True)
    )
    return torch.cat([(one - other).norm(dim=1) / other.norm(dim=1) for one, other in pairs])


def explain(network: nn.Module, name: str, images: Tensor) -> list[tuple[Tensor, ...]]:
    """Grad-weights and maps of the triplets, in single precision."""
    grad_cam = EmbeddingLayerGradCam(
        TripletForward(network, margin=1e4), network.get_submodule(name)
    )
    weights, maps = grad_cam.grad_weights(tuple(images)), grad_cam.attribute(tuple(images))
    assert all(each.dtype is torch.float32 for each in weights)
    return [weights, tuple(each.float() for each in maps)]


def measure(network: nn.Module, name: str, images: Tensor) -> Iterator[tuple[str, list[Tensor]]]:
    """What is measured, and the errors of grad-weights and maps."""
    expected = explain(network, name, images)
    for kind, dtype in itertools.product(
        ("autocast", "whole network"), (torch.bfloat16, torch.float16)
    ):
        if kind == "autocast":
            with torch.autocast("cpu", dtype=dtype):
                actual = explain(network, name, images)
        else:
            actual = explain(copy.deepcopy(network).to(dtype), name, images.to(dtype))
        both = [errors(one, other) for one, other in zip(actual, expected, strict=True)]
        yield f"{str(dtype).removeprefix('torch.')}, {kind}", both


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder with .jpg files")
    parser.add_argument("--checkpoint", type=Path, help="of EfficientNet-Lite0")
    parser.add_argument("--count", type=int, default=12, help="images, a multiple of 3")
    parser.add_argument("--size", type=int, default=96, help="of the images, in pixels")
    parser.add_argument("--pretrained", action="store_true", help="download weights of ResNet-18")
    settings = parser.parse_args()
    images = photographs(settings.images, settings.count, settings.size)
    print("| network | precision | grad-weights, median | largest | map, median | largest |")
    print("|---|---|---|---|---|---|")
    for title, network, name in networks(settings.checkpoint, settings.pretrained):
        for precision, both in measure(network, name, images):
            cells = [f"{value:.1%}" for each in both for value in (each.median(), each.max())]
            print("|", " | ".join([title, precision, *cells]), "|", flush=True)


if __name__ == "__main__":
    main()
