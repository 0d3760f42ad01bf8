"""A copy of a network with one module per operation: what Captum's DeepLift and LRP attach to.

Both propagate through modules by rule, and through everything else, silently, by the plain
gradient: activations called as functions, modules that run twice, residual additions, the L2
norm. The copy has a module of its own for each of these. It shares the network's parameters and
computes the same embedding.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr._utils.custom_modules import Addition_Module
from torch import Tensor, fx, nn

from benchmarks.methods.method import MethodUnavailableError

_RELUS = {F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"}
_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_ELEMENTWISE = {
    F.celu, F.elu, F.gelu, F.hardsigmoid, F.hardswish, F.hardtanh, F.leaky_relu, F.mish, F.relu6,
    F.selu, F.sigmoid, F.silu, F.softplus, F.tanh, torch.clamp, torch.sigmoid, torch.tanh,
    "clamp", "clamp_", "clamp_max", "clamp_min", "sigmoid", "tanh",
}  # fmt: skip
_ELEMENTWISE_MODULES = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.Mish,
    nn.SELU, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Tanh,
)  # fmt: skip
_CHANGES_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)


class Elementwise(nn.Module):
    """A nonlinearity of each number by itself."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        # The function may work in place.
        return self.function(x.clone())


class UnitLength(nn.Module):
    """The L2 norm of embeddings (N, D)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1)


class MaxPool(nn.MaxPool2d):
    """Max pooling, known by another type than Captum's tables know it by."""


class LayerOutput(nn.Module):
    """Stands where the explained layer ends."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view_as(x)


# Modules that rules hook at their input and output.
_HOOKED = (nn.ReLU, Elementwise, UnitLength, MaxPool, LayerOutput, nn.Softmax)


@dataclass(frozen=True)
class CanonicalNetwork:
    """What `canonical` gives.

    Args:
        encoder (nn.Module): images (N, 3, H, W) to embeddings (N, D), as the network.
        layer (LayerOutput): gives what the explained layer gives.
        operations (frozenset): types of its modules; functions and names of methods.
    """

    encoder: fx.GraphModule
    layer: LayerOutput
    operations: frozenset[Any]

    def beside(self, known: frozenset[Any]) -> str:
        """Names of the operations that are not among the known ones; empty without any."""
        others = self.operations - known
        return ", ".join(sorted(getattr(each, "__name__", str(each)) for each in others))


def canonical(network: nn.Module, layer: nn.Module) -> CanonicalNetwork:
    """A network's canonical copy.

    Args:
        network (nn.Module): images to embeddings, in evaluation mode; it is left as it is.
        layer (nn.Module): a module of it that runs once and gives one tensor.

    Raises:
        MethodUnavailableError: torch.fx cannot trace the network, or the layer is not in it.
    """
    tracer = _LayerTracer(layer)
    try:
        graph = tracer.trace(network)
    except Exception as error:  # Whatever the network's code raises when it is given proxies.
        raise MethodUnavailableError(f"torch.fx cannot trace the network: {error}") from error
    if len(tracer.outputs) != 1 or not isinstance(tracer.outputs[0], fx.Proxy):
        raise MethodUnavailableError(
            f"the layer runs {len(tracer.outputs)} times in a pass, or gives several tensors"
        )
    encoder = fx.GraphModule(network, graph)
    for node in list(graph.nodes):
        _give_module(encoder, node)
    marker = _mark_layer(encoder, tracer.outputs[0].node)
    for node in list(graph.nodes):
        if isinstance(_module_of(encoder, node), _HOOKED):
            _give_own_input(node)
    encoder.delete_all_unused_submodules()
    graph.lint()
    encoder.recompile()
    return CanonicalNetwork(encoder.eval(), marker, _operations(encoder))


class _LayerTracer(fx.Tracer):
    """Traces, and remembers where the explained layer ends."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.outputs: list[Any] = []

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        if m is self.layer:
            # A node of its own, which none of the replacements takes away.
            output = self.create_proxy("call_method", "view_as", (output, output), {})
            self.outputs.append(output)
        return output


def _module_of(encoder: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return encoder.get_submodule(str(node.target)) if node.op == "call_module" else None


def _give_module(encoder: fx.GraphModule, node: fx.Node) -> None:
    """Replaces one operation by a module of its own, where it needs one."""
    module = _module_of(encoder, node)
    if isinstance(module, _CHANGES_NOTHING):
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        node.graph.erase_node(node)
    elif isinstance(module, nn.Flatten):
        with node.graph.inserting_before(node):
            flat = node.graph.call_method(
                "flatten", (node.args[0], module.start_dim, module.end_dim)
            )
        node.replace_all_uses_with(flat)
        node.graph.erase_node(node)
    elif (replacement := _replacement(module, node)) is not None:
        _replace(encoder, node, replacement)


def _replacement(module: nn.Module | None, node: fx.Node) -> nn.Module | None:
    if module is not None:
        if type(module) is nn.ReLU:
            return nn.ReLU()
        if type(module) is nn.MaxPool2d:
            return MaxPool(
                module.kernel_size,
                module.stride,
                module.padding,
                module.dilation,
                ceil_mode=module.ceil_mode,
            )
        return Elementwise(module.forward) if isinstance(module, _ELEMENTWISE_MODULES) else None
    if node.op not in ("call_function", "call_method"):
        return None
    inputs = node.all_input_nodes
    if node.target in _ADDITIONS and len(inputs) == 2 and len(node.args) == 2 and not node.kwargs:
        return Addition_Module()
    if len(inputs) != 1 or inputs[0] is not node.args[0]:
        return None
    if node.target in _RELUS:
        return nn.ReLU()
    if node.target is F.normalize:
        return UnitLength() if _is_unit_length(*node.args[1:], **node.kwargs) else None
    return Elementwise(_function_of(node)) if node.target in _ELEMENTWISE else None


def _is_unit_length(p: Any = 2.0, dim: Any = 1, eps: Any = 1e-12, out: Any = None) -> bool:
    return bool(p == 2 and dim in (1, -1))


def _function_of(node: fx.Node) -> Callable[[Tensor], Tensor]:
    others, options = node.args[1:], dict(node.kwargs)
    if node.op == "call_method":
        name = str(node.target)
        return lambda x: getattr(x, name)(*others, **options)
    function: Any = node.target
    return lambda x: function(x, *others, **options)


def _replace(encoder: fx.GraphModule, node: fx.Node, module: nn.Module) -> None:
    name = f"own_{node.name}"
    encoder.add_submodule(name, module)
    with node.graph.inserting_before(node):
        own = node.graph.call_module(name, tuple(node.all_input_nodes))
    node.replace_all_uses_with(own)
    node.graph.erase_node(node)


def _mark_layer(encoder: fx.GraphModule, node: fx.Node) -> LayerOutput:
    marker = LayerOutput()
    _replace(encoder, node, marker)
    return marker


def _give_own_input(node: fx.Node) -> None:
    """Another tensor object as the module's input.

    Where one hooked module feeds another, both hook the tensor between them, and Captum's first
    hook sees the gradient before the second has replaced it.
    """
    before = node.all_input_nodes[0]
    with node.graph.inserting_before(node):
        view = node.graph.call_method("view_as", (before, before))
    node.replace_input_with(before, view)


def _operations(encoder: fx.GraphModule) -> frozenset[Any]:
    modules = (_module_of(encoder, node) for node in encoder.graph.nodes)
    calls = (n.target for n in encoder.graph.nodes if n.op in ("call_function", "call_method"))
    return frozenset([*(type(module) for module in modules if module is not None), *calls])
