"""The part of a map above zero, as arrays: heatmaps, overlays in colours, grids of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_embed.errors import InputError
from captum_embed.visualization.pictures import FloatArray, Normalization, Picture, picture


def heatmap(attribution: Tensor, size: tuple[int, int], *, sqrt: bool = False) -> FloatArray:
    """One map as a heatmap of the image: ReLU, bilinear to the image's size, maximum 1.

    Args:
        attribution: Map (1, 1, h, w), (1, h, w) or (h, w), as ``attribute`` gives for one image.
        size: Height and width of the image, in pixels.
        sqrt: Take the square root, which spreads a peaked map over the object.

    Returns:
        Array (height, width) in [0, 1]; all zero where nothing in the map is positive.

    Raises:
        InputError: The attribution is no map, holds more than one, or values that are not finite.

    Example::

        >>> import torch
        >>> heatmap(torch.tensor([[0.0, 2.0], [-1.0, 4.0]]), (2, 2))
        array([[0. , 0.5],
               [0. , 1. ]], dtype=float32)
    """
    positive = F.relu(_one_map(attribution, size))
    if sqrt:
        positive = positive.sqrt()
    resized = _resized(positive, size)
    largest = resized.max()
    return (resized / largest if largest > 0 else resized).numpy()


def upsampled(attribution: Tensor, size: tuple[int, int]) -> FloatArray:
    """One signed map at the image's size, bilinear; its values stay what they are.

    Args:
        attribution: As in :func:`heatmap`.
        size: Height and width of the image, in pixels.

    Returns:
        Array (height, width).

    Raises:
        InputError: As :func:`heatmap`.

    Example::

        >>> import torch
        >>> upsampled(torch.tensor([[[[-1.0, 3.0]]]]), (1, 4))
        array([[-1.,  0.,  2.,  3.]], dtype=float32)
    """
    resized: FloatArray = _resized(_one_map(attribution, size), size).numpy()
    return resized


def _one_map(attribution: Tensor, size: tuple[int, int]) -> Tensor:
    """The map as (1, 1, h, w), in single precision on the CPU."""
    rows, columns = attribution.shape[-2:] if attribution.dim() >= 2 else (0, 0)
    # Grad-weights (1, C) and maps of tokens (1, 1, T) are no pictures.
    is_line = attribution.dim() < 4 and min(rows, columns) == 1 < max(rows, columns)
    is_line = is_line and min(size) > 1
    if attribution.numel() == 0 or attribution.numel() != rows * columns or is_line:
        raise InputError(
            f"attribution has shape {tuple(attribution.shape)}; expected one map, (h, w) or "
            "(1, 1, h, w): pass one image's map, summed over channels (of a layer with tokens, "
            "computed with layout='tokens')"
        )
    if not bool(torch.isfinite(attribution).all()):
        raise InputError("attribution holds NaN or infinite values")
    return attribution.detach().float().reshape(1, 1, rows, columns).cpu()


def _resized(one_map: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(one_map, size=size, mode="bilinear", align_corners=False)[0, 0]


def overlay(
    image: Picture,
    heat: FloatArray,
    *,
    alpha: float = 0.5,
    colormap: str = "jet",
    normalization: Normalization | None = None,
) -> FloatArray:
    """Lays a heatmap in colours over an image.

    Args:
        image: Any that :func:`picture` takes.
        heat: (height, width) in [0, 1], from :func:`heatmap`.
        alpha: Share of the colours, in [0, 1].
        colormap: Name of a matplotlib colormap.
        normalization: Of a tensor, as in :func:`picture`.

    Returns:
        (height, width, 3), floats in [0, 1].

    Raises:
        InputError: The sizes differ; or :func:`picture` refuses the image.

    Example::

        >>> import numpy as np
        >>> overlay(np.zeros((4, 6, 3)), np.ones((4, 6))).shape
        (4, 6, 3)
    """
    from matplotlib import colormaps

    colours = picture(image, normalization)
    if colours.shape[:2] != heat.shape:
        raise InputError(
            f"image has shape {colours.shape} and the heatmap {heat.shape}; expected "
            "(height, width, 3) and (height, width) of the same size"
        )
    heat_colours = colormaps[colormap](np.asarray(heat, dtype=float))[..., :3]
    return np.clip((1 - alpha) * colours + alpha * heat_colours, 0, 1)


def grid(
    rows: Sequence[Sequence[Picture]],
    titles: Sequence[str] | None = None,
    *,
    cell: float = 2.2,
) -> Any:
    """Pictures in a grid, as a matplotlib figure.

    Args:
        rows: For each row its pictures, equally many: any that :func:`picture` takes, or heatmaps
            (height, width), which are drawn in colours.
        titles: One title above each column.
        cell: Side of a picture, in inches.

    Returns:
        ``matplotlib.figure.Figure``, not shown and not registered with pyplot; save it with
        ``figure.savefig(path)``.

    Raises:
        InputError: There are no pictures, or rows or titles of different lengths.

    Example::

        >>> import numpy as np
        >>> figure = grid([[np.zeros((4, 6, 3)), np.ones((4, 6))]], titles=["image", "map"])
        >>> len(figure.axes)
        2
    """
    from matplotlib.figure import Figure

    lengths = {len(row) for row in rows} | ({len(titles)} if titles else set())
    if len(lengths) != 1 or 0 in lengths:
        raise InputError(
            f"the grid has rows (and titles) of lengths {sorted(lengths)}; expected one length, "
            "above zero"
        )
    columns = lengths.pop()
    figure = Figure(figsize=(cell * columns, cell * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for r, row in enumerate(rows):
        for c, shown in enumerate(row):
            heat = isinstance(shown, np.ndarray) and shown.ndim == 2
            axes[r, c].imshow(shown if heat else picture(shown))
            axes[r, c].axis("off")
            if titles and r == 0:
                axes[r, c].set_title(titles[c], fontsize="small")
    return figure
