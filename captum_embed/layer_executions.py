"""What a layer put out, each time it ran in one forward pass, and the cut in the graph above it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from captum._utils.common import _format_tensor_into_tuples, _run_forward, _sort_key_list
from torch import Tensor, nn

from captum_embed.errors import InputError, LayerError


@dataclass(frozen=True)
class LayerExecution:
    """One run of the layer: its tensors, on each device it ran on.

    Args:
        shards: For each device, in batch order, the tensors of the layer's output (or input).
            One shard holding one tensor is the usual case; more shards come from
            ``torch.nn.DataParallel``, more tensors from a layer that returns a tuple.
    """

    shards: tuple[tuple[Tensor, ...], ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The layer's tensors, batches of all devices joined on the first one."""
        return _join(self.shards)


def checked_inputs(inputs: Any) -> tuple[Tensor, ...]:
    """Inputs of a forward function as a tuple.

    Args:
        inputs: A tensor or a tuple of tensors, dimension 0 counting examples.

    Returns:
        The tensors, at least one.

    Raises:
        InputError: Something else, or no examples.
    """
    formatted = _format_tensor_into_tuples(inputs)
    if not formatted or not all(isinstance(tensor, Tensor) for tensor in formatted):
        kinds = [type(item).__name__ for item in formatted or ()]
        raise InputError(f"inputs hold {kinds}; expected a tensor or a tuple of tensors")
    for place, tensor in enumerate(formatted):
        if tensor.dim() == 0 or tensor.shape[0] == 0:
            raise InputError(
                f"input {place} has shape {tuple(tensor.shape)}; expected at least one example "
                "along dimension 0"
            )
    return formatted


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
) -> tuple[Any, list[LayerExecution]]:
    """Runs ``forward_func`` once and records every execution of ``layer`` in it.

    Where gradients are enabled, the recorded tensors require them, and ``cut`` detaches the
    first execution from everything below the layer, so that the graph below is freed at
    once. Later executions stay attached, because they may depend on earlier ones (a module
    used twice in a row); ``torch.autograd.grad`` towards the recorded tensors does not walk
    below them either way. Where gradients are disabled, copies are recorded.

    Args:
        forward_func: Any callable that runs the layer.
        layer: The layer to watch.
        inputs: Tensors given to ``forward_func``.
        target: Index selected from the output, as everywhere in Captum.
        additional_forward_args: Further arguments of ``forward_func``.
        device_ids: Device order of a ``DataParallel`` model inside ``forward_func``.
        attribute_to_layer_input: Record what goes into the layer instead of its output.
        cut: Detach the first execution from the graph below.

    Returns:
        The output of ``forward_func`` after selecting ``target``, and the executions in order.

    Raises:
        LayerError: The layer did not run, or its output holds no floating-point tensor.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> output, executions = run_layer(encoder, encoder[0], (torch.rand(2, 3, 8, 8),))
        >>> executions[0].tensors[0].shape
        torch.Size([2, 4, 6, 6])
    """
    recorder = _Recorder(cut)
    with recorder.watching(layer, attribute_to_layer_input):
        output = _run_forward(forward_func, inputs, target, additional_forward_args)
    if not recorder.executions:
        raise LayerError(_never_ran(forward_func, layer))
    return output, recorder.gather(forward_func, device_ids)


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
    values = torch.unbind(output) if output.dim() > 0 else (output,)
    if any(value.numel() != 1 for value in values):
        raise InputError(
            f"the forward function returned shape {tuple(output.shape)}, which is several values "
            "per example; expected one value per example, (N,), or one scalar: pass `target`, or "
            "let the forward function return the loss"
        )
    tensors = [t for execution in executions for shard in execution.shards for t in shard]
    differentiable = [t for t in tensors if t.requires_grad]
    if not differentiable or not output.requires_grad:
        raise InputError(
            "the output of the forward function does not depend on the layer through a graph; "
            "does it run the network under torch.no_grad(), or detach the embeddings?"
        )
    try:
        found = torch.autograd.grad(values, differentiable, **(grad_kwargs or {}))
    except RuntimeError as error:
        if "appears to not have been used" not in str(error):
            raise
        raise InputError(
            "an execution of the layer does not influence the output of the forward function; "
            "to count its gradient as zero pass grad_kwargs={'materialize_grads': True}"
        ) from error
    by_tensor = {id(t): grad for t, grad in zip(differentiable, found, strict=True)}

    def gradient(tensor: Tensor) -> Tensor:
        grad = by_tensor.get(id(tensor))
        return torch.zeros_like(tensor) if grad is None else grad

    return [
        _join(tuple(tuple(gradient(t) for t in shard) for shard in execution.shards))
        for execution in executions
    ]


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


