"""One forward pass of an image, shared by the methods that need no more than one.

The modules that come before the explained layers run once; while an image is measured they give
what they gave then. The layers explained, and all behind them, run as ever, so that hooks, maps
and gradients are those of a pass of one's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Recording:
    """What the modules before the first explained layer, and that layer, put out for an image.

    Args:
        image (Tensor): (1, 3, H, W).
        outputs (dict): by module, none within another, in the order in which they ran. The last
            is the explained layer's.
    """

    image: Tensor
    outputs: dict[nn.Module, Tensor]


@torch.no_grad()
def record(network: nn.Module, layers: Collection[nn.Module], image: Tensor) -> Recording | None:
    """Runs the network on an image and keeps what all methods can share.

    Args:
        network (nn.Module): images to embeddings; left without hooks.
        layers (collection of nn.Module): explained layers.
        image (Tensor): (1, 3, H, W).

    Returns:
        Recording: up to the first of the layers to finish; None where nothing can be shared: no
        layer ran, or a module before it ran more than once or gave something other than a tensor.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
        >>> recording = record(network, [network[1]], torch.rand(1, 3, 8, 8))
        >>> [type(module).__name__ for module in recording.outputs]
        ['Conv2d', 'ReLU']
    """
    recorder = _Recorder(layers)
    with ExitStack() as hooks:
        for module in network.modules():
            hooks.callback(module.register_forward_pre_hook(recorder.start).remove)
            hooks.callback(module.register_forward_hook(recorder.finish).remove)
        network(image)
    return recorder.recording(image)


class _Recorder:
    def __init__(self, layers: Collection[nn.Module]) -> None:
        self._layers = layers
        self._running: list[nn.Module] = []
        self._num_runs: Counter[nn.Module] = Counter()
        # Of each running module: the outputs of what has finished in it.
        self._finished: list[dict[nn.Module, Any]] = [{}]
        self._outputs: dict[nn.Module, Any] | None = None

    def start(self, module: nn.Module, inputs: Any) -> None:
        self._running.append(module)
        self._num_runs[module] += 1
        self._finished.append({})

    def finish(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._running.pop()
        self._finished.pop()
        # A successor that works in place must not alter the record.
        kept = output.clone() if isinstance(output, Tensor) else None
        self._finished[-1][module] = kept
        if self._outputs is None and module in self._layers:
            self._outputs = {k: v for level in self._finished for k, v in level.items()}

    def recording(self, image: Tensor) -> Recording | None:
        if self._outputs is None or any(output is None for output in self._outputs.values()):
            return None
        inside = {inner for module in self._outputs for inner in module.modules()}
        if any(self._num_runs[module] > 1 for module in inside):
            return None
        return Recording(image.clone(), self._outputs)


@contextmanager
def replayed(recording: Recording | None) -> Iterator[None]:
    """Modules of the recording give its outputs, for its image; for any other image they run.

    Args:
        recording (Recording, optional): of `record`; None: nothing is changed.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
        >>> image = torch.rand(1, 3, 8, 8)
        >>> with replayed(record(network, [network[1]], image)):
        ...     again = network(image)
        >>> bool((again == network(image)).all())
        True
    """
    if recording is None:
        yield
        return
    player = _Player(recording)
    with ExitStack() as replacements:
        for module in recording.outputs:
            replacements.enter_context(_running(module, player.playing(module, module.forward)))
        yield


@contextmanager
def _running(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    of_its_own = {k: v for k, v in vars(module).items() if k == "forward"}
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]
        vars(module).update(of_its_own)


class _Player:
    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._first = next(iter(recording.outputs))
        *_, self._last = recording.outputs
        self._same_image = False

    def playing(self, module: nn.Module, run: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*inputs: Any, **options: Any) -> Any:
            if module is self._first:
                self._same_image = _is(self._recording.image, inputs)
            if not self._same_image:
                return run(*inputs, **options)
            output = self._recording.outputs[module].detach()
            # Behind the layer the graph is built as if what is before it required gradients.
            output.requires_grad_(module is self._last and torch.is_grad_enabled())
            return output.clone()

        return forward


def _is(image: Tensor, inputs: tuple[Any, ...]) -> bool:
    return len(inputs) == 1 and isinstance(inputs[0], Tensor) and torch.equal(inputs[0], image)
