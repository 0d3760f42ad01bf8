"""The metric loss on a canonical network, in the modules that DeepLift and LRP have rules for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.methods.method import MethodUnavailableError, Query
from captum_embed import TripletForward


def active_references(forward: TripletForward, query: Query) -> tuple[Tensor, ...]:
    """The references of the tuples with a loss: only these are in the mean that is explained."""
    with torch.no_grad():
        anchor = forward.encoder(query.image)[:, None]
        active = forward.tuple_loss(anchor, *query.references)[0] > 0
    return tuple(reference[:, active] for reference in query.references)


class HingedTriplets(nn.Module):
    """`TripletForward` with its hinge in an `nn.ReLU`, for tuples that all have a loss.

    At the image explained its value is that of `TripletForward`. At a baseline, where other
    tuples may have a loss, it keeps dividing by their number at the image.

    Args:
        encoder (nn.Module): images (N, 3, H, W) to embeddings (N, D).
        forward (TripletForward): gives the distance and the margin.
    """

    def __init__(self, encoder: nn.Module, forward: TripletForward) -> None:
        super().__init__()
        self.encoder = encoder
        self.hinge = nn.ReLU()
        self.measure = forward.measure
        self.margin = forward.margin

    def forward(self, images: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """Losses (N,) of images (N, 3, H, W) and references (N, M, D)."""
        anchor = self.encoder(images)[:, None]
        near, far = self.measure(anchor, positives), self.measure(anchor, negatives)
        losses: Tensor = self.hinge(near - far + self.margin).mean(1)
        return losses


def linear_loss(forward: TripletForward, positives: Tensor, negatives: Tensor) -> nn.Linear:
    """The mean loss of tuples that all have one, as what it is: linear in the embedding.

    The square of the anchor stands in both distances and cancels:
    |a - p|^2 - |a - n|^2 = 2 a (n - p) + |p|^2 - |n|^2.

    Args:
        forward (TripletForward): of squared Euclidean distances.
        positives (Tensor): (1, M, D).
        negatives (Tensor): (1, M, D).

    Returns:
        nn.Linear: embeddings (N, D) to losses (N, 1).

    Raises:
        MethodUnavailableError: another distance.
    """
    if forward.distance != "squared_euclidean":
        raise MethodUnavailableError(
            f"the loss of {forward.distance} distances is not linear in the embedding, and has "
            "no rule"
        )
    linear: nn.Linear = nn.utils.skip_init(nn.Linear, positives.shape[2], 1)
    squares = (positives.square() - negatives.square()).sum(2)
    linear.weight = nn.Parameter(2 * (negatives - positives).mean(1), requires_grad=False)
    linear.bias = nn.Parameter(squares.mean(1) + forward.margin, requires_grad=False)
    return linear
