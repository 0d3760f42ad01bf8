"""What a layer put out for each input: which execution, which rows, with channels first."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from captum_embed.errors import InputError, LayerError
from captum_embed.layer_executions import LayerExecution, PerExecution, layer_name, run_layer
from captum_embed.layouts import Layout, channels_first, require_layout


def checked_inputs(inputs: Any) -> tuple[Tensor, ...]:
    """Inputs of a forward function as a tuple.

    Args:
        inputs: A tensor or a tuple of tensors, dimension 0 counting examples.

    Returns:
        The tensors, at least one.

    Raises:
        InputError: Something else, or no examples.
    """
    if not isinstance(inputs, (Tensor, tuple)):
        raise InputError(
            f"inputs is {type(inputs).__name__}; expected a tensor (N, ...), or a tuple of such, "
            "one for each argument of the forward function: join images of one batch with "
            "torch.stack(images)"
        )
    formatted = inputs if isinstance(inputs, tuple) else (inputs,)
    if not formatted or not all(isinstance(tensor, Tensor) for tensor in formatted):
        kinds = [type(item).__name__ for item in formatted]
        raise InputError(f"inputs hold {kinds}; expected a tensor or a tuple of tensors")
    for place, tensor in enumerate(formatted):
        if tensor.dim() == 0 or tensor.shape[0] == 0:
            raise InputError(
                f"input {place} has shape {tuple(tensor.shape)}; expected at least one example "
                "along dimension 0"
            )
    return formatted


def run_inputs(
    forward_func: Callable[..., Any],
    layer: nn.Module,
    inputs: tuple[Tensor, ...],
    target: Any = None,
    additional_forward_args: tuple[Any, ...] | None = None,
    *,
    execution: int | None = None,
    **settings: Any,
) -> tuple[Any, list[LayerExecution]]:
    """Runs ``forward_func`` once, by :func:`run_layer`, whose arguments these are.

    Returns:
        Its output, and the execution of each input, by :func:`executions_of_inputs`.
    """
    # A forward function that states its images need not be watched.
    follow = len(inputs) > 1 and _stated(forward_func) is None
    output, executions = run_layer(
        forward_func, layer, inputs, target, additional_forward_args, follow=follow, **settings
    )
    return output, executions_of_inputs(
        executions, forward_func, layer, inputs, additional_forward_args, execution=execution
    )


@dataclass(frozen=True)
class LayerReader:
    """Reads the tensors of a layer, or gradients by them, with channels first.

    Args:
        root: Where the layer's name is looked up, for messages.
        layer: The layer.
        layout: Where it has its channels, see :func:`captum_embed.layouts.channels_first`.
        prefix_tokens: As there.
        grid: As there.
    """

    root: Any
    layer: nn.Module
    layout: Layout
    prefix_tokens: int | None
    grid: tuple[int, int] | None

    @cached_property
    def named(self) -> str:
        """The layer as messages name it, with a space in front."""
        name = layer_name(self.root, self.layer)
        return f" '{name}'" if name else f" ({type(self.layer).__name__})"

    def activations(
        self, executions: Sequence[LayerExecution], images: Sequence[Tensor], *, detach: bool
    ) -> PerExecution:
        """The tensors (N, C, ...) of each image's execution; another layout is refused."""
        activations = []
        for execution, image in zip(executions, images, strict=True):
            for tensor in execution.tensors:
                require_layout(tensor, self.layout, self.layer, image, self.named)
            tensors = (t.detach() if detach else t for t in execution.tensors)
            activations.append([self.channels_first(tensor, image) for tensor in tensors])
        return activations

    def channels_first(self, tensor: Tensor, image: Tensor) -> Tensor:
        """A tensor of the layer's shape as (N, C, ...)."""
        return channels_first(
            tensor,
            self.layout,
            prefix_tokens=self.prefix_tokens,
            grid=self.grid,
            image_size=tuple(image.shape[2:]) if image.dim() == 4 else None,
        )


