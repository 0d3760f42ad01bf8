"""The methods by name, and their choice on the command line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from benchmarks.methods import (
    captum_deep_lift,
    captum_inputs,
    captum_layers,
    captum_lrp,
    captum_paths,
    captum_perturbation,
    ours,
    rivals,
    rivals_of_scores,
    variants,
)
from benchmarks.methods.chosen_reductions import with_chosen_reductions
from benchmarks.methods.method import (
    RECOMMENDED_LAYER,
    Explainer,
    Method,
    MethodUnavailableError,
    Subject,
)
from captum_embed.errors import InputError


def at_last_block(method: Method) -> Method:
    """The same method at the layer of our recipe for boxes, in front of the last activation."""

    def build(subject: Subject) -> Explainer:
        layer = subject.other_layers.get(RECOMMENDED_LAYER, subject.layer)
        if layer is subject.layer:
            raise MethodUnavailableError("the last block is the layer of the run")
        return method.build(replace(subject, layer=layer))

    return replace(
        method,
        name=f"{method.name}_block",
        title=f"{method.title}, last block",
        explains=f"{method.explains}, at the last block",
        build=build,
        layers=(RECOMMENDED_LAYER,),
    )


_OF_LAYERS = (
    *captum_layers.METHODS,
    *captum_paths.METHODS_OF_LAYERS,
    *captum_deep_lift.METHODS_OF_LAYERS,
    *captum_lrp.METHODS_OF_LAYERS,
    *captum_perturbation.METHODS_OF_LAYERS,
    captum_inputs.GUIDED_GRAD_CAM,
)

METHODS: dict[str, Method] = {
    method.name: with_chosen_reductions(method)
    for family in (
        ours.METHODS,
        _OF_LAYERS,
        tuple(at_last_block(method) for method in _OF_LAYERS),
        captum_inputs.METHODS,
        captum_paths.METHODS_OF_PIXELS,
        captum_deep_lift.METHODS_OF_PIXELS,
        captum_lrp.METHODS_OF_PIXELS,
        captum_perturbation.METHODS_OF_PIXELS,
        rivals.METHODS,
        rivals_of_scores.METHODS,
    )
    for method in family
}

# Minutes instead of hours: ours with the controls, the paper's rival, and Captum's first.
CORE = (
    "ours_localize",
    "control_uniform",
    "control_permuted",
    "ours_explain",
    "ours_explain_transfer",
    "ours_paper",
    "ours_paper_loss",
    "layer_grad_cam",
    "layer_grad_cam_loss",
    "layer_activation",
    "saliency",
    "guided_grad_cam",
    "activation_decomposition",
)
GROUPS: dict[str, frozenset[str]] = {
    "core": frozenset(CORE),
    "fast": frozenset(name for name, method in METHODS.items() if method.cost == "fast"),
    "all": frozenset(METHODS),
    "variants": frozenset((*variants.METHODS, *variants.BESIDE)),
}


def select(names: Iterable[str]) -> tuple[Method, ...]:
    """Methods by name, in the registry's order.

    Args:
        names (iterable of str): of methods; ``core``, ``fast`` and ``all`` stand for several, and
            ``variants`` for those of EXPLAIN, which are in no other group.

    Raises:
        InputError: an unknown name; the known ones are listed.

    Example:
        >>> [method.name for method in select(["saliency", "layer_grad_cam"])]
        ['layer_grad_cam', 'saliency']
    """
    known = {**METHODS, **variants.METHODS}
    chosen: set[str] = set()
    unknown = []
    for name in names:
        if name in GROUPS:
            chosen |= GROUPS[name]
        elif name in known:
            chosen.add(name)
        else:
            unknown.append(name)
    if unknown:
        raise InputError(
            f"unknown method{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}; known: "
            f"{', '.join([*GROUPS, *METHODS])}"
        )
    if not chosen:
        raise InputError("no method is chosen")
    return tuple(method for name, method in known.items() if name in chosen)
