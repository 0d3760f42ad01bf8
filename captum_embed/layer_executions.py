"""What a layer put out, each time it ran in one forward pass, and the cut in the graph above it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from captum._utils.common import _run_forward, _sort_key_list
from torch import Tensor, nn

from captum_embed.errors import InputError, LayerError
from captum_embed.input_sources import InputTags, Sources, own_tensor
from captum_embed.layer_recorder import LayerRecorder

# One tensor, or a tuple with one for each input. (Of a layer that returns several tensors, each is
# a tuple in turn; the type leaves that out.)
Maps = Tensor | tuple[Tensor, ...]

# For each input, for each tensor of the layer.
PerExecution = list[list[Tensor]]


@dataclass(frozen=True)
class LayerExecution:
    """One run of the layer: its tensors, on each device it ran on.

    Args:
        shards: For each device, in batch order, the tensors of the layer's output (or input).
            One shard holding one tensor is the usual case; more shards come from
            ``torch.nn.DataParallel``, more tensors from a layer that returns a tuple.
        rows: For each shard, which rows belong to this execution; None: all.
        sources: The inputs that it was computed from, in the order of its rows.
    """

    shards: tuple[tuple[Tensor, ...], ...]
    rows: tuple[slice, ...] | None = None
    sources: Sources = ()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The layer's tensors, batches of all devices joined on the first one."""
        return self.join(self.shards)

    def join(self, shards: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
        """Tensors shaped as the shards, this execution's rows of each, joined over devices."""
        if self.rows is not None:
            shards = [
                [t[rows] for t in shard] for shard, rows in zip(shards, self.rows, strict=True)
            ]
        if len(shards) == 1:
            return tuple(shards[0])
        return tuple(
            torch.cat([part.to(parts[0].device) for part in parts])
            for parts in zip(*shards, strict=True)
        )


def run_layer(
    forward_func: Callable[..., Any],
    layer: nn.Module,
    inputs: tuple[Tensor, ...],
    target: Any = None,
    additional_forward_args: Any = None,
    *,
    device_ids: Sequence[int] | None = None,
    attribute_to_layer_input: bool = False,
    cut: bool = True,
    follow: bool = False,
) -> tuple[Any, list[LayerExecution]]:
    """Runs ``forward_func`` once and records every execution of ``layer`` in it.

    Where gradients are enabled, the recorded tensors require them, and ``cut`` detaches the
    first execution from everything below the layer, so that the graph below is freed at
    once. Later executions stay attached, because they may depend on earlier ones (a module
    used twice in a row), and so does what others than the layer's successors may use, too: its
    input, and an output that is its input. ``torch.autograd.grad`` towards the recorded tensors
    does not walk below them either way. Where gradients are disabled, copies are recorded.

    Args:
        forward_func: Any callable that runs the layer.
        layer: The layer to watch.
        inputs: Tensors given to ``forward_func``.
        target: Index selected from the output, as everywhere in Captum.
        additional_forward_args: Further arguments of ``forward_func``.
        device_ids: Device order of a ``DataParallel`` model inside ``forward_func``.
        attribute_to_layer_input: Record what goes into the layer instead of its output.
        cut: Detach the first execution from the graph below.
        follow: Find out which inputs each execution was computed from, where gradients are
            enabled; ``forward_func`` is given copies of the inputs.

    Returns:
        The output of ``forward_func`` after selecting ``target``, and the executions in order.

    Raises:
        LayerError: The layer did not run, or its output holds no floating-point tensor; or what
            was recorded was changed in place later.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> output, executions = run_layer(encoder, encoder[0], (torch.rand(2, 3, 8, 8),))
        >>> executions[0].tensors[0].shape
        torch.Size([2, 4, 6, 6])
    """
    given, arguments = inputs, additional_forward_args
    tags: InputTags | None = None
    if torch.is_grad_enabled():
        # What the caller gave stays as it is, if the layer's input is it or a part of it.
        own = partial(own_tensor, differentiable=attribute_to_layer_input)
        tags = InputTags(inputs) if follow else None
        given = tuple(map(own, inputs)) if tags is None else tags.inputs
        if isinstance(arguments, tuple):
            arguments = tuple(map(own, arguments))
    recorder = LayerRecorder(cut, tags)
    with recorder.watching(layer, attribute_to_layer_input):
        output = run_forward(forward_func, given, target, arguments)
    executions = recorder.of_this_call()
    if not executions:
        raise LayerError(_never_ran(forward_func, layer))
    runs = _by_device(executions, forward_func, device_ids)
    if tags is not None:
        runs = [replace(each, sources=tags.sources(sum(each.shards, ()))) for each in runs]
    return output, runs


def packed(
    weights: PerExecution,
    activations: PerExecution,
    result_of: Callable[[Tensor, Tensor], Tensor],
) -> Maps:
    """The result of each execution and tensor, unpacked where there is only one.

    Args:
        weights: For each execution, for each tensor, what is computed per channel.
        activations: The tensors themselves, in the same order.
        result_of: Makes a result of one of each.

    Returns:
        One result; a tuple of one per execution, or per tensor; or a tuple of tuples.
    """
    results: list[Any] = [
        tuple(result_of(w, a) for w, a in zip(*each, strict=True))
        for each in zip(weights, activations, strict=True)
    ]
    unpacked = [result if len(result) > 1 else result[0] for result in results]
    return tuple(unpacked) if len(unpacked) > 1 else unpacked[0]


def layer_gradients(
    output: Tensor,
    executions: Sequence[LayerExecution],
    grad_kwargs: dict[str, Any] | None = None,
) -> list[tuple[Tensor, ...]]:
    """Gradients of ``output`` (one value per example, or one scalar) by each execution.

    Args:
        output: Shape (N,), (N, 1) or a scalar, from :func:`run_layer` with gradients enabled.
        executions: The executions that :func:`run_layer` returned with it.
        grad_kwargs: Keyword arguments of ``torch.autograd.grad``.

    Returns:
        For each execution one gradient per tensor, of that tensor's shape. Executions that ran
        under ``torch.no_grad()`` are constants of the forward function: their gradient is zero.

    Raises:
        InputError: The output has several values per example, or does not depend on the layer.
    """
    if not isinstance(output, Tensor):
        raise InputError(
            f"the forward function returned {type(output).__name__}; expected one value per "
            "example, (N,), or one scalar: let it return the tensor to be explained"
        )
    values = torch.unbind(output) if output.dim() > 0 else (output,)
    one_example = all(len(tensor) == 1 for each in executions for tensor in each.tensors)
    if any(value.numel() != 1 for value in values) or (one_example and len(values) > 1):
        raise InputError(
            f"the forward function returned shape {tuple(output.shape)}, which is several values "
            "per example; expected one value per example, (N,), or one scalar: pass `target`, or "
            "let the forward function return the loss"
        )
    tensors = {id(t): t for each in executions for shard in each.shards for t in shard}
    differentiable = [t for t in tensors.values() if t.requires_grad]
    if not differentiable or not output.requires_grad:
        raise InputError(
            "the output of the forward function does not depend on the layer through a graph; "
            "does the network run under torch.no_grad() or torch.inference_mode(), in a "
            "checkpoint with use_reentrant=True, or are the embeddings detached?"
        )
    try:
        gradients = torch.autograd.grad(values, differentiable, **(grad_kwargs or {}))
    except RuntimeError as error:
        if "appears to not have been used" not in str(error):
            raise
        raise InputError(
            "an execution of the layer does not influence the output of the forward function; "
            "to count its gradient as zero pass grad_kwargs={'materialize_grads': True}"
        ) from error
    by_tensor = {id(t): grad for t, grad in zip(differentiable, gradients, strict=True)}

    def gradient(tensor: Tensor) -> Tensor:
        grad = by_tensor.get(id(tensor))
        return torch.zeros_like(tensor) if grad is None else grad

    return [
        execution.join([[gradient(t) for t in shard] for shard in execution.shards])
        for execution in executions
    ]


def require_finite(what: str, layer: nn.Module, tensors: Sequence[Sequence[Tensor]]) -> None:
    """Raises LayerError where a tensor of an execution holds NaN or infinite values."""
    if not all(bool(torch.isfinite(tensor).all()) for each in tensors for tensor in each):
        raise LayerError(
            f"the {what} of the layer ({type(layer).__name__}) hold NaN or infinite values; look "
            "for them in the inputs, the network's parameters, and the forward function"
        )


def layer_name(root: Any, layer: nn.Module) -> str | None:
    """Dotted name of ``layer`` below ``root``, or None where it is not one of its modules.

    Example::

        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        >>> layer_name(model, model[1])
        '1'
    """
    if not isinstance(root, nn.Module):
        return None
    return next((name for name, module in root.named_modules() if module is layer), None)


def run_forward(
    forward_func: Callable[..., Any], inputs: tuple[Tensor, ...], target: Any, arguments: Any
) -> Any:
    """The output of a forward function after selecting ``target``.

    Raises:
        InputError: It fails on images of integers.
    """
    try:
        return _run_forward(forward_func, inputs, target, arguments)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        dtypes = [tensor.dtype for tensor in inputs]
        if all(dtype.is_floating_point or dtype.is_complex for dtype in dtypes):
            raise
        raise InputError(
            f"the forward function fails on inputs of {', '.join(map(str, dtypes))} ({error}); "
            "convert images to floating point, scaled and normalised as in training, such as "
            "images.float() / 255"
        ) from error


def _by_device(
    executions: list[tuple[Tensor, ...]],
    forward_func: Callable[..., Any],
    device_ids: Sequence[int] | None,
) -> list[LayerExecution]:
    by_device: dict[torch.device, list[tuple[Tensor, ...]]] = {}
    for tensors in executions:
        by_device.setdefault(tensors[0].device, []).append(tensors)
    devices = list(by_device)
    if len(devices) > 1:
        if device_ids is None:
            device_ids = getattr(forward_func, "device_ids", None)
        if device_ids is None:
            raise InputError(
                f"the layer ran on {len(devices)} devices and the batch order of their parts is "
                "unknown; pass device_ids, as given to DataParallel"
            )
        devices = _sort_key_list(devices, list(device_ids))
    per_device = [by_device[device] for device in devices]
    if len({len(executions) for executions in per_device}) > 1:
        raise LayerError("the layer ran a different number of times on each device")
    return [LayerExecution(shards) for shards in zip(*per_device, strict=True)]


def _never_ran(forward_func: Callable[..., Any], layer: nn.Module) -> str:
    message = f"the layer ({type(layer).__name__}) did not run in the forward pass"
    if _is_compiled(forward_func):
        return (
            f"{message}: torch.compile made code of the network before, and that code runs past "
            "the layer; give the network as it was before torch.compile"
        )
    if not isinstance(forward_func, nn.Module):
        return (
            f"{message}; choose a module that the forward function calls (of a network that "
            "torch.compile has compiled, none is: give the network as it was before)"
        )
    name = layer_name(forward_func, layer)
    if name is None:
        return (
            f"{message}: it is not a module of the given {type(forward_func).__name__}; choose one "
            "from its named_modules(), of this very object and not of a copy"
        )
    return f"{message}: '{name}' is in the model, but nothing calls it; choose one that is called"


def _is_compiled(forward_func: Any) -> bool:
    if not isinstance(forward_func, nn.Module):
        return hasattr(forward_func, "_torchdynamo_orig_callable")
    return any(
        hasattr(each, "_orig_mod") or getattr(each, "_compiled_call_impl", None) is not None
        for each in forward_func.modules()
    )
