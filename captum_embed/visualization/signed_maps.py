"""Signed maps over pictures: red speaks for, blue against, and zero leaves the picture as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from captum_embed.errors import InputError
from captum_embed.visualization.heatmaps import upsampled
from captum_embed.visualization.pictures import FloatArray, Normalization, Picture, picture

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

Sign: TypeAlias = Literal["all", "positive", "negative"]
"""Which part of a map is drawn; the names are those of ``captum.attr.visualization``."""

# Diverging, of equal lightness at both ends, and told apart with any kind of colour vision
# (ColorBrewer).
DIVERGING = "RdBu_r"
ENDS = ("against", "for")
"""What the two ends of the colour bar mean: below zero, and above."""

_SIGNS = ("all", "positive", "negative")
_IN_A_ROW = 6
_CELL = 2.8
# In a page, a wider figure would be scaled down, and its words with it.
_WIDEST = 8.0
_TITLE, _COLORBAR = 0.8, 0.7
"""Heights in inches, as :data:`_CELL` is."""


def signed_overlay(
    image: Picture,
    attr: Tensor,
    *,
    sign: Sign = "all",
    scale: float | None = None,
    alpha_overlay: float = 0.85,
    cmap: str | Colormap = DIVERGING,
    normalization: Normalization | None = None,
) -> FloatArray:
    """The picture in grey under a signed map in colours.

    Zero is transparent, so that colours mean what they say; the stronger a value, the less is
    seen of the picture.

    Args:
        image: Any that :func:`picture` takes.
        attr: One map (1, 1, h, w), (1, h, w) or (h, w), as ``attribute`` gives for one image; it
            is interpolated bilinearly to the picture's size.
        sign: ``"all"``, or only the part above zero (``"positive"``) or below (``"negative"``).
        scale: Value of full colour; what is beyond is drawn as it. None: the largest absolute
            value of the part drawn.
        alpha_overlay: Share of the colour at ``scale``, in [0, 1].
        cmap: A diverging colormap, the middle for zero: name or object of matplotlib.
        normalization: Of a tensor, as in :func:`picture`.

    Returns:
        (height, width, 3), floats in [0, 1].

    Raises:
        InputError: There is not one map, or not one picture; an argument does not fit.

    Example::

        >>> import numpy as np, torch
        >>> signed = torch.tensor([[2.0, -2.0, 0.0]])
        >>> red, blue, grey = signed_overlay(np.full((1, 3), 0.5), signed)[0]
        >>> bool(red[0] > red[2]), bool(blue[2] > blue[0]), bool(grey[0] == grey[2])
        (True, True, True)
    """
    background = _grey(picture(image, normalization))
    values = _part(upsampled(attr, background.shape), sign)
    colours = _transparent(cmap, alpha_overlay)((values / _scale([values], scale) + 1) / 2)
    share = colours[..., 3:]
    blended: FloatArray = (1 - share) * background[..., None] + share * colours[..., :3]
    return blended


def visualize_maps(
    attr: Tensor | Sequence[Tensor],
    original_image: Picture | Sequence[Any],
    *,
    titles: Sequence[str] | None = None,
    sign: Sign = "all",
    scale: float | None = None,
    alpha_overlay: float = 0.85,
    cmap: str | Colormap = DIVERGING,
    show_colorbar: bool = True,
    ends: tuple[str, str] = ENDS,
    normalization: Normalization | None = None,
    plt_fig_axis: tuple[Figure, Any] | None = None,
    fig_size: tuple[float, float] | None = None,
    use_pyplot: bool = False,
) -> tuple[Figure, Any]:
    """Draws signed maps over their pictures, all on one scale with one colour bar.

    Red is above zero, blue below, and zero shows the picture in grey. Arguments that
    ``captum.attr.visualization.visualize_image_attr`` has too have its names.

    Args:
        attr: One map (1, 1, h, w); a batch of them (N, 1, h, w); or a tuple of k batches, as
            ``attribute`` gives for the images of a tuple.
        original_image: The pictures, in the same structure: one; a batch (N, C, H, W) or a
            sequence of N; a tuple of k of these. Each is any that :func:`picture` takes. One
            picture alone serves all maps.
        titles: Above each picture; of a tuple of batches, above each column.
        sign: As in :func:`signed_overlay`.
        scale: As in :func:`signed_overlay`. None: the largest absolute value of all maps.
        alpha_overlay: As in :func:`signed_overlay`.
        cmap: As in :func:`signed_overlay`.
        show_colorbar: Draw the colour bar below.
        ends: What values below zero mean, and above: words below the colour bar.
        normalization: Of tensors, as in :func:`picture`.
        plt_fig_axis: Figure, and one axis or a sequence of axes to draw on. None: a new figure.
        fig_size: Width and height of a new figure, in inches. None: by the number of pictures.
        use_pyplot: Make the new figure with pyplot and show it. False: pyplot is not touched.

    Returns:
        The figure, and its axes: one axis for one map; (N, k) for a tuple of batches; otherwise
        rows of at most six. Save it with ``figure.savefig(path)``.

    Raises:
        InputError: Maps and pictures are not equally many, or an argument does not fit.

    Example::

        >>> import torch
        >>> maps = torch.randn(2, 1, 7, 7), torch.randn(2, 1, 7, 7)
        >>> images = torch.rand(2, 3, 56, 56), torch.rand(2, 3, 56, 56)
        >>> figure, axes = visualize_maps(maps, images, titles=["anchor", "positive"])
        >>> axes.shape
        (2, 2)
    """
    cells, columns = _cells(attr, original_image)
    pictures = [picture(image, normalization) for _, image in cells]
    values = [
        _part(upsampled(one, (shown.shape[0], shown.shape[1])), sign)
        for (one, _), shown in zip(cells, pictures, strict=True)
    ]
    names = _titles(titles, len(cells), columns)
    end = _scale(values, scale)
    figure, axes = figure_and_axes(
        pictures, columns, plt_fig_axis, fig_size, use_pyplot, show_colorbar
    )
    colours = _transparent(cmap, alpha_overlay)
    drawn = None
    for axis, shown, value, name in zip(axes.flat, pictures, values, names, strict=False):
        axis.imshow(_grey(shown), cmap="gray", vmin=0, vmax=1)
        drawn = axis.imshow(value, cmap=colours, vmin=-end, vmax=end)
        if name:
            axis.set_title(name, fontsize="medium", parse_math=False)
    for axis in axes.flat:
        axis.set_axis_off()
    if show_colorbar:
        _colorbar(figure, axes, drawn, end, sign, ends)
    show(use_pyplot)
    return figure, axes if len(cells) > 1 else axes.flat[0]


def figure_and_axes(
    pictures: Sequence[FloatArray],
    columns: int,
    plt_fig_axis: tuple[Figure, Any] | None,
    fig_size: tuple[float, float] | None,
    use_pyplot: bool,
    show_colorbar: bool,
) -> tuple[Figure, NDArray[Any]]:
    """The figure and axes given, or new ones, (rows, columns), for these pictures.

    Raises:
        InputError: The axes given are not as many as the pictures.
    """
    count = len(pictures)
    rows = -(-count // columns)
    if plt_fig_axis is not None:
        figure, given = plt_fig_axis
        axes = np.array(given, dtype=object).reshape(-1)
        if len(axes) != count:
            raise InputError(
                f"plt_fig_axis holds {len(axes)} axes for {count} pictures; expected a figure and "
                "one axis for each"
            )
        return figure, axes.reshape(rows, columns) if count == rows * columns else axes[None]
    shapes = [each.shape[1] / each.shape[0] for each in pictures]
    # Pictures side by side are equally high; in several rows, equally wide.
    widths = shapes if rows == 1 else [1.0] * columns
    cell = min(_CELL, _WIDEST / sum(widths))
    height = cell if rows == 1 else min(cell / min(shapes), cell)
    size = fig_size or (
        cell * sum(widths),
        (height + _TITLE) * rows + _COLORBAR * show_colorbar,
    )
    new: Figure
    if use_pyplot:
        from matplotlib import pyplot

        new = pyplot.figure(figsize=size, layout="compressed")
    else:
        from matplotlib.figure import Figure

        new = Figure(figsize=size, layout="compressed")
    return new, new.subplots(rows, columns, squeeze=False, width_ratios=widths)


def show(use_pyplot: bool) -> None:
    """Shows the figures of pyplot, if it is used."""
    if use_pyplot:
        from matplotlib import pyplot

        pyplot.show()


def _cells(attr: Any, images: Any) -> tuple[list[tuple[Tensor, Picture]], int]:
    """Each map with its picture, row by row, and the number of columns."""
    columns = list(attr) if isinstance(attr, (tuple, list)) else [attr]
    if not columns or not all(isinstance(each, Tensor) and each.numel() for each in columns):
        kinds = [type(each).__name__ for each in columns]
        raise InputError(
            f"attr holds {kinds}; expected maps (N, 1, h, w), or a tuple of such batches"
        )
    batches = [list(each.split(1)) if each.dim() == 4 else [each] for each in columns]
    if len({len(batch) for batch in batches}) != 1:
        raise InputError(
            f"attr holds batches of {[len(batch) for batch in batches]} maps; expected as many of "
            "each input"
        )
    rows = len(batches[0])
    if _is_one(images):
        of_columns = [[images] * rows for _ in columns]
    elif len(columns) == 1:
        of_columns = [_batch(images)]
    else:
        of_columns = [[each] if _is_one(each) else _batch(each) for each in images]
    counts = [len(batch) for batch in of_columns]
    if counts != [rows] * len(columns):
        raise InputError(
            f"attr holds {[rows] * len(columns)} maps, and original_image {counts} pictures; "
            "expected one for each map, in the same structure, or one for all"
        )
    cells = [
        (batches[column][row], of_columns[column][row])
        for row in range(rows)
        for column in range(len(columns))
    ]
    side_by_side = rows == 1 or len(columns) == 1
    return cells, min(len(cells), _IN_A_ROW) if side_by_side else len(columns)


def _is_one(images: Any) -> bool:
    """Whether this is one picture, and not several."""
    if isinstance(images, Tensor):
        return images.dim() < 4 or len(images) == 1
    return not isinstance(images, (tuple, list)) and getattr(images, "ndim", 0) < 4


def _batch(images: Any) -> list[Picture]:
    return list(images.split(1)) if isinstance(images, Tensor) else list(images)


def _titles(titles: Sequence[str] | None, count: int, columns: int) -> Sequence[str | None]:
    if titles is None:
        return [None] * count
    if isinstance(titles, str) or len(titles) not in (count, columns):
        given = 1 if isinstance(titles, str) else len(titles)
        raise InputError(
            f"titles holds {given} for {count} pictures; expected a sequence of one for each "
            "picture, or for each column of a tuple"
        )
    return [*titles, *[None] * (count - len(titles))]


def _part(values: FloatArray, sign: Sign) -> FloatArray:
    if sign not in _SIGNS:
        raise InputError(
            f"sign is {sign!r}; expected one of {list(_SIGNS)} (for 'absolute_value', "
            "pass attr.abs())"
        )
    low, high = (0.0 if sign == side else None for side in ("positive", "negative"))
    return values if sign == "all" else np.clip(values, low, high)


def _scale(values: Sequence[FloatArray], scale: float | None) -> float:
    if scale is None:
        # A map that is zero everywhere has any scale.
        return max(float(np.abs(each).max()) for each in values) or 1.0
    if not (scale > 0 and np.isfinite(scale)):
        raise InputError(f"scale is {scale}; expected a number above zero, or None")
    return float(scale)


def _grey(colours: FloatArray) -> FloatArray:
    # Lightened, so that the dark ends of the colours stand out from shadows.
    grey: FloatArray = 0.25 + 0.75 * (colours @ np.array([0.299, 0.587, 0.114]))
    return grey


def _transparent(cmap: str | Colormap, alpha: float) -> Colormap:
    """The colormap, opaque at its ends and transparent in the middle."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    if not 0 <= alpha <= 1:
        raise InputError(f"alpha_overlay is {alpha}; expected a share in [0, 1]")
    if isinstance(cmap, str) and cmap not in colormaps:
        raise InputError(f"cmap is {cmap!r}; expected the name of a diverging matplotlib colormap")
    # Many small steps: larger ones show as contours at zero. Above 0.7, weak signs look alike to
    # some colour vision; below, zero shows as a line.
    steps = np.linspace(-1, 1, 2047)
    colours = (colormaps[cmap] if isinstance(cmap, str) else cmap)((steps + 1) / 2)
    colours[:, 3] = alpha * np.abs(steps) ** 0.7
    return ListedColormap(colours)


def _colorbar(
    figure: Figure,
    axes: NDArray[Any],
    drawn: Any,
    end: float,
    sign: Sign,
    ends: tuple[str, str],
) -> None:
    bar = figure.colorbar(drawn, ax=list(axes.flat), location="bottom", aspect=40, shrink=0.6)
    low, high = (0.0 if sign == "positive" else -end), (0.0 if sign == "negative" else end)
    bar.ax.set_xlim(low, high)
    ticks = sorted({low, 0.0, high})
    bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks])
    against = f"{ends[0]}  \N{LEFTWARDS ARROW}  " if low else ""
    speaks_for = f"  \N{RIGHTWARDS ARROW}  {ends[1]}" if high else ""
    bar.set_label(f"{against}0{speaks_for}", parse_math=False)
