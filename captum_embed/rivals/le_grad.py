"""LeGrad: how sensitive the score of each block is to its attention."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from captum.attr import Attribution
from captum.log import log_usage
from torch import Tensor, nn

from captum_embed.errors import InputError, LayerError
from captum_embed.families import transformer_blocks
from captum_embed.layouts import LayerLayout
from captum_embed.rivals.activations import require_gradient
from captum_embed.rivals.attentions import scores_with_attentions
from captum_embed.rivals.changed_images import checked_call, of_example
from captum_embed.rivals.layer_replacement import run_with_replacement
from captum_embed.rivals.references import encoder_of


class LeGrad(Attribution):
    r"""Positive gradients of the attention of each block, by the score that the block would give.

    What block :math:`l` puts out goes straight into what is behind the last block, which gives a
    score :math:`s^l`. With its attention probabilities :math:`A^l` over :math:`T` tokens,

    .. math::
        E^l_j = \mathrm{mean}_{heads,\, i} \Big( \frac{\partial s^l}{\partial A^l_{ij}} \Big)^+,
        \qquad \mathrm{map}_j = \frac{1}{L} \sum_l E^l_j

    *Networks.* As :class:`GradientAttentionRollout`.

    *Cost.* Two passes forward for each image, and one back through each block.

    Args:
        forward_func: Returns one score per image, (N,), such as its similarity to references. It
            keeps the examples of a batch apart.
        blocks: The transformer's blocks, in their order, each with one self-attention; the last
            is the last of the network. Default: those of ``forward_func.encoder``, where its
            family is known. Pass the last few for a deep network: the authors' code takes two.
        average_tokens: The score of a block is that of the mean of its tokens, as in the authors'
            code for CLIP. False: the network reads the tokens as it always does.
        prefix_tokens: Tokens in front (class token, registers) without a place in the image.
            None: inferred from the number of tokens and the image's size, or refused.
        grid: Rows and columns of the other tokens. None: likewise.

    Raises:
        InputError: Prefix tokens or grid are not valid, or ``blocks`` are no modules.
        LayerError: No blocks are given, and the network is of no family that is known here.

    Source: Bousselham, Boggust, Chaybouti, Strobelt, Kuehne, LeGrad: An Explainability Method for
        Vision Transformers via Feature Formation Sensitivity, ICCV 2025 (arXiv 2404.03214),
        section 3, which also scales each map to [0, 1] for display.

    Example::

        >>> import torch
        >>> from torchvision.models import VisionTransformer
        >>> from captum_embed import SimilarityForward
        >>> from captum_embed.rivals import LeGrad
        >>> encoder = VisionTransformer(32, 8, 2, 2, 16, 32).eval()
        >>> encoder.heads = torch.nn.Identity()
        >>> le_grad = LeGrad(SimilarityForward(encoder, torch.rand(1, 3, 32, 32)))
        >>> le_grad.attribute(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 1, 4, 4])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        blocks: Sequence[nn.Module] | None = None,
        *,
        average_tokens: bool = True,
        prefix_tokens: int | None = None,
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(forward_func)
        self.blocks = list(
            transformer_blocks(encoder_of(forward_func)) if blocks is None else blocks
        )
        if not self.blocks or not all(isinstance(block, nn.Module) for block in self.blocks):
            raise InputError("blocks hold no modules; expected the transformer's blocks in order")
        self.average_tokens = average_tokens
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
            LayerError: A block has not one self-attention over all tokens of an image, the score
                does not depend on it, or the tokens fit no grid.

        Example::

            >>> import torch
            >>> from torchvision.models import VisionTransformer
            >>> from captum_embed import PairForward
            >>> from captum_embed.rivals import LeGrad
            >>> encoder = VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=3).eval()
            >>> _ = torch.nn.init.normal_(encoder.heads.head.weight)
            >>> last = list(encoder.encoder.layers)[-1:]
            >>> le_grad = LeGrad(PairForward(encoder, "similarity"), last)
            >>> le_grad.attribute(torch.rand(2, 3, 32, 32), torch.rand(2, 3)).shape
            torch.Size([2, 1, 4, 4])
        """
        images, arguments = checked_call(inputs, additional_forward_args)
        maps = [
            self._of_one(image, of_example(arguments, n, len(images)))
            for n, image in enumerate(images.split(1))
        ]
        return torch.cat(maps)

    def _of_one(self, image: Tensor, arguments: tuple[Any, ...]) -> Tensor:
        with _outputs(self.blocks) as put_out:
            _, attentions = scores_with_attentions(self.forward_func, image, arguments)
        probabilities = attentions[-len(self.blocks) :]
        if len(put_out) != len(self.blocks) or len(attentions) < len(self.blocks):
            raise LayerError(
                f"{len(self.blocks)} blocks ran {len(put_out)} times with {len(attentions)} "
                "self-attentions in the network; expected each block once, with one in it"
            )
        tokens = torch.cat(put_out)
        if self.average_tokens:
            tokens = tokens.mean(1, keepdim=True).expand_as(tokens)
        with torch.enable_grad():
            scores = run_with_replacement(
                self.forward_func, self.blocks[-1], image, tokens, arguments
            ).flatten()
        require_gradient(scores)
        total = torch.zeros_like(probabilities[0][:, 0, 0])
        for score, each in zip(scores, probabilities, strict=True):
            (gradient,) = torch.autograd.grad(
                score, each, retain_graph=True, materialize_grads=True
            )
            total += gradient.relu().mean((1, 2))
        return self.layout.channels_first(total[..., None] / len(self.blocks), image)


@contextmanager
def _outputs(blocks: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """What blocks put out in this thread while this is active, (1, T, C) each."""
    this_thread, put_out = threading.get_ident(), []

    def keep(block: nn.Module, _: Any, output: Any) -> None:
        if threading.get_ident() == this_thread:
            if not isinstance(output, Tensor) or output.dim() != 3:
                raise LayerError(
                    f"a block ({type(block).__name__}) gives {type(output).__name__}; expected "
                    "tokens (N, T, C)"
                )
            put_out.append(output)

    with ExitStack() as hooks:
        for block in blocks:
            hooks.callback(block.register_forward_hook(keep).remove)
        yield put_out
