"""Runs of an encoder that record its layers, and refuse what cannot become an entry of a bank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_embed.encoders import embedding_vectors, unwrapped
from captum_embed.errors import InputError, LayerError
from captum_embed.layer_executions import LayerExecution, layer_gradients, layer_name, run_layer
from captum_embed.layouts import (
    Layout,
    channels_first,
    checked_layout,
    require_gradient_of_places,
    require_layout,
)
from captum_embed.weight_bank.images import ImageBatch


@dataclass(frozen=True)
class EncoderRun:
    """One run on a batch of images.

    Args:
        batch: The images.
        embeddings: Shape (N, D), with their graph where gradients were enabled.
        executions: The one execution of each layer.
        value: What a forward function returned, where it was one that ran.
        image_size: Height and width, where the inputs are images.
    """

    batch: ImageBatch
    embeddings: Tensor
    executions: list[LayerExecution]
    image_size: tuple[int, ...] | None
    value: Any = None


class EncoderRuns:
    """Runs an encoder, or a forward function around it, on batches of images.

    Args:
        encoder: Maps images (N, ...) to embeddings (N, D).
        layers: Modules of the encoder that run once in it.
        device: Where images are put; None: where the encoder is.
        names: Of the images, for messages; None: their indices.
        layout: Of the layers' outputs, see :mod:`captum_embed.layouts`.
        prefix_tokens: See :func:`captum_embed.layouts.channels_first`.
        grid: As ``prefix_tokens``.

    Attributes:
        layout: As given.
        grid: As given.
        prefix_tokens: As given or, once the encoder ran, as counted; None of layers without tokens.

    Raises:
        LayerError: A layer is not in the encoder.
        InputError: The encoder is on another device; the layout's settings do not fit together.
    """

    def __init__(
        self,
        encoder: nn.Module,
        layers: Sequence[nn.Module],
        device: torch.device | str | None,
        names: Sequence[str] | None,
        layout: Layout = "channels_first",
        prefix_tokens: int | None = None,
        grid: tuple[int, int] | None = None,
    ) -> None:
        self.layout = checked_layout(layout, prefix_tokens, grid)
        self.grid, self.prefix_tokens = grid, prefix_tokens
        self.layer_names = [_required_name(encoder, layer) for layer in layers]
        self.encoder = encoder
        self._layers = list(layers)
        self._lowest = 0 if len(layers) == 1 else None
        homes = [each.device for each in (*encoder.parameters(), *encoder.buffers())]
        home = homes[0] if homes else torch.device("cpu")
        # "cuda" is whichever of them the encoder is on.
        self.device = home if device in (None, home.type) else torch.device(str(device))
        if homes and self.device not in homes:
            raise InputError(
                f"device is {self.device}, and the encoder is on {home}; move it there first, with "
                "forward.to(device)"
            )
        self._names = names

    def name_of(self, index: int) -> str:
        """What messages call an image."""
        return str(index) if self._names is None else self._names[index]

    def embed(self, batch: ImageBatch) -> EncoderRun:
        """The encoder on a batch."""
        batch = self._prepared(batch)
        output, executions = self._record(self.encoder, (batch.images,))
        return self._checked(batch, output, executions)

    def call(self, forward: Callable[..., Any], batch: ImageBatch) -> EncoderRun:
        """A forward function on images and labels, which runs the encoder once on all images."""
        batch = self._prepared(batch)
        outputs: list[Any] = []
        handle = self.encoder.register_forward_hook(lambda _, __, output: outputs.append(output))
        try:
            value, executions = self._record(forward, (batch.images,), (batch.labels,))
        finally:
            handle.remove()
        if len(outputs) != 1:
            raise InputError(
                f"{type(forward).__name__} ran its encoder {len(outputs)} times on one batch; "
                "expected once, on all its images"
            )
        return self._checked(batch, outputs[0], executions, value)

    def weights(self, run: EncoderRun, values: Tensor) -> list[Tensor]:
        """For each layer the grad-weights (N, C) of values that depend on it, in float32 or wider.

        Of a layer that returns several tensors, the channels are concatenated.
        """
        dtype = torch.promote_types(run.embeddings.dtype, torch.float32)
        weights = []
        for gradients in layer_gradients(values, run.executions, {"materialize_grads": True}):
            places = [self._channels_first(gradient, run.image_size) for gradient in gradients]
            means = [
                each.flatten(2).mean(2, dtype=dtype) if each.dim() > 2 else each.to(dtype)
                for each in places
            ]
            weights.append(torch.cat(means, dim=1))
            self._require_finite("the grad-weights", weights[-1], run.batch)
        return weights

    def require_influence(self, run: EncoderRun) -> None:
        """Refuses a layer that the embeddings do not depend on, given a run with gradients.

        Of tokens, one of which only those without a place are read.
        """
        embeddings = run.embeddings
        # Not the plain sum: behind a layer norm it is constant.
        factors = torch.arange(1, embeddings.shape[1] + 1).to(embeddings)
        for layer, name, execution in zip(
            self._layers, self.layer_names, run.executions, strict=True
        ):
            tensors = [tensor for shard in execution.shards for tensor in shard]
            if embeddings.requires_grad:
                of_all = torch.autograd.grad(
                    (embeddings * factors).sum(), tensors, allow_unused=True, retain_graph=True
                )
                gradients = [gradient for gradient in of_all if gradient is not None]
                if gradients and self.layout == "tokens":
                    places = [self._channels_first(each, run.image_size) for each in gradients]
                    require_gradient_of_places(gradients, places, layer, self.encoder)
                if gradients:
                    continue
            raise LayerError(
                f"the embedding does not depend on the layer '{name}' through a graph; choose a "
                "layer between image and embedding, and see that the encoder neither runs under "
                "torch.no_grad() nor detaches"
            )

    def _record(
        self, function: Callable[..., Any], inputs: tuple[Tensor, ...], extra: Any = None
    ) -> tuple[Any, list[LayerExecution]]:
        """One run, watched by every layer; the graph is cut at the one that runs first."""
        execution_of: dict[int, LayerExecution] = {}

        def watched(position: int, *arguments: Any) -> Any:
            layer, name = self._layers[position], self.layer_names[position]
            inner = function if position == len(self._layers) - 1 else _next(watched, position)
            output, executions = run_layer(
                inner,
                layer,
                arguments[: len(inputs)],
                None,
                arguments[len(inputs) :] or None,
                cut=position == self._lowest,
            )
            if len(executions) != 1:
                raise LayerError(
                    f"the layer '{name}' runs {len(executions)} times in one pass of the encoder; "
                    "a bank keeps the weights of one: choose a layer that runs once"
                )
            execution_of[position] = executions[0]
            return output

        output = watched(0, *inputs, *(extra or ()))
        return output, [execution_of[position] for position in range(len(self._layers))]

    def _prepared(self, batch: ImageBatch) -> ImageBatch:
        """The batch on the device; the first one shows which of several layers is the lowest."""
        batch = batch.to(self.device)
        if self._lowest is not None:
            return batch
        order: list[int] = []
        with ExitStack() as stack, torch.no_grad():
            for position, layer in enumerate(self._layers):
                hook = layer.register_forward_hook(lambda *_, p=position: order.append(p))
                stack.callback(hook.remove)
            self.encoder(batch.images[:1])
        self._lowest = order[0] if order else 0
        return batch

    def _checked(
        self, batch: ImageBatch, output: Any, executions: list[LayerExecution], value: Any = None
    ) -> EncoderRun:
        images = batch.images
        size = tuple(images.shape[2:]) if images.dim() == 4 else None
        run = EncoderRun(batch, embedding_vectors(output), executions, size, value)
        for layer, name, execution in zip(self._layers, self.layer_names, executions, strict=True):
            for tensor in execution.tensors:
                if tensor.dim() < 2 or len(tensor) != len(images):
                    raise LayerError(
                        f"the layer '{name}' gives shape {tuple(tensor.shape)} for {len(images)} "
                        "images; expected (N, C, ...): choose another layer"
                    )
                require_layout(tensor, self.layout, layer, images, f" '{name}'")
                places = self._channels_first(tensor, size)
                if self.layout == "tokens" and tensor.dim() == 3:
                    self.prefix_tokens = tensor.shape[1] - places[0, 0].numel()
                self._require_finite(f"the activations of layer '{name}'", tensor, batch)
        if len(run.embeddings) != len(images):
            raise InputError(
                f"the encoder returned {tuple(run.embeddings.shape)} for {len(images)} images; "
                f"expected embeddings ({len(images)}, D)"
            )
        self._require_finite("the embedding", run.embeddings, batch)
        return run

    def _channels_first(self, tensor: Tensor, image_size: tuple[int, ...] | None) -> Tensor:
        return channels_first(
            tensor,
            self.layout,
            prefix_tokens=self.prefix_tokens,
            grid=self.grid,
            image_size=image_size,
        )

    def _require_finite(self, what: str, tensor: Tensor, batch: ImageBatch) -> None:
        finite = torch.isfinite(tensor.detach()).flatten(1).all(1)
        if not finite.all():
            index = int(batch.indices[~finite][0])
            raise LayerError(
                f"{what} of image '{self.name_of(index)}' (number {index}) holds NaN or infinite "
                "values; look for them in the image and the network's parameters"
            )


def _next(watched: Callable[..., Any], position: int) -> Callable[..., Any]:
    return lambda *arguments: watched(position + 1, *arguments)


def _required_name(encoder: nn.Module, layer: nn.Module) -> str:
    name = layer_name(unwrapped(encoder), layer)
    if name is None:
        raise LayerError(
            f"the layer ({type(layer).__name__}) is not a module of forward.encoder "
            f"({type(encoder).__name__}); choose one from its named_modules(), of this very "
            "object and not of a copy"
        )
    return name
