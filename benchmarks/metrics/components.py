"""Connected components of a heatmap at every threshold at once, in one pass over its pixels.

Each pixel gets a *level*: the number of thresholds that it reaches. At threshold t (counted from
1) the foreground is the set of pixels of level t and above. So, from the highest threshold down,
components only appear, grow and merge, and a union-find that keeps the extent of each component
knows the answer at every threshold after one descent. It is fast because it unites basins, of
which a smooth heatmap has dozens, and not pixels.

1. ``_hills`` cuts each row into hills: the heatmap rises to a hill's summit, then falls.
2. ``_basins`` leads each hill to the highest of the pixels that touch its summit from the rows
   above and below, if that is higher than the summit. Hills that lead to the same last one form
   a basin. (As high is enough in the row above: what comes earlier breaks ties.)
3. ``_links`` finds hills of different basins that touch, and the highest level at which they do.
4. ``_basin_cells`` puts pixels of one basin and level into one cell, which is all that the descent
   needs to know of them. Where that makes more cells than pixels (noise), ``_pixel_cells`` makes
   a cell of each pixel.
5. ``_descend`` takes cells and links from the highest level down.

Why a basin can stand for its pixels: on the way from a pixel to the summit of its hill, on to the
next hill and so on to the last summit, the heatmap nowhere falls, so the level does not either.
Hence, at each threshold, the pixels of one basin in the foreground are connected, and contain the
last summit. Basins are connected where two of their pixels touch, which is at the lower of the two
levels; of the places where two hills touch, the one of highest level is the first to connect them
and makes the others redundant.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captum_embed.errors import MissingExtraError

try:
    from numba import njit
except ImportError as error:
    raise MissingExtraError(
        "the threshold sweep is compiled with numba, which is not installed: "
        "pip install -e '.[benchmarks]' in a checkout"
    ) from error

# Columns of the tables of cells and components: number of pixels; first and last in raster order,
# which lie in the top and bottom row; first and last column; a cell's basin.
AREA, FIRST, LAST, LEFT, RIGHT, BASIN = range(6)
# Indices are unsigned: numba then skips Python's rule for negative ones, which costs a fifth.
NOBODY = np.uint32(2**32 - 1)
ONE = np.uint32(1)
# A power of two: scaling a float64 by it is exact, and so is the look-up of a pixel's level.
BUCKETS = 1024
# Levels are stored in 16 bits.
MAX_THRESHOLDS = 65_535
# Where basins have more cells than this, each pixel becomes a cell.
MAX_CELLS_PER_PIXEL = 1.0


def _compile(function: Callable[..., Any]) -> Any:
    # Where division by zero would raise, as in Python, the descent takes half as long again.
    try:
        return njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:
        # Neither __pycache__ nor the user's cache folder can be written: compile in each process.
        return njit(nogil=True, error_model="numpy")(function)


def sweep_components(
    scaled: NDArray[np.float64], thresholds: NDArray[np.float64], box: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Box of the largest component, and best IoU of all components, at every threshold.

    Arguments are taken as they are: ``localization.threshold_sweep`` checks them.

    Args:
        scaled: (H, W) in [0, 1], with at least one pixel at 1; C-contiguous.
        thresholds: (T,), increasing, in [0, 1]; foreground is scaled >= threshold.
        box: (4,), x0, y0, x1, y1 of the object.

    Returns:
        (T, 4) tight box of the largest 8-connected component (of several as large, the one whose
        first pixel in raster order comes first), and (T,) highest IoU of any component's tight
        box with ``box``.
    """
    width, values, num_levels = scaled.shape[1], scaled.ravel(), thresholds.size
    levels = _levels(values, thresholds)
    starts, summits, row_hills, hill_of = _hills(values, width)
    basins, peaks = _basins(values, width, levels, summits, hill_of)
    links, strengths = _links(levels, width, starts, row_hills, basins)
    if peaks.sum(dtype=np.int64) + peaks.size <= MAX_CELLS_PER_PIXEL * values.size:
        hills = starts, summits, row_hills
        cells, cell_starts = _basin_cells(levels, width, hills, basins, peaks, num_levels)
    else:
        cells, cell_starts = _pixel_cells(levels, width, hill_of, basins, num_levels)
    boxes, best_iou = _descend(cells, cell_starts, peaks, links, strengths, width, box)
    return boxes, best_iou


