"""Keeps what a layer puts out, or what goes into it, while a forward function runs."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from captum_embed.errors import LayerError
from captum_embed.input_sources import InputTags, is_real

# Calls in progress, by thread, and the lock under which hooks come and go: torch numbers them
# without one.
_CALLS: Counter[int] = Counter()
_REGISTRATION = threading.Lock()


class LayerRecorder:
    """Keeps the executions of one layer that belong to one call.

    Other threads may run the layer meanwhile, for calls of their own or for none. Only the call's
    own thread belongs to it, and, where the layer never runs in that one, threads that the call
    started: ``DataParallel`` runs a replica in each.

    Args:
        cut: Detach the first execution from the graph below the layer.
        tags: Tells which inputs each execution was computed from; None: unknown.
    """

    def __init__(self, cut: bool, tags: InputTags | None) -> None:
        self._tags = tags
        self._own: list[tuple[Tensor, ...]] = []
        self._of_workers: list[tuple[Tensor, ...]] = []
        self._shared: list[tuple[Tensor, int]] = []
        self._cut, self._at_input, self._in_place = cut, False, False
        self._thread = threading.get_ident()
        self._older_threads = frozenset(threading.enumerate())
        self._other_calls = False
        self._watching = True

    @contextmanager
    def watching(self, layer: nn.Module, at_input: bool) -> Iterator[None]:
        """Records what ``layer`` puts out, or with ``at_input`` what goes into it."""
        if type(layer).__module__.startswith("torch.jit"):
            raise LayerError(
                f"the layer ({type(layer).__name__}) belongs to a network of torch.jit, whose "
                "layers cannot be watched; give the network as it was before torch.jit"
            )
        self._at_input = at_input
        # Dropout of a network in evaluation changes nothing, whatever it is told.
        activation = type(layer).__module__ == "torch.nn.modules.activation"
        self._in_place = activation and not at_input and bool(getattr(layer, "inplace", False))
        with _REGISTRATION:
            _CALLS[self._thread] += 1
            if at_input:
                handle = layer.register_forward_pre_hook(lambda _, args: self._record(args, args))
            else:
                handle = layer.register_forward_hook(lambda _, args, out: self._record(out, args))
        try:
            yield
        finally:
            # A copy of the network that another thread took meanwhile keeps the hook.
            self._watching = False
            with _REGISTRATION:
                handle.remove()
                _CALLS[self._thread] -= 1
                if not _CALLS[self._thread]:
                    del _CALLS[self._thread]

    def _record(self, value: Any, args: tuple[Any, ...]) -> Any:
        thread = threading.get_ident()
        own = thread == self._thread
        if not self._watching or (
            not own and (thread in _CALLS or threading.current_thread() in self._older_threads)
        ):
            return None
        items = list(value) if isinstance(value, (tuple, list)) else [value]
        places = [i for i, item in enumerate(items) if is_real(item)]
        if not places:
            raise LayerError(
                f"the layer passes {type(value).__name__} with no floating-point tensor in it; "
                "choose a layer whose output is a tensor, or a tuple of tensors"
            )
        # The graph of a thread that may not be ours is left whole.
        detach = self._cut and own and not self._own
        tags = self._tags
        sources = [None if tags is None else tags.sources([items[i]]) for i in places]
        recorded = tuple(self._recorded(items[i], detach, args) for i in places)
        if tags is not None:
            for tensor, source in zip(recorded, sources, strict=True):
                tags.remember(tensor, source)
        if own:
            self._own.append(recorded)
        else:
            self._other_calls |= len(_CALLS) > 1
            self._of_workers.append(recorded)
        if not torch.is_grad_enabled():
            return None
        # The layer's successors get a clone, so that an in-place one cannot alter the record.
        for i, tensor in zip(places, recorded, strict=True):
            items[i] = tensor.clone()
        if not isinstance(value, (tuple, list)):
            return items[0]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)

    def _recorded(self, tensor: Tensor, detach: bool, args: tuple[Any, ...]) -> Tensor:
        if not torch.is_grad_enabled():
            return tensor.detach().clone()
        # A skip connection may use what goes into the layer, or what it changed in place.
        if any(tensor is each for each in args):
            # What used it before the change does not count, so all that counts comes later.
            if detach and self._in_place and not tensor._is_view():
                tensor.detach_()
            # Tensors made in inference mode do not count their changes, and have no graph.
            self._shared += [] if tensor.is_inference() else [(tensor, tensor._version)]
        elif detach:
            tensor = tensor.detach()
        if tensor.requires_grad:
            return tensor
        # What goes in and does not come from the inputs (they require gradients) is not ours.
        return (tensor.detach() if self._at_input else tensor).requires_grad_()

    def of_this_call(self) -> list[tuple[Tensor, ...]]:
        """What was recorded for this call, in the order in which the layer ran on each device.

        Raises:
            LayerError: It was changed in place later, or may belong to another call.
        """
        if any(tensor._version != version for tensor, version in self._shared):
            raise LayerError(
                "what goes into the layer, or the input that it returns, is changed in place by "
                "the network later, so its values are lost; choose the layer before or behind it"
            )
        if not self._own and self._of_workers and self._other_calls:
            raise LayerError(
                "the layer ran in threads that the forward function started, while another call "
                "was explaining too: which of the two they belong to is unknown; make calls of a "
                "DataParallel on several devices one after the other"
            )
        return self._own or self._of_workers
