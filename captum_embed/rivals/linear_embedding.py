"""Embedding networks that end in global pooling and a linear head, taken apart by position."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_embed.encoders import embedding_of
from captum_embed.errors import InputError, LayerError
from captum_embed.layer_executions import run_layer
from captum_embed.layouts import CHANNELS_FIRST, LayerLayout
from captum_embed.rivals.activations import only_activation

Pooling = Literal["average", "max"]

# Relative; leaves room for TF32 and for another order of summation, not for another pooling.
_TOLERANCE = 1e-3


def average_shares(activations: Tensor) -> Tensor:
    """What each position adds to the average of its channel: (N, C, H, W), summing to it."""
    return activations / (activations.shape[2] * activations.shape[3])


def max_shares(activations: Tensor) -> Tensor:
    """What each position adds to the maximum of its channel: the maximum itself where it is.

    Args:
        activations: Shape (N, C, H, W).

    Returns:
        Shape (N, C, H, W), summing to the maximum; positions that tie share it equally.

    Example::

        >>> import torch
        >>> max_shares(torch.tensor([[[[3.0, 1.0], [3.0, 2.0]]]]))
        tensor([[[[1.5000, 0.0000],
                  [1.5000, 0.0000]]]])
    """
    is_maximum = activations == activations.amax((2, 3), keepdim=True)
    return torch.where(is_maximum, activations, 0) / is_maximum.sum((2, 3), keepdim=True)


_SHARES: dict[str, Callable[[Tensor], Tensor]] = {"average": average_shares, "max": max_shares}


@dataclass(frozen=True)
class PositionedEmbedding:
    """Embeddings before any normalisation, as sums over the positions of the layer.

    Args:
        activations: Output of the layer, (N, C, H, W).
        shares: What each position adds to the pooled channels, (N, C, H, W).
        weight: Of the head as one linear map, (D, C).
        bias: Of the head as one linear map, (D,).
    """

    activations: Tensor
    shares: Tensor
    weight: Tensor
    bias: Tensor

    @property
    def without_bias(self) -> Tensor:
        """Sum over the positions, (N, D)."""
        return self.shares.sum((2, 3)) @ self.weight.T

    @property
    def embeddings(self) -> Tensor:
        """Embeddings (N, D) before any normalisation."""
        return self.without_bias + self.bias

    @property
    def vectors(self) -> Tensor:
        """What each position adds to the embedding, (N, D, H, W)."""
        return torch.einsum("dc,nchw->ndhw", self.weight, self.shares)

    def along(self, direction: Tensor) -> Tensor:
        """Dot product of each position's vector with directions (N or 1, D), as (N, 1, H, W)."""
        weights = direction @ self.weight
        return (weights[..., None, None] * self.shares).sum(1, keepdim=True)


@dataclass(frozen=True)
class PooledNetwork:
    """A network of the form ``head(pool(layer output))``, with or without a final L2 norm.

    Args:
        encoder: Maps images to embeddings (N, D), running the layer once.
        layer: The layer whose output (N, C, H, W) is pooled.
        head: Linear map after the pooling, see :func:`affine_form`.
        pooling: Global ``"average"`` or ``"max"``.
        device_ids: Device order of a ``DataParallel`` encoder.
        layout: Of the layer's output.

    Raises:
        InputError: Unknown pooling.
    """

    encoder: Callable[..., Any]
    layer: nn.Module
    head: nn.Module | None
    pooling: Pooling
    device_ids: list[int] | None = None
    layout: LayerLayout = CHANNELS_FIRST

    def __post_init__(self) -> None:
        if self.pooling not in _SHARES:
            raise InputError(f"pooling is {self.pooling!r}; expected 'average' or 'max'")

    def embed(self, images: Tensor, additional_forward_args: Any = None) -> PositionedEmbedding:
        """Embeds images in one forward pass without gradients, and checks the network's form.

        Args:
            images: Input of the encoder, (N, ...).
            additional_forward_args: Its further arguments.

        Returns:
            The embeddings as sums over positions.

        Raises:
            LayerError: The decomposition does not hold for this network: its embeddings are not
                ``head(pool(layer output))``, nor these divided by their length.
        """
        with torch.no_grad():
            output, executions = run_layer(
                self.encoder,
                self.layer,
                (images,),
                None,
                additional_forward_args,
                device_ids=self.device_ids,
            )
            activations = only_activation(executions, images, self.layer, self.layout)
            weight, bias = affine_form(self.head, activations)
            positioned = PositionedEmbedding(
                activations, _SHARES[self.pooling](activations), weight, bias
            )
            self._require_same(positioned, output)
        return positioned

    def _require_same(self, positioned: PositionedEmbedding, output: Any) -> None:
        output, expected = embedding_of(output), positioned.embeddings
        if output.shape != expected.shape:
            raise LayerError(
                "the decomposition does not hold for this network: head and pooling give "
                f"embeddings of shape {tuple(expected.shape)}, the encoder returned "
                f"{tuple(output.shape)}; "
                "pass the encoder and the linear head that ends it (head=None where pooling does)"
            )
        difference = _difference(output, expected)
        if difference <= max(_TOLERANCE, 4 * torch.finfo(output.dtype).eps):
            return
        for name, shares in _SHARES.items():
            other = PositionedEmbedding(
                positioned.activations,
                shares(positioned.activations),
                positioned.weight,
                positioned.bias,
            )
            if _difference(output, other.embeddings) <= _TOLERANCE:
                raise LayerError(
                    f"the decomposition does not hold for this network with pooling="
                    f"{self.pooling!r}; it does with pooling={name!r}"
                )
        raise LayerError(
            "the decomposition does not hold for this network: head and "
            f"pooling={self.pooling!r} give embeddings that differ from the encoder's by "
            f"{difference:.0%}. The layer must be the last before global pooling, the head all "
            "that follows but a final L2 norm, and the network in evaluation mode; other networks "
            "can be explained by gradients, see SimilarityGradCam"
        )


