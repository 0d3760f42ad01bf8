"""Captum's layer methods at the layer that our recipe for boxes uses, the last block."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.methods.method import (
    RECOMMENDED_LAYER,
    Explainer,
    Method,
    MethodUnavailableError,
    Subject,
)


def at_last_block(method: Method) -> Method:
    """The same method at the last block, in front of the last activation."""

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
