"""Mosaics of four images: how much of a heatmap lies in the cell that it was asked for."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.metrics.attention import attention_score
from benchmarks.metrics.boxes import Box
from benchmarks.metrics.pointing import pointing_game
from captum_embed.errors import InputError

# Two rows of two, in reading order.
CELLS = 4


def cell_box(cell: int, height: int, width: int) -> Box:
    """One cell of a mosaic as a box.

    Args:
        cell: 0 to 3, in reading order.
        height: of the mosaic, in pixels, even.
        width: of the mosaic, in pixels, even.

    Returns:
        x0, y0, x1, y1 in pixels, exclusive ends.

    Raises:
        InputError: no such cell, or a mosaic that has no equal halves.

    Example:
        >>> cell_box(1, 448, 448)
        (224.0, 0.0, 448.0, 224.0)
    """
    if cell not in range(CELLS):
        raise InputError(f"a mosaic has the cells 0 to {CELLS - 1}, got {cell}")
    if height < 2 or width < 2 or height % 2 or width % 2:
        raise InputError(
            f"a mosaic of two by two equal cells has even sides, got {width} x {height}"
        )
    row, column = divmod(cell, 2)
    y0, x0 = row * height / 2, column * width / 2
    return (x0, y0, x0 + width / 2, y0 + height / 2)


def mosaic_mass(heatmaps: ArrayLike) -> float:
    """Share of a heatmap in the cell that it was asked for, mean over the cells.

    Maps that ignore what they are asked for score 1/4.

    Args:
        heatmaps: (4, H, W), finite and not negative; the first is asked for the first cell.

    Returns:
        In [0, 1]; an empty heatmap counts 0.

    Raises:
        InputError: not four heatmaps; see ``check_heatmap``.

    Source:
        Rao, Boehle and Schiele, "Towards Better Understanding Attribution Methods", CVPR 2022,
        section 3.1 (GridPG), there of class scores.

    Example:
        >>> mosaic_mass(np.ones((4, 2, 2)))
        0.25
    """
    maps = _check_maps(heatmaps)
    return float(np.mean([attention_score(m, cell_box(i, *m.shape)) for i, m in enumerate(maps)]))


def mosaic_pointing(heatmaps: ArrayLike) -> float:
    """How often a heatmap's maximum lies in the cell that it was asked for.

    Where several pixels share the maximum, the share of them counts, so that maps that ignore
    what they are asked for score 1/4.

    Args:
        heatmaps: (4, H, W), finite and not negative; the first is asked for the first cell.

    Returns:
        In [0, 1]; an empty heatmap counts 0.

    Raises:
        InputError: not four heatmaps; see ``check_heatmap``.

    Example:
        >>> maps = np.zeros((4, 2, 2))
        >>> maps[:, 0, 0] = 1
        >>> mosaic_pointing(maps)
        0.25
    """
    maps = _check_maps(heatmaps)
    return float(np.mean([pointing_game(m, cell_box(i, *m.shape)) for i, m in enumerate(maps)]))


def told_apart(cells: ArrayLike, references: ArrayLike) -> NDArray[np.bool_]:
    """Whether the network itself finds every reference's cell, when it sees each cell alone.

    Only then has a map something true to show.

    Args:
        cells: (..., 4, D), unit embeddings of the cells' images.
        references: (..., 4, D), unit embeddings of another image of each cell's class.

    Returns:
        (...), True where each reference is more similar to its own cell than to any other.

    Raises:
        InputError: shapes that differ, or not of four cells.

    Example:
        >>> told_apart([np.eye(4), np.eye(4)], [np.eye(4), np.eye(4)[::-1]]).tolist()
        [True, False]
    """
    shown, asked = np.asarray(cells, np.float64), np.asarray(references, np.float64)
    if shown.shape != asked.shape or shown.ndim < 2 or shown.shape[-2] != CELLS:
        raise InputError(
            f"expected embeddings (..., {CELLS}, D) of cells and references, got {shown.shape} and "
            f"{asked.shape}"
        )
    # similarities[..., h, j]: of the reference of cell h to cell j.
    similarities = asked @ np.swapaxes(shown, -1, -2)
    own = np.diagonal(similarities, axis1=-2, axis2=-1)[..., None]
    itself = np.eye(CELLS, dtype=bool)
    return np.asarray(((own > similarities) | itself).all((-2, -1)))


def _check_maps(heatmaps: ArrayLike) -> NDArray[np.generic]:
    maps = np.asarray(heatmaps)
    if maps.ndim != 3 or len(maps) != CELLS:
        raise InputError(
            f"expected a heatmap for each of {CELLS} cells, ({CELLS}, H, W), got {maps.shape}"
        )
    return maps