def _difference(output: Tensor, expected: Tensor) -> float:
    """Largest relative difference in an example, to the embedding or to its direction."""

    def relative(given: Tensor, reference: Tensor) -> float:
        lengths = reference.norm(dim=1).clamp(min=torch.finfo(reference.dtype).tiny)
        return float(((given - reference).norm(dim=1) / lengths).max())

    return min(relative(output, expected), relative(output, F.normalize(expected, dim=1)))


def affine_form(head: nn.Module | None, activations: Tensor) -> tuple[Tensor, Tensor]:
    """A head as one linear map ``weight @ x + bias`` of the pooled channels.

    Args:
        head: ``nn.Linear``, ``nn.BatchNorm1d`` in evaluation mode, modules that change nothing
            (``nn.Identity``, ``nn.Flatten``, ``nn.Dropout``), or an ``nn.Sequential`` of these.
            None: the pooled channels are the embedding.
        activations: The layer's output (N, C, H, W), for C, type and device.

    Returns:
        Weight (D, C) and bias (D,).

    Raises:
        LayerError: The head is not linear, or takes another number of channels.
    """
    weight: Tensor | None = None
    width = activations.shape[1]
    bias = activations.new_zeros(width)
    for module in _steps(head):
        if isinstance(module, (nn.Identity, nn.Flatten, nn.Dropout)):
            continue
        matrix, offset = _affine_step(module)
        if matrix.shape[-1] != width:
            raise LayerError(
                f"the head's {type(module).__name__} takes {matrix.shape[-1]} channels and gets "
                f"{width} from the layer; is this the layer before the pooling, and its head?"
            )
        if matrix.dim() == 1:
            weight = torch.diag(matrix) if weight is None else matrix[:, None] * weight
            bias = matrix * bias + offset
        else:
            weight = matrix if weight is None else matrix @ weight
            bias = matrix @ bias + offset
        width = len(bias)
    if weight is None:
        weight = torch.eye(width, dtype=activations.dtype, device=activations.device)
    return weight.detach(), bias.detach()


def _steps(head: nn.Module | None) -> Iterator[nn.Module]:
    if isinstance(head, nn.Sequential):
        for module in head:
            yield from _steps(module)
    elif head is not None:
        yield head


def _affine_step(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Matrix (D, C), or its diagonal (C,), and offset."""
    if isinstance(module, nn.Linear):
        bias = module.bias
        return module.weight, module.weight.new_zeros(len(module.weight)) if bias is None else bias
    if isinstance(module, nn.BatchNorm1d) and not module.training:
        mean, variance = module.running_mean, module.running_var
        if mean is not None and variance is not None:
            scale = (variance + module.eps).rsqrt()
            if module.affine:
                scale = scale * module.weight
            shift = -mean * scale
            return scale, shift + module.bias if module.affine else shift
    raise LayerError(
        f"the head holds {type(module).__name__}{' in training mode' if module.training else ''}, "
        "and only linear heads can be decomposed: nn.Linear, nn.BatchNorm1d in evaluation mode, "
        "and nn.Sequential of these; other networks can be explained by gradients, see "
        "SimilarityGradCam"
    )
