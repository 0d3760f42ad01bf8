"""The bank entries whose weights a query borrowed, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from torch import Tensor

from captum_embed.errors import InputError
from captum_embed.visualization.pictures import Normalization, Picture, picture
from captum_embed.visualization.signed_maps import figure_and_axes, show, signed_overlay
from captum_embed.weight_bank.queries import Neighbors

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def visualize_neighbors(
    neighbors: Neighbors,
    images: Mapping[str, Picture] | Sequence[Picture] | Callable[[int], Picture],
    query: Picture | None = None,
    attr: Tensor | None = None,
    *,
    shown: int = 5,
    title: str = "query",
    normalization: Normalization | None = None,
    plt_fig_axis: tuple[Figure, Any] | None = None,
    fig_size: tuple[float, float] | None = None,
    use_pyplot: bool = False,
) -> tuple[Figure, NDArray[Any]]:
    r"""Draws the pictures of a query's nearest bank entries, with key, label and distance.

    Args:
        neighbors: Of one query, from ``EmbeddingLayerGradCam.neighbors``.
        images: The pictures of the bank's entries: by key, in the bank's order, or a function
            from an entry's index. Each is any that :func:`picture` takes.
        query: Picture of the query, drawn first.
        attr: Its map (1, 1, h, w), drawn over it as by :func:`signed_overlay`.
        shown: How many neighbours, the nearest first.
        title: Above the query.
        normalization: Of tensors, as in :func:`picture`.
        plt_fig_axis: As in :func:`visualize_maps`.
        fig_size: As in :func:`visualize_maps`.
        use_pyplot: As in :func:`visualize_maps`.

    Returns:
        The figure, and its axes (1, number of pictures).

    Raises:
        InputError: The neighbours are not those of one query; a picture is missing.

    Example::

        >>> import torch
        >>> from captum_embed.weight_bank.queries import Neighbors
        >>> distances, indices = torch.tensor([[0.1, 0.4]]), torch.tensor([[2, 0]])
        >>> neighbors = Neighbors([["c", "a"]], torch.tensor([[1, 0]]), distances, indices)
        >>> figure, axes = visualize_neighbors(neighbors, torch.rand(3, 3, 8, 8))
        >>> [axis.get_title() for axis in axes[0]]
        ['c\nlabel 1\nat 0.1', 'a\nlabel 0\nat 0.4']
    """
    if len(neighbors.distances) != 1:
        raise InputError(
            f"neighbors are those of {len(neighbors.distances)} queries; expected one: pass "
            "neighbors of queries[i : i + 1]"
        )
    if query is None and attr is not None:
        raise InputError("attr is given without the picture it belongs to; pass query=... too")
    if shown < 1:
        raise InputError(f"shown is {shown}; expected 1, 2, ...")
    places = range(min(shown, neighbors.distances.shape[1]))
    cells = [
        (picture(_image_of(neighbors, place, images), normalization), caption(neighbors, place))
        for place in places
    ]
    if query is not None:
        first = (
            picture(query, normalization)
            if attr is None
            else signed_overlay(query, attr, normalization=normalization)
        )
        cells = [(first, title), *cells]
    pictures = [pixels for pixels, _ in cells]
    figure, axes = figure_and_axes(
        pictures, len(cells), plt_fig_axis, fig_size, use_pyplot, show_colorbar=False
    )
    for axis, (pixels, name) in zip(axes.flat, cells, strict=True):
        axis.imshow(pixels)
        axis.set_axis_off()
        axis.set_title(name, fontsize="medium", parse_math=False)
    show(use_pyplot)
    return figure, axes


def caption(neighbors: Neighbors, place: int) -> str:
    """Key or index, label and distance of one neighbour of the first query.

    Args:
        neighbors: From ``EmbeddingLayerGradCam.neighbors``.
        place: 0 for the nearest.
    """
    index = int(neighbors.indices[0, place])
    lines = [f"entry {index}" if neighbors.keys is None else neighbors.keys[0][place]]
    if neighbors.labels is not None:
        lines.append(f"label {int(neighbors.labels[0, place])}")
    return "\n".join([*lines, f"at {float(neighbors.distances[0, place]):.3g}"])


def _image_of(neighbors: Neighbors, place: int, images: Any) -> Picture:
    index = int(neighbors.indices[0, place])
    try:
        if callable(images):
            return images(index)
        if isinstance(images, Mapping):
            if neighbors.keys is None:
                raise InputError(
                    "images are given by key, and the bank has no keys; pass them in the bank's "
                    "order, or a function from an entry's index"
                )
            return images[neighbors.keys[0][place]]
        return images[index]
    except (KeyError, IndexError) as error:
        name = caption(neighbors, place).splitlines()[0]
        raise InputError(
            f"images hold no picture of the neighbour '{name}' (index {index} in the bank); pass "
            "one for each entry of the bank"
        ) from error
