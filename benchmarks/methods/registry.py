"""All methods, and how a command line chooses among them."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.methods import (
    captum_backpropagation,
    captum_deep_lift,
    captum_inputs,
    captum_layers,
    captum_lrp,
    captum_paths,
    captum_perturbation,
    ours,
    rivals,
)
from benchmarks.methods.method import Method
from captum_embed.errors import InputError

METHODS: dict[str, Method] = {
    method.name: method
    for family in (
        ours.METHODS,
        captum_layers.METHODS,
        captum_paths.METHODS_OF_LAYERS,
        captum_deep_lift.METHODS_OF_LAYERS,
        captum_lrp.METHODS_OF_LAYERS,
        captum_perturbation.METHODS_OF_LAYERS,
        captum_inputs.METHODS,
        captum_backpropagation.METHODS,
        captum_paths.METHODS_OF_PIXELS,
        captum_deep_lift.METHODS_OF_PIXELS,
        captum_lrp.METHODS_OF_PIXELS,
        captum_perturbation.METHODS_OF_PIXELS,
        rivals.METHODS,
    )
    for method in family
}


def select(names: Iterable[str]) -> tuple[Method, ...]:
    """Methods by name, in the registry's order.

    Args:
        names (iterable of str): of methods; ``fast`` and ``all`` stand for several.

    Raises:
        InputError: an unknown name; the known ones are listed.

    Example:
        >>> [method.name for method in select(["saliency", "layer_grad_cam"])]
        ['layer_grad_cam', 'saliency']
    """
    chosen: set[str] = set()
    unknown = []
    for name in names:
        if name == "all":
            chosen |= set(METHODS)
        elif name == "fast":
            chosen |= {n for n, method in METHODS.items() if method.cost == "fast"}
        elif name in METHODS:
            chosen.add(name)
        else:
            unknown.append(name)
    if unknown:
        raise InputError(
            f"unknown method{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}; known: fast, "
            f"all, {', '.join(METHODS)}"
        )
    if not chosen:
        raise InputError("no method is chosen")
    return tuple(method for name, method in METHODS.items() if name in chosen)