def executions_of_inputs(
    executions: Sequence[LayerExecution],
    forward_func: Callable[..., Any],
    layer: nn.Module,
    inputs: tuple[Tensor, ...],
    additional_forward_args: tuple[Any, ...] | None = None,
    *,
    execution: int | None = None,
) -> list[LayerExecution]:
    """The execution of each input, in the order of the inputs.

    A forward function may state which of its arguments are images and share one run of the
    encoder, through ``image_inputs`` (the ones of this package do). Of any other, a single
    input has what the layer put out, whatever its batch; k inputs are encoded each by itself, or
    concatenated. In which order tells the graph, or else it is theirs.

    Args:
        executions: All executions of one forward pass, from :func:`run_layer`.
        forward_func: The forward function that ran.
        layer: The layer, for messages.
        inputs: The explained inputs, N examples each.
        additional_forward_args: Further arguments of the forward function.
        execution: Which run of the layer, where it runs more than once per input; counted from
            0, or from -1 backwards.

    Returns:
        One execution per input. Where inputs shared a batch, each with its own rows.

    Raises:
        LayerError: The layer runs more than once per input and ``execution`` does not say
            which is meant; or its rows cannot be told apart.
        InputError: There is no such execution.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from captum_embed.layer_executions import run_layer
        >>> layer = nn.Identity()
        >>> def forward(x, y):
        ...     return layer(torch.cat([x, y])).sum(1)
        >>> inputs = torch.zeros(2, 3), torch.ones(2, 3)
        >>> _, executions = run_layer(forward, layer, inputs)
        >>> second = executions_of_inputs(executions, forward, layer, inputs)[1]
        >>> second.tensors[0]
        tensor([[1., 1., 1.],
                [1., 1., 1.]], grad_fn=<SliceBackward0>)
    """
    name = layer_name(forward_func, layer)
    named = f"'{name}'" if name else f"({type(layer).__name__})"
    stated = _stated_runs(forward_func, (*inputs, *(additional_forward_args or ())))
    runs, executions = (stated, executions) if stated else _recorded_runs(executions, inputs, named)
    per_run, rest = divmod(len(executions), len(runs))
    if rest or not per_run:
        raise LayerError(
            f"the layer {named} ran {len(executions)} times in {len(runs)} runs of the encoder; "
            "expected equally often in each: choose another layer"
        )
    if execution is None and per_run > 1:
        raise LayerError(
            f"the layer {named} runs {per_run} times for each input, and each time puts out "
            "something else; choose a layer that runs once, or say which run is meant: "
            f"execution=0 to {per_run - 1}, or -1 for the last"
        )
    if execution is not None and type(execution) is not int:
        raise InputError(f"execution is {execution!r}; expected a whole number, or None")
    if execution is not None and not -per_run <= execution < per_run:
        raise InputError(
            f"execution is {execution}, and the layer {named} runs {per_run} times for each "
            f"input; expected {-per_run} to {per_run - 1}"
        )
    chosen: dict[int, LayerExecution] = {}
    for number, run in enumerate(runs):
        whole = executions[number * per_run + (execution or 0) % per_run]
        sizes = [rows for _, rows in run]
        if len(run) == 1:
            chosen[run[0][0]] = whole
            continue
        for (place, _), rows in zip(run, _split(whole, sizes, forward_func, named), strict=True):
            chosen[place] = LayerExecution(whole.shards, rows)
    missing = [place for place in range(len(inputs)) if place not in chosen]
    if missing:
        raise LayerError(
            f"the forward function states that input {missing[0]} is no image and does not pass "
            "the layer; give it in additional_forward_args"
        )
    return [chosen[place] for place in range(len(inputs))]


# For each run of the encoder, the places of the arguments in its batch and their rows.
_Runs = list[list[tuple[int, int]]]


def _stated(forward_func: Any) -> Any:
    inner = getattr(forward_func, "module", None)
    return getattr(forward_func, "image_inputs", getattr(inner, "image_inputs", None))


def _stated_runs(forward_func: Any, arguments: tuple[Any, ...]) -> _Runs | None:
    state = _stated(forward_func)
    if state is None:
        return None
    images = [(place, arguments[place]) for place in state(*arguments)]
    runs = [(place, len(image)) for place, image in images]
    if len({(image.shape[1:], image.dtype, image.device) for _, image in images}) == 1:
        return [runs]
    return [[run] for run in runs]