class _Recorder:
    """Keeps the executions of one layer, by device, in the order in which they happen."""

    def __init__(self, cut: bool) -> None:
        self.executions: dict[torch.device, list[tuple[Tensor, ...]]] = {}
        self._cut = cut
        # DataParallel runs one replica per thread.
        self._lock = threading.Lock()

    @contextmanager
    def watching(self, layer: nn.Module, at_input: bool) -> Iterator[None]:
        if at_input:
            handle = layer.register_forward_pre_hook(lambda _, args: self._record(args))
        else:
            handle = layer.register_forward_hook(lambda _, __, output: self._record(output))
        try:
            yield
        finally:
            handle.remove()

    def _record(self, value: Any) -> Any:
        items = list(value) if isinstance(value, (tuple, list)) else [value]
        places = [i for i, item in enumerate(items) if _is_real(item)]
        if not places:
            raise LayerError(
                f"the layer passes {type(value).__name__} with no floating-point tensor in it; "
                "choose a layer whose output is a tensor, or a tuple of tensors"
            )
        device = items[places[0]].device
        with self._lock:
            earlier = self.executions.setdefault(device, [])
            detach = self._cut and not earlier
            recorded = tuple(_recorded(items[i], detach) for i in places)
            earlier.append(recorded)
        if not torch.is_grad_enabled():
            return None
        # The layer's successors get a clone, so that an in-place one cannot alter the record.
        for i, tensor in zip(places, recorded, strict=True):
            items[i] = tensor.clone()
        if not isinstance(value, (tuple, list)):
            return items[0]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)

    def gather(
        self, forward_func: Callable[..., Any], device_ids: Sequence[int] | None
    ) -> list[LayerExecution]:
        devices = list(self.executions)
        if len(devices) > 1:
            if device_ids is None:
                device_ids = getattr(forward_func, "device_ids", None)
            if device_ids is None:
                raise InputError(
                    f"the layer ran on {len(devices)} devices and the batch order of their parts "
                    "is unknown; pass device_ids, as given to DataParallel"
                )
            devices = _sort_key_list(devices, list(device_ids))
        per_device = [self.executions[device] for device in devices]
        if len({len(executions) for executions in per_device}) > 1:
            raise LayerError("the layer ran a different number of times on each device")
        return [LayerExecution(shards) for shards in zip(*per_device, strict=True)]


def _is_real(item: Any) -> bool:
    return isinstance(item, Tensor) and (item.is_floating_point() or item.is_complex())


def _recorded(tensor: Tensor, detach: bool) -> Tensor:
    if not torch.is_grad_enabled():
        return tensor.detach().clone()
    if detach:
        tensor = tensor.detach()
    return tensor if tensor.requires_grad else tensor.requires_grad_()


def _join(shards: tuple[tuple[Tensor, ...], ...]) -> tuple[Tensor, ...]:
    if len(shards) == 1:
        return shards[0]
    return tuple(
        torch.cat([part.to(parts[0].device) for part in parts])
        for parts in zip(*shards, strict=True)
    )


def _never_ran(forward_func: Callable[..., Any], layer: nn.Module) -> str:
    message = f"the layer ({type(layer).__name__}) did not run in the forward pass"
    if not isinstance(forward_func, nn.Module):
        return f"{message}; choose a module that the forward function calls"
    name = layer_name(forward_func, layer)
    if name is None:
        return (
            f"{message}: it is not a module of the given {type(forward_func).__name__}; choose one "
            "from its named_modules(), of this very object and not of a copy"
        )
    return f"{message}: '{name}' is in the model, but nothing calls it; choose one that is called"
