"""What a question returns: signed maps with the scores they explain, or with bank entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from torch import Tensor

from captum_embed.errors import InputError
from captum_embed.visualization import Normalization, Sign, visualize_maps, visualize_neighbors
from captum_embed.visualization.signed_maps import ENDS
from captum_embed.weight_bank.queries import Neighbors

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Answer:
    """Signed maps of some pictures, and the scores that they explain.

    Args:
        question: In words.
        names: Of the pictures, k.
        images: What the network saw, k tensors (1, C, H, W).
        maps: k signed maps (1, 1, h, w): above zero, the place raises the score.
        scores: What each map explains, k numbers.
        sign: Which part of the maps answers the question.
        ends: What a map below zero means, and above: words for the colour bar.
        normalization: Of the images, to draw them.
    """

    question: str
    names: tuple[str, ...]
    images: tuple[Tensor, ...]
    maps: tuple[Tensor, ...]
    scores: tuple[float, ...]
    sign: Sign = "all"
    ends: tuple[str, str] = ENDS
    normalization: Normalization | None = None

    @property
    def score(self) -> float:
        """Mean of the scores; of one score that all maps explain, that one."""
        return sum(self.scores) / len(self.scores)

    def draw(self, **settings: Any) -> tuple[Figure, Any]:
        """Draws the maps over the pictures, on one scale.

        Args:
            settings: Keyword arguments of :func:`visualization.visualize_maps`.

        Returns:
            The figure, and its axes; save it with ``figure.savefig(path)``.

        Raises:
            InputError: How the images were normalised is not known: pass ``normalization``.
        """
        shown = [f"{score:.2f}" for score in self.scores]
        names = list(self.names)
        if len(set(shown)) > 1:
            names = [f"{name} ({score})" for name, score in zip(names, shown, strict=True)]
        defaults = {
            "titles": names,
            "sign": self.sign,
            "ends": self.ends,
            "normalization": self.normalization,
        }
        figure, axes = visualize_maps(self.maps, self.images, **{**defaults, **settings})
        if settings.get("plt_fig_axis") is None:
            scores = "scores in brackets" if len(set(shown)) > 1 else f"score {shown[0]}"
            figure.suptitle(f"{self.question} ({scores})", fontsize="medium", wrap=True)
        return figure, axes


@dataclass(frozen=True, eq=False)
class Borrowed:
    """The map of a query from borrowed weights, and the bank entries they come from.

    Args:
        image: What the network saw, a tensor (1, C, H, W).
        map: Signed map (1, 1, h, w): above zero, the place speaks for the neighbours' class.
        neighbors: Keys, labels, distances and indices of the neighbours, each (1, k).
        pictures: Of the bank's entries, or None.
        normalization: Of the image, to draw it.
    """

    image: Tensor
    map: Tensor
    neighbors: Neighbors
    pictures: Any = None
    normalization: Normalization | None = None

    def draw(self, **settings: Any) -> tuple[Figure, NDArray[Any]]:
        """Draws the query with its map, and the pictures of the nearest neighbours.

        Args:
            settings: Keyword arguments of :func:`visualization.visualize_neighbors`.

        Returns:
            The figure, and its axes.

        Raises:
            InputError: The pictures of the bank's entries were not given.
        """
        if self.pictures is None:
            raise InputError(
                "the pictures of the bank's entries are not known; give them to whose_weights as "
                "pictures=..., by key or in the bank's order"
            )
        defaults = {"normalization": self.normalization}
        return visualize_neighbors(
            self.neighbors, self.pictures, self.image, self.map, **{**defaults, **settings}
        )
