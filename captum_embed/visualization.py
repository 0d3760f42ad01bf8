"""Heatmaps over images: what to do with a map so that a person can look at it.

For tensors in Captum's own style see also ``captum.attr.visualization``; these functions add
what embedding maps need: an upsampled, normalised heatmap, and a grid of images beside maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from captum_embed.errors import InputError

FloatArray = NDArray[np.floating[Any]]


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
    positive = F.relu(attribution.detach().float().reshape(1, 1, rows, columns).cpu())
    if sqrt:
        positive = positive.sqrt()
    upsampled = F.interpolate(positive, size=size, mode="bilinear", align_corners=False)[0, 0]
    largest = upsampled.max()
    return (upsampled / largest if largest > 0 else upsampled).numpy()


def overlay(
    image: FloatArray | NDArray[np.uint8],
    heat: FloatArray,
    *,
    alpha: float = 0.5,
    colormap: str = "jet",
) -> FloatArray:
    """Lays a heatmap in colours over an image.

    Args:
        image: (height, width, 3), floats in [0, 1] or 8-bit.
        heat: (height, width) in [0, 1], from :func:`heatmap`.
        alpha: Share of the colours, in [0, 1].
        colormap: Name of a matplotlib colormap.

    Returns:
        (height, width, 3), floats in [0, 1].

    Raises:
        InputError: The sizes differ.

    Example::

        >>> import numpy as np
        >>> overlay(np.zeros((4, 6, 3)), np.ones((4, 6))).shape
        (4, 6, 3)
    """
    from matplotlib import colormaps

    if image.shape != (*heat.shape, 3):
        raise InputError(
            f"image has shape {image.shape} and the heatmap {heat.shape}; expected "
            "(height, width, 3) and (height, width) of the same size"
        )
    scaled = image / 255.0 if image.dtype == np.uint8 else image
    colours = colormaps[colormap](np.asarray(heat, dtype=float))[..., :3]
    return np.clip((1 - alpha) * scaled + alpha * colours, 0, 1)


def grid(
    rows: Sequence[Sequence[FloatArray | NDArray[np.uint8]]],
    titles: Sequence[str] | None = None,
    *,
    cell: float = 2.2,
) -> Any:
    """Pictures in a grid, as a matplotlib figure.

    Args:
        rows: For each row its pictures, (height, width, 3) or (height, width); equally many.
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
        for c, picture in enumerate(row):
            axes[r, c].imshow(picture)
            axes[r, c].axis("off")
            if titles and r == 0:
                axes[r, c].set_title(titles[c], fontsize="small")
    return figure
