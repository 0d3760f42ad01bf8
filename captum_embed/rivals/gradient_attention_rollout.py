"""Chefer et al.: attention times its gradient, rolled out over the blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from captum.attr import Attribution
from captum.log import log_usage
from torch import Tensor

from captum_embed.layouts import LayerLayout
from captum_embed.rivals.activations import require_gradient
from captum_embed.rivals.attentions import scores_with_attentions
from captum_embed.rivals.changed_images import checked_call


class GradientAttentionRollout(Attribution):
    r"""What each patch adds to a score through the attention of all blocks of a transformer.

    With the attention probabilities :math:`A^l` of block :math:`l` and the score :math:`s`,

    .. math::
        \bar A^l = \mathrm{mean}_{heads} \Big( \frac{\partial s}{\partial A^l} \odot A^l
        \Big)^+, \qquad R \leftarrow R + \bar A^l R, \quad R = I \text{ at first}

    The map is the row of :math:`R` of the token that the embedding is read from. Where it is read
    from several tokens, as with average pooling, it is the mean of their rows. They are told by
    the gradient in the last block.

    *Networks.* Vision transformers whose attention runs over all tokens: of torchvision, timm and
    transformers, with fused attention or without. The network itself is not changed.

    *Cost.* One pass forward and back. The probabilities of all blocks are held at once.

    Args:
        forward_func: Returns one score per image, (N,), such as its similarity to references. It
            keeps the examples of a batch apart.
        prefix_tokens: Tokens in front (class token, registers) without a place in the image.
            None: inferred from the number of tokens and the image's size, or refused.
        grid: Rows and columns of the other tokens. None: likewise.

    Raises:
        InputError: Prefix tokens or grid are not valid.

    Source: Chefer, Gur, Wolf, Generic Attention-Model Explainability for Interpreting Bi-Modal and
        Encoder-Decoder Transformers, ICCV 2021 (arXiv 2103.15679), equations 5 and 6 for
        self-attention. The mean over several tokens is ours: theirs have a class token.

    Example::

        >>> import torch
        >>> from torchvision.models import VisionTransformer
        >>> from captum_embed import SimilarityForward
        >>> from captum_embed.rivals import GradientAttentionRollout
        >>> encoder = VisionTransformer(32, 8, 2, 2, 16, 32).eval()
        >>> encoder.heads = torch.nn.Identity()
        >>> forward = SimilarityForward(encoder, torch.rand(1, 3, 32, 32))
        >>> GradientAttentionRollout(forward).attribute(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 1, 4, 4])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        prefix_tokens: int | None = None,
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(forward_func)
        self.layout = LayerLayout("tokens", prefix_tokens, grid)

    @log_usage()
    def attribute(self, inputs: Tensor, additional_forward_args: Any = None) -> Tensor:
        """Maps of the inputs.

        Args:
            inputs: Images (N, C, H, W).
            additional_forward_args: Further arguments of the forward function.

        Returns:
            Map (N, 1, rows, columns), not negative, detached.

        Raises:
            InputError: An argument does not fit, or the score is not one value per image.
            LayerError: There is no self-attention over all tokens of an image, the score does not
                depend on it, or the tokens fit no grid.

        Example::

            >>> import torch
            >>> from torchvision.models import VisionTransformer
            >>> from captum_embed import PairForward
            >>> from captum_embed.rivals import GradientAttentionRollout
            >>> encoder = VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=3).eval()
            >>> _ = torch.nn.init.normal_(encoder.heads.head.weight)
            >>> rollout = GradientAttentionRollout(PairForward(encoder, "similarity"))
            >>> rollout.attribute(torch.rand(2, 3, 32, 32), torch.rand(2, 3)).shape
            torch.Size([2, 1, 4, 4])
        """
        images, arguments = checked_call(inputs, additional_forward_args)
        scores, probabilities = scores_with_attentions(self.forward_func, images, arguments)
        require_gradient(scores)
        gradients = torch.autograd.grad(scores.sum(), probabilities, materialize_grads=True)
        with torch.no_grad():
            tokens = probabilities[0].shape[-1]
            relevance = torch.eye(tokens).to(scores).expand(len(images), -1, -1)
            for gradient, each in zip(gradients, probabilities, strict=True):
                relevance = relevance + (gradient * each).relu().mean(1) @ relevance
            is_read = gradients[-1].abs().sum((1, 3)) > 0
            weights = is_read / is_read.sum(1, keepdim=True).clamp(min=1)
            of_tokens = torch.einsum("nt,ntu->nu", weights.to(relevance), relevance)
            return self.layout.channels_first(of_tokens[..., None], images)