@_compile
def _levels(values, thresholds):  # type: ignore[no-untyped-def]
    # A pixel is of the level at which its bucket begins, or of one a few steps above.
    table = np.searchsorted(thresholds, np.arange(BUCKETS + 1) / BUCKETS, side="right")
    levels = np.empty(values.size, np.uint16)
    for pixel in range(values.size):
        level = table[np.uint32(np.int32(values[pixel] * BUCKETS))]
        while level < thresholds.size and thresholds[level] <= values[pixel]:
            level += 1
        levels[pixel] = level
    return levels


@_compile
def _hills(values, width):  # type: ignore[no-untyped-def]
    # Hill h is pixels starts[h] to starts[h + 1] in raster order, row r hills row_hills[r] to
    # row_hills[r + 1]. All but the last of a row have two pixels at least.
    height = values.size // width
    starts = np.empty(height * ((width + 1) // 2) + 1, np.uint32)
    summits = np.empty(starts.size, np.uint32)
    row_hills = np.empty(height + 1, np.uint32)
    hill_of = np.empty(values.size, np.uint32)
    made = np.uint32(0)
    for row in range(height):
        row_hills[row] = made
        pixel, end = np.uint32(row * width), np.uint32(row * width + width)
        while pixel < end:
            starts[made], value = pixel, values[pixel]
            while pixel < end and values[pixel] >= value:
                value = values[pixel]
                pixel += ONE
            summits[made] = pixel - ONE
            while pixel < end and values[pixel] <= value:
                value = values[pixel]
                pixel += ONE
            hill_of[starts[made] : pixel] = made
            made += ONE
    starts[made] = values.size
    row_hills[height] = made
    return starts[: made + 1], summits[:made], row_hills, hill_of


@_compile
def _uphill(values, width, summit):  # type: ignore[no-untyped-def]
    # The pixel to which a summit leads, or itself.
    column, highest, value = summit % width, summit, values[summit]
    west, east = min(column, 1), min(width - 1 - column, 1)
    if summit >= width:
        for pixel in range(summit - width - west, summit - width + east + 1):
            if values[pixel] >= value:
                highest, value = pixel, values[pixel]
    if summit + width < values.size:
        for pixel in range(summit + width - west, summit + width + east + 1):
            if values[pixel] > value:
                highest, value = pixel, values[pixel]
    return highest


@_compile
def _basins(values, width, levels, summits, hill_of):  # type: ignore[no-untyped-def]
    # The basin of each hill, and the level of each basin's last summit, its highest.
    uphill = np.empty(summits.size, np.uint32)
    for hill in range(summits.size):
        uphill[hill] = hill_of[_uphill(values, width, np.int64(summits[hill]))]
    basins = np.full(summits.size, NOBODY)
    peaks = np.empty(summits.size, np.uint16)
    made = np.uint32(0)
    for start in range(summits.size):
        hill = np.uint32(start)
        while basins[hill] == NOBODY and uphill[hill] != hill:
            hill = uphill[hill]
        if basins[hill] == NOBODY:
            basins[hill], peaks[made] = made, levels[summits[hill]]
            made += ONE
        basin, hill = basins[hill], np.uint32(start)
        while basins[hill] == NOBODY:
            basins[hill] = basin
            hill = uphill[hill]
    return basins, peaks[:made]


@_compile
def _touch(levels, width, hill, above):  # type: ignore[no-untyped-def]
    # The highest level at which a hill touches one in the row above. Of each: start and end.
    highest = np.uint16(0)
    for shift in range(width - 1, width + 2):
        for pixel in range(max(hill[0], above[0] + shift), min(hill[1], above[1] + shift)):
            both = min(levels[np.uint32(pixel)], levels[np.uint32(pixel - shift)])
            highest = max(highest, both)
    return highest


@_compile
def _links(levels, width, starts, row_hills, basins):  # type: ignore[no-untyped-def]
    # Rows of m and n hills overlap in at most m + n - 1 places: fewer than 3 links to a hill. Hills
    # that touch only across a corner need none. The next hill of the row begins higher than the
    # one before it ends, so the way round the corner that leads over it is as strong.
    links = np.empty((3 * basins.size, 2), np.uint32)
    strengths = np.empty(3 * basins.size, np.uint16)
    made = 0
    for row in range(row_hills.size - 1):
        first_above = above = np.int64(row_hills[max(row - 1, 0)])
        for hill in range(row_hills[row], row_hills[row + 1]):
            start, end = np.int64(starts[hill]), np.int64(starts[hill + 1])
            if start > row * width and basins[hill] != basins[hill - 1]:
                links[made, 0], links[made, 1] = basins[hill], basins[hill - 1]
                strengths[made] = min(levels[start - 1], levels[start])
                made += 1
            while above < row_hills[row] and starts[above] + width < end:
                if basins[hill] != basins[above]:
                    links[made, 0], links[made, 1] = basins[hill], basins[above]
                    other = np.int64(starts[above]), np.int64(starts[above + 1])
                    strengths[made] = _touch(levels, width, (start, end), other)
                    made += 1
                above += 1
            # The last one overlaps the next hill too, if it does not end with this one.
            above = max(above - 1, first_above)
            if starts[above + 1] + width == end:
                above += 1
    return links[:made], strengths[:made]


@_compile
def _order_descending(keys, num_levels):  # type: ignore[no-untyped-def]
    # Counting sort: `order[starts[level + 1] : starts[level]]` are the indices of that level.
    starts = np.zeros(num_levels + 2, np.int64)
    for key in keys:
        starts[key] += 1
    for level in range(num_levels - 1, -1, -1):
        starts[level] += starts[level + 1]
    fill = starts[1:].copy()
    order = np.empty(keys.size, np.uint32)
    for index in range(keys.size):
        order[fill[keys[index]]] = index
        fill[keys[index]] += 1
    return order, starts


@_compile
def _empty_table(size):  # type: ignore[no-untyped-def]
    table = np.zeros((size, 6), np.uint32)
    table[:, FIRST] = table[:, LEFT] = NOBODY
    return table


@_compile
def _basin_cells(levels, width, hills, basins, peaks, num_levels):  # type: ignore[no-untyped-def]
    starts, summits, row_hills = hills
    base = np.zeros(peaks.size + 1, np.int64)
    for basin in range(peaks.size):
        base[basin + 1] = base[basin] + peaks[basin] + 1
    cells = _empty_table(base[-1])
    cell_levels = np.empty(base[-1], np.uint16)
    for basin in range(peaks.size):
        cells[base[basin] : base[basin + 1], BASIN] = basin
        cell_levels[base[basin] : base[basin + 1]] = np.arange(peaks[basin] + 1)
    for row in range(row_hills.size - 1):
        row_start = np.uint32(row * width)
        for hill in range(row_hills[row], row_hills[row + 1]):
            first, summit = base[basins[hill]], summits[hill]
            # Beyond the summit no pixel is a component's first or leftmost: the summit, of its
            # level or above, comes before it. Nor is one before the summit the last or rightmost.
            for pixel in range(starts[hill], summit + ONE):
                cell = np.uint32(first + levels[pixel])
                cells[cell, AREA] += ONE
                cells[cell, FIRST] = min(cells[cell, FIRST], np.uint32(pixel))
                cells[cell, LEFT] = min(cells[cell, LEFT], np.uint32(pixel) - row_start)
            # Counted on either side.
            cells[first + levels[summit], AREA] -= ONE
            for pixel in range(summit, starts[hill + 1]):
                cell = np.uint32(first + levels[pixel])
                cells[cell, AREA] += ONE
                cells[cell, LAST] = pixel
                cells[cell, RIGHT] = max(cells[cell, RIGHT], np.uint32(pixel) - row_start)
    order, cell_starts = _order_descending(cell_levels, num_levels)
    return cells[order], cell_starts


@_compile
def _pixel_cells(levels, width, hill_of, basins, num_levels):  # type: ignore[no-untyped-def]
    order, cell_starts = _order_descending(levels, num_levels)
    cells = np.empty((cell_starts[1], 6), np.uint32)
    for cell in range(cell_starts[1]):
        pixel = order[cell]
        column = pixel % np.uint32(width)
        cells[cell, AREA], cells[cell, BASIN] = 1, basins[hill_of[pixel]]
        cells[cell, FIRST] = cells[cell, LAST] = pixel
        cells[cell, LEFT] = cells[cell, RIGHT] = column
    return cells, cell_starts


@_compile
def _absorb(components, into, others, other):  # type: ignore[no-untyped-def]
    components[into, AREA] += others[other, AREA]
    components[into, FIRST] = min(components[into, FIRST], others[other, FIRST])
    components[into, LAST] = max(components[into, LAST], others[other, LAST])
    components[into, LEFT] = min(components[into, LEFT], others[other, LEFT])
    components[into, RIGHT] = max(components[into, RIGHT], others[other, RIGHT])


@_compile
def _is_larger(components, a, b):  # type: ignore[no-untyped-def]
    if components[a, AREA] != components[b, AREA]:
        return components[a, AREA] > components[b, AREA]
    return components[a, FIRST] < components[b, FIRST]


@_compile
def _find(parents, basin):  # type: ignore[no-untyped-def]
    while parents[basin] != basin:
        parents[basin] = parents[parents[basin]]
        basin = parents[basin]
    return basin


@_compile
def _tight_box(components, component, width):  # type: ignore[no-untyped-def]
    top, bottom = components[component, FIRST] // width, components[component, LAST] // width
    return components[component, LEFT], top, components[component, RIGHT] + ONE, bottom + ONE


@_compile
def _raise_best(best, components, component, width, box, above, upto):  # type: ignore[no-untyped-def]
    # Same operations in the same order as boxes.iou, so that results agree to the last bit.
    left, top, right, bottom = _tight_box(components, component, width)
    x0, y0, x1, y1 = float(left), float(top), float(right), float(bottom)
    shared_width = max(min(x1, box[2]) - max(x0, box[0]), 0.0)
    shared_height = max(min(y1, box[3]) - max(y0, box[1]), 0.0)
    shared = shared_width * shared_height
    value = shared / ((x1 - x0) * (y1 - y0) + (box[2] - box[0]) * (box[3] - box[1]) - shared)
    for level in range(above + 1, upto + 1):
        best[level] = max(best[level], value)


@_compile
def _descend(cells, cell_starts, peaks, links, strengths, width, box):  # type: ignore[no-untyped-def]
    num_levels = cell_starts.size - 2
    order, link_starts = _order_descending(strengths, num_levels)
    links, width = links[order], np.uint32(width)
    # Basins' extents at the current level, and once united that of their component.
    components = _empty_table(peaks.size)
    parents = np.arange(peaks.size).astype(np.uint32)
    # A component's extent holds from level `since` down to the one at which it changes. At its
    # peak, a basin's is still to be filled.
    since = peaks.copy()
    best = np.zeros(num_levels + 1)
    boxes = np.empty((num_levels, 4), np.int64)
    largest = cells[0, BASIN]
    for level in range(num_levels, 0, -1):
        for cell in range(cell_starts[level + 1], cell_starts[level]):
            if cells[cell, AREA] == 0:
                continue
            a = _find(parents, cells[cell, BASIN])
            if since[a] > level:
                _raise_best(best, components, a, width, box, level, since[a])
            since[a] = level
            _absorb(components, a, cells, cell)
            if _is_larger(components, a, largest):
                largest = a
        for link in range(link_starts[level + 1], link_starts[level]):
            a, b = _find(parents, links[link, 0]), _find(parents, links[link, 1])
            if a == b:
                continue
            if components[a, AREA] < components[b, AREA]:
                a, b = b, a
            if since[a] > level:
                _raise_best(best, components, a, width, box, level, since[a])
            if since[b] > level:
                _raise_best(best, components, b, width, box, level, since[b])
            since[a] = level
            parents[b] = a
            _absorb(components, a, components, b)
            if _is_larger(components, a, largest):
                largest = a
        x0, y0, x1, y1 = _tight_box(components, largest, width)
        boxes[level - 1, 0], boxes[level - 1, 1] = x0, y0
        boxes[level - 1, 2], boxes[level - 1, 3] = x1, y1
    for basin in range(parents.size):
        if parents[basin] == basin:
            _raise_best(best, components, basin, width, box, 0, since[basin])
    return boxes, best[1:]
