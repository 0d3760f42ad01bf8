"""The attention probabilities of one forward pass, in its graph, without changing the network."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from captum._utils.common import _run_forward
from torch import Tensor
from torch.overrides import TorchFunctionMode

from captum_embed.errors import InputError, LayerError

_SOFTMAX = {F.softmax, torch.softmax, Tensor.softmax}
_MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)


class Attentions(TorchFunctionMode):
    """Records self-attention where it is computed: in torch's functions, in this thread alone.

    Fused attention (``scaled_dot_product_attention``, ``nn.MultiheadAttention``) never holds its
    probabilities. While this is active it is computed step by step, with the same result; where
    a network takes the softmax itself, that is recorded. So it serves torchvision, timm and
    transformers alike. Attention between different tokens (pooling by a query) is left as it is.

    Attributes:
        probabilities: Of each self-attention in the order in which they ran, (N, heads, T, T).

    Example::

        >>> import torch
        >>> from torch import nn
        >>> attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
        >>> tokens = torch.rand(3, 5, 8)
        >>> with Attentions() as recorded:
        ...     output, _ = attention(tokens, tokens, tokens, need_weights=False)
        >>> recorded.probabilities[0].shape
        torch.Size([3, 2, 5, 5])
        >>> torch.allclose(output, attention(tokens, tokens, tokens)[0], atol=1e-6)
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.probabilities: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attend(func, *args, **options)
        if func is F.multi_head_attention_forward:
            return self._multi_head(func, args, options)
        output = func(*args, **options)
        return self._recorded(output) if func in _SOFTMAX else output

    def _attend(
        self,
        func: Callable[..., Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        **options: Any,
    ) -> Tensor:
        if is_causal or any(options.values()) or query.dim() != 4 or query.shape != key.shape:
            return func(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **options)
        scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        probabilities = self._recorded(scores.softmax(-1))
        return (F.dropout(probabilities, dropout_p) if dropout_p else probabilities) @ value

    def _multi_head(self, func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        call = _MULTI_HEAD.bind(*args, **options)
        call.apply_defaults()
        given = call.arguments
        query = given["query"]
        if query is not given["key"] or query is not given["value"] or query.dim() != 3:
            return func(*args, **options)
        unusual = ("bias_k", "bias_v", "key_padding_mask", "attn_mask")
        if any(given[name] is not None for name in unusual) or any(
            given[name] for name in ("add_zero_attn", "use_separate_proj_weight")
        ):
            raise LayerError(
                "a multi-head attention of the network has masks, separate projections or further "
                "keys, so its probabilities cannot be had; choose another method"
            )
        joined = F.linear(query, given["in_proj_weight"], given["in_proj_bias"])
        q, k, v = joined.unflatten(-1, (3, given["num_heads"], -1)).permute(2, 1, 3, 0, 4)
        dropout = given["dropout_p"] if given["training"] else 0.0
        attended = self._attend(F.scaled_dot_product_attention, q, k, v, dropout_p=dropout)
        output = attended.permute(2, 0, 1, 3).flatten(2)
        output = F.linear(output, given["out_proj_weight"], given["out_proj_bias"])
        if not given["need_weights"]:
            return output, None
        probabilities = self.probabilities[-1]
        return output, probabilities.mean(1) if given["average_attn_weights"] else probabilities

    def _recorded(self, probabilities: Tensor) -> Tensor:
        if probabilities.dim() == 4 and probabilities.shape[-1] == probabilities.shape[-2] > 1:
            if torch.is_grad_enabled() and not probabilities.requires_grad:
                probabilities.requires_grad_()
            self.probabilities.append(probabilities)
        return probabilities


def scores_with_attentions(
    forward_func: Callable[..., Any], images: Tensor, arguments: tuple[Any, ...]
) -> tuple[Tensor, list[Tensor]]:
    """One score per image, (N,), and the probabilities (N, heads, T, T) of each self-attention.

    Raises:
        InputError: The forward function returns something else.
        LayerError: There is no self-attention over all tokens of an image.
    """
    with torch.enable_grad(), Attentions() as recorded:
        output = _run_forward(forward_func, images, None, arguments or None)
    if not isinstance(output, Tensor) or output.shape not in ((len(images),), (len(images), 1)):
        given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(
            f"the forward function returned {given} for {len(images)} images; expected one value "
            "per image, (N,), such as the similarity to references"
        )
    shapes = {tuple(each.shape) for each in recorded.probabilities}
    if not shapes:
        raise LayerError(
            "no self-attention ran in the forward pass; this method explains vision transformers "
            "(not compiled ones, nor ones in other threads), and other networks have other methods"
        )
    if len({shape[2] for shape in shapes}) > 1 or {shape[0] for shape in shapes} != {len(images)}:
        raise LayerError(
            f"the self-attentions have shapes {sorted(shapes)} for {len(images)} images; expected "
            "(N, heads, T, T) over the same tokens in each: attention within windows, as Swin has "
            "it, does not say where in the image it looks"
        )
    return output.flatten(), recorded.probabilities