def _recorded_runs(
    executions: Sequence[LayerExecution], inputs: tuple[Tensor, ...], named: str
) -> tuple[_Runs, list[LayerExecution]]:
    """The runs that the executions show, and the executions in the order of these runs."""
    sizes = list(map(len, inputs))
    if len(inputs) == 1:
        return [[(0, sizes[0])]], list(executions)
    if not any(each.sources for each in executions) and torch.is_grad_enabled():
        warnings.warn(
            f"no graph leads from the inputs to the layer {named} (they are integers, or what is "
            "in front of it runs under torch.no_grad() or is detached), so its runs are taken to "
            "be in the order of the inputs; encode them in that order",
            stacklevel=2,
        )
    rows = [sum(len(shard[0]) for shard in each.shards) for each in executions]
    orders = {each.sources for each in executions} - {()} or {tuple(range(len(inputs)))}
    order = orders.pop() if len(orders) == 1 else None
    if order and sorted(order) == list(range(len(inputs))) and set(rows) == {sum(sizes)}:
        return [[(place, sizes[place]) for place in order]], list(executions)
    places = _places(executions, rows, sizes)
    if places is not None:
        by_input = sorted(zip(places, executions, strict=True), key=itemgetter(0))
        return [[pair] for pair in enumerate(sizes)], [each for _, each in by_input]
    raise LayerError(
        f"the layer {named} ran {len(executions)} times, on {rows} rows, for {len(inputs)} inputs "
        f"of {sizes} examples: which rows belong to which input is unknown; encode each input by "
        "itself, or all of them joined by torch.cat along dimension 0, and give what is not to be "
        "explained in additional_forward_args"
    )


def _places(
    executions: Sequence[LayerExecution], rows: list[int], sizes: list[int]
) -> list[int] | None:
    """The input of each execution, where each has one and all have as many; or None."""
    per_input, rest = divmod(len(executions), len(sizes))
    if rest:
        return None
    sources = [each.sources for each in executions]
    if any(one is None or len(one) > 1 for one in sources):
        return None
    counted = [number // per_input for number in range(len(executions))]
    if not any(sources):
        # By their numbers alone, frames of one input look like several inputs.
        return counted if rows == [sizes[place] for place in counted] else None
    # What ran without a graph belongs to the inputs that are left, in their order.
    left = iter(sorted((Counter(counted) - Counter(one[0] for one in sources if one)).elements()))
    places = [one[0] if one else next(left, 0) for one in sources]
    return places if sorted(places) == counted else None


def _split(
    whole: LayerExecution, sizes: list[int], forward_func: Any, named: str
) -> list[tuple[slice, ...]]:
    """For each input of a concatenated batch, its rows in each shard."""
    held = [[len(tensor) for tensor in shard] for shard in whole.shards]
    counts = [shard[0] for shard in held]
    if any(len(set(shard)) > 1 for shard in held) or sum(counts) != sum(sizes):
        raise LayerError(
            f"the layer {named} puts out {held if len(held) > 1 else held[0]} rows for inputs of "
            f"{sizes} examples in one batch: which rows belong to which is unknown; explain one "
            "input, with the others as embeddings in additional_forward_args"
        )
    if len(counts) > 1 and getattr(forward_func, "device_ids", None) is not None:
        return _split_each_shard(counts, sizes, named)
    if len(counts) > 1 and not hasattr(forward_func, "image_inputs"):
        raise LayerError(
            f"the layer {named} ran on {len(counts)} devices, on a batch that several inputs "
            "share: whether they were joined before or after the batch was divided is unknown; "
            "give the DataParallel itself as forward_func, or a forward function of this package"
        )
    starts = [0, *accumulate(counts)]
    rows_of_inputs = []
    for end, size in zip(accumulate(sizes), sizes, strict=True):
        begin = end - size
        rows_of_inputs.append(
            tuple(
                slice(min(max(begin - start, 0), count), min(max(end - start, 0), count))
                for start, count in zip(starts, counts, strict=False)
            )
        )
    return rows_of_inputs


def _split_each_shard(counts: list[int], sizes: list[int], named: str) -> list[tuple[slice, ...]]:
    """``DataParallel`` divided every input alike, and joined them on each device."""
    if len(set(sizes)) > 1 or any(count % len(sizes) for count in counts):
        raise LayerError(
            f"the layer {named} ran on {counts} rows on the devices of a DataParallel, for inputs "
            f"of {sizes} examples; expected as many examples in each input"
        )
    parts = [count // len(sizes) for count in counts]
    return [
        tuple(slice(place * part, (place + 1) * part) for part in parts)
        for place in range(len(sizes))
    ]
