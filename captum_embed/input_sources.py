"""From which inputs a tensor was computed, and in which order their rows stand: told by its graph.

Counts of rows cannot tell a layer that ran once for each of two inputs from one that ran twice on
both of them joined. The graph can.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

# The inputs whose rows a batch holds, in their order; (): unknown; None: not one after the other.
Sources = tuple[int, ...] | None

# These may change the order of rows, where they work along dimension 0.
_ALONG_DIM = ("IndexSelectBackward0", "GatherBackward0")
_ALONG_DIMS = ("FlipBackward0", "RollBackward0")


class InputTags:
    """Copies of inputs that are known again in the graph of what is computed from them.

    Args:
        inputs: Tensors given to a forward function; they stay as they are.

    Attributes:
        inputs: The copies, to be given in their place, while gradients are enabled.

    Example::

        >>> import torch
        >>> tags = InputTags((torch.ones(2, 3), torch.zeros(2, 3)))
        >>> first, second = tags.inputs
        >>> tags.sources([second * 2]), tags.sources([torch.cat([second, first])])
        ((1,), (1, 0))
        >>> tags.sources([torch.ones(2, 3)]), tags.sources([first + second])
        ((), None)
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        # Of nodes of the graph, and of leaves, by the tensor; what is held here is not lost.
        self._known: dict[Any, Sources] = {}
        self._leaves: dict[int, tuple[Any, Sources]] = {}
        self.inputs = tuple(self._tagged(place, one) for place, one in enumerate(inputs))

    def _tagged(self, place: int, tensor: Tensor) -> Tensor:
        own: Tensor = own_tensor(tensor, differentiable=True)
        if not own.requires_grad:
            return own  # Of integers.
        if own is tensor:
            # So that the forward function may change it in place, and its node is its own.
            own = tensor.clone()
        self.remember(own, (place,))
        return own

    def remember(self, tensor: Tensor, sources: Sources) -> None:
        """Sources of a tensor, for those that are computed from it."""
        if tensor.grad_fn is not None:
            self._known[tensor.grad_fn] = sources
        else:
            self._leaves[id(tensor)] = tensor, sources

    def sources(self, tensors: Sequence[Tensor]) -> Sources:
        """The inputs that tensors of the same rows were computed from, in the rows' order."""
        known = {self._of_tensor(tensor) for tensor in tensors} - {()}
        return known.pop() if len(known) == 1 else None if known else ()

    def _of_tensor(self, tensor: Tensor) -> Sources:
        if tensor.grad_fn is None:
            return self._leaves.get(id(tensor), (None, ()))[1]
        return self._of_node(tensor.grad_fn)

    def _of_node(self, root: Any) -> Sources:
        done = dict(self._known)
        waiting = [root]
        while waiting:
            node = waiting[-1]
            parents = [one for one, _ in node.next_functions if one]
            open_ = [one for one in parents if node not in done and one not in done]
            if open_:
                waiting += open_
                continue
            waiting.pop()
            if node not in done:
                done[node] = self._joined(node, [done[one] for one in parents])
        return done[root]

    def _joined(self, node: Any, parents: list[Sources]) -> Sources:
        if not parents:
            return self._leaves.get(id(getattr(node, "variable", None)), (None, ()))[1]
        known = {one for one in parents if one != ()}
        if len(known) == 1:
            one = known.pop()
            return None if one and _may_reorder_rows(node) else one
        if not known:
            return ()
        if None in known or () in parents or not _joins_rows(node):
            return None
        return tuple(place for one in parents for place in one or ())


def own_tensor(value: Any, differentiable: bool) -> Any:
    """What a forward function is given in place of a tensor of the caller.

    Args:
        value: A tensor, or anything else, which is returned as it is.
        differentiable: It requires gradients, so that all that is computed from it does.

    Returns:
        The tensor itself, if it requires gradients; else another one of its values.
    """
    if not is_real(value) or value.requires_grad:
        return value
    # Tensors made in inference mode cannot take part in a graph; copies can.
    own = value.clone() if value.is_inference() else value.detach()
    return own.requires_grad_().clone() if differentiable else own


def is_real(item: Any) -> bool:
    """Whether it is a tensor of numbers that have gradients."""
    return isinstance(item, Tensor) and (item.is_floating_point() or item.is_complex())


def _joins_rows(node: Any) -> bool:
    """Whether a node of the graph puts batches one after the other."""
    if node.name() != "CatBackward0":
        return False
    return _is_first(node, node._saved_dim) is True


def _may_reorder_rows(node: Any) -> bool:
    name = node.name()
    if name == "IndexBackward0":
        # Of `x[:, index]` the first is None.
        return any(isinstance(each, Tensor) for each in node._saved_indices[:1])
    if name in _ALONG_DIM:
        return _is_first(node, node._saved_dim) is not False
    if name not in _ALONG_DIMS:
        return False
    # Without dimensions a roll is of all numbers, whatever their rows.
    dims = node._saved_dims
    return not dims or any(_is_first(node, dim) is not False for dim in dims)


def _is_first(node: Any, dim: int) -> bool | None:
    """Whether a dimension is that of the rows; None where it cannot be told."""
    # Torch shows a negative dimension without its sign.
    if dim >= 2**63 or dim < 0:
        inputs = getattr(node, "_input_metadata", None)
        if not inputs:  # Torch 2.3 keeps no shapes here.
            return None
        dim = (dim - 2**64 if dim > 0 else dim) + len(inputs[0].shape)
    return dim == 0
