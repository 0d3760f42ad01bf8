"""The scalar that every method explains: the match with references, less that with foils."""

from __future__ import annotations

from torch import Tensor, nn


class Match(nn.Module):
    r"""The one scalar of a run, of references and foils.

    .. math:: s(x) = e(x) \cdot (\mathrm{mean}_r\, r - \mathrm{mean}_f\, f)

    Of unit embeddings it is the mean cosine to the references less that to the foils. With the
    images of a class as references and all others as foils it is, up to a factor and a constant,
    the negative of the mean triplet loss over all tuples, without the hinge. It is linear in the
    embedding, so that methods with rules for linear layers have one for it.

    Args:
        encoder (nn.Module): images (N, 3, H, W) to embeddings (N, D), taken as they are.
    """

    explains = "match"

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor, references: Tensor, foils: Tensor) -> Tensor:
        """Values (N,) of images (N, 3, H, W), references (1 or N, R, D), foils (1 or N, F, D)."""
        values: Tensor = (self.encoder(images) * direction(references, foils)).sum(1)
        return values


class MatchAtLayer(Match):
    """The match, for methods that change a layer and nothing in front of it.

    They repeat the image for every change; what is in front of the layer then runs on one.
    """

    def forward(self, images: Tensor, references: Tensor, foils: Tensor) -> Tensor:
        """Values (N,) of one image (N, 3, H, W), repeated, whose layer is replaced by N others."""
        return super().forward(images[:1], references, foils)


def direction(references: Tensor, foils: Tensor) -> Tensor:
    """What an embedding is multiplied with, (N, D); where there are none, (N, 0, D), zero.

    Example:
        >>> import torch
        >>> direction(torch.tensor([[[3.0, 0.0], [1.0, 0.0]]]), torch.zeros(1, 0, 2))
        tensor([[2., 0.]])
    """
    towards, away = (r.sum(1) / max(1, r.shape[1]) for r in (references, foils))
    return towards - away


def as_linear(references: Tensor, foils: Tensor) -> nn.Linear:
    """The match as a layer: embeddings (N, D) to values (N, 1)."""
    linear: nn.Linear = nn.utils.skip_init(nn.Linear, references.shape[2], 1, bias=False)
    linear.weight = nn.Parameter(direction(references, foils), requires_grad=False)
    return linear
