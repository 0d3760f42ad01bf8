"""The embeddings in what an encoder returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from captum_embed.errors import InputError

# The names in the outputs of `transformers` and `open_clip`, the most definite first.
_NAMES = ("embeddings", "image_embeds", "pooler_output")


def embedding_of(output: Any) -> Tensor:
    """The embeddings (N, D) in the output of an encoder.

    Args:
        output: A tensor, as it is; a mapping, such as a ``ModelOutput`` of ``transformers``, that
            holds ``embeddings``, ``image_embeds`` or ``pooler_output``; or a tuple or list with
            one tensor (N, D) in it. What pooling leaves, (N, D, 1, 1), is flattened.

    Returns:
        The embeddings.

    Raises:
        InputError: None or several could be meant.

    Example::

        >>> import torch
        >>> embedding_of((torch.zeros(2, 4, 7, 7), torch.ones(2, 3))).shape
        torch.Size([2, 3])
    """
    if isinstance(output, Tensor):
        return output.flatten(1) if output.dim() > 2 and output.shape[2:].numel() == 1 else output
    advice = "let it return embeddings (N, D), or pass embedding_func=..., where that is taken"
    if isinstance(output, Mapping):
        for name in _NAMES:
            if isinstance(output.get(name), Tensor):
                return embedding_of(output[name])
        raise InputError(
            f"the encoder returned {type(output).__name__} with {sorted(map(str, output))}; "
            f"expected a tensor, or one of {list(_NAMES)} in it: {advice}"
        )
    if isinstance(output, (tuple, list)):
        found = [item for item in output if isinstance(item, Tensor) and item.dim() == 2]
        if len(found) == 1:
            return found[0]
        shapes = [tuple(i.shape) if isinstance(i, Tensor) else type(i).__name__ for i in output]
        raise InputError(
            f"the encoder returned {type(output).__name__} of {shapes}; expected one tensor (N, D) "
            f"in it: {advice}"
        )
    raise InputError(
        f"the encoder returned {type(output).__name__}; expected embeddings (N, D): {advice}"
    )
