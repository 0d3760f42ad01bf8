"""One map of a similarity against the libraries that a user would take instead.

They are installed for the benchmark only. Each is used as its own documentation says, on a network
whose parameters require gradients, as networks do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from torch import Tensor, nn

from benchmarks.speed.comparison import WIDTH, Comparison, Setup
from captum_embed import EmbeddingLayerGradCam, SimilarityForward, rivals

INSTALL = "pip install grad-cam torchcam faiss-cpu"
_TITLES = {"captum": "Captum", "pytorch_grad_cam": "pytorch-grad-cam", "torchcam": "TorchCAM"}


def peers(setup: Setup) -> Iterator[Comparison]:
    """Our map of a similarity against each peer's."""
    encoder, layer = _network(setup)
    image, reference = setup.images[:1], torch.randn(WIDTH, device=setup.device)
    forward = SimilarityForward(encoder, references=reference[None])
    grad_cam = EmbeddingLayerGradCam(forward, layer)
    eigen_cam = rivals.EigenCAM(forward, layer)
    for named, package, ours, theirs in (
        ("Grad-CAM", "captum", grad_cam, _captum),
        ("Grad-CAM", "pytorch_grad_cam", grad_cam, _pytorch_grad_cam),
        ("Grad-CAM", "torchcam", grad_cam, _torchcam),
        ("Eigen-CAM", "pytorch_grad_cam", eigen_cam, _pytorch_eigen_cam),
    ):
        what = f"{named} of a similarity"
        against = f"{_TITLES[package]}'s"
        if find_spec(package) is None:
            yield Comparison(what, against, missing=INSTALL)
        else:
            # Of its own: some leave their hooks on it.
            run = theirs(*_network(setup), image, reference)
            yield Comparison(what, against, partial(ours.attribute, image), run)


def _network(setup: Setup) -> tuple[nn.Module, nn.Module]:
    encoder = deepcopy(setup.encoder).requires_grad_(True)
    names = {module: name for name, module in setup.encoder.named_modules()}
    return encoder, encoder.get_submodule(names[setup.layer])


def _captum(
    encoder: nn.Module, layer: nn.Module, image: Tensor, reference: Tensor
) -> Callable[[], Tensor]:
    forward = SimilarityForward(encoder, references=reference[None])
    return partial(LayerGradCam(forward, layer).attribute, image)


def _pytorch_grad_cam(
    encoder: nn.Module, layer: nn.Module, image: Tensor, reference: Tensor
) -> Callable[[], Any]:
    from pytorch_grad_cam import GradCAM

    cam, targets = GradCAM(encoder, [layer]), [partial(_similarity, reference)]
    return lambda: cam(input_tensor=image, targets=targets)


def _pytorch_eigen_cam(
    encoder: nn.Module, layer: nn.Module, image: Tensor, reference: Tensor
) -> Callable[[], Any]:
    from pytorch_grad_cam import EigenCAM

    cam, targets = EigenCAM(encoder, [layer]), [partial(_similarity, reference)]
    return lambda: cam(input_tensor=image, targets=targets)


def _torchcam(
    encoder: nn.Module, layer: nn.Module, image: Tensor, reference: Tensor
) -> Callable[[], Any]:
    from torchcam.methods import GradCAM

    class Scores(nn.Module):
        """It explains class scores: the similarity is the only one."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, images: Tensor) -> Tensor:
            return _similarity(reference, self.encoder(images))[:, None]

    network = Scores()
    cam = GradCAM(network, target_layer=layer)

    def run() -> Any:
        return cam(0, network(image))

    return run


def _similarity(reference: Tensor, embedding: Tensor) -> Tensor:
    return F.cosine_similarity(embedding, reference, dim=-1)
