"""Connected components of a heatmap at every threshold at once, in one pass over its pixels.

Each pixel gets a *level*: the number of thresholds that it reaches. At threshold t (counted from
1) the foreground is the set of pixels of level t and above. So, from the highest threshold down,
components only appear, grow and merge, and a union-find that keeps area and box of each component
knows the answer at every threshold after one descent.

1. ``_flat_zones`` scans the image once and merges neighbours of equal level into zones, which
   appear as a whole at their level. A pair of touching zones becomes a link at the lower of their
   two levels. On smooth maps zones and links are far fewer than pixels.
2. ``_descend`` takes the zones and links from the highest level down.

Which link is left out. Let p be a pixel, N, W, NW and NE its neighbours above and to the left,
and "strength" of a link the lower level of its two ends. The link p-N always stays. A link from p
to W, NW or NE is redundant where N has at least the link's strength: N touches all of them. A
link p-NW is redundant where W has at least its strength. Each replacement path runs over p-N or
p-W and a link between earlier pixels, so by induction in raster order no connection is lost.
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
        "pip install 'captum-embed[benchmarks]'"
    ) from error

# Columns of the table of zones: number of pixels, first pixel in raster order, tight box (ends
# included), and the zones of a lower and of a higher level that it was linked to last.
AREA, FIRST, TOP, BOTTOM, LEFT, RIGHT, LOWER, HIGHER = range(8)
# Indices are unsigned: numba then skips Python's rule for negative ones, which costs a fifth.
NOBODY = np.uint32(2**32 - 1)
# A power of two: scaling a float64 by it is exact, and so is the look-up of a pixel's level.
BUCKETS = 1024
# Levels are stored in 16 bits.
MAX_THRESHOLDS = 65_535


def _compile(function: Callable[..., Any]) -> Any:
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:
        # Neither __pycache__ nor the user's cache folder can be written: compile in each process.
        return njit(nogil=True)(function)


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
    zones, levels, parents, links, strengths = _flat_zones(scaled, thresholds)
    boxes, best_iou = _descend(zones, levels, parents, links, strengths, thresholds.size, box)
    return boxes, best_iou


@_compile
def _find(parents, zone):  # type: ignore[no-untyped-def]
    while parents[zone] != zone:
        parents[zone] = parents[parents[zone]]
        zone = parents[zone]
    return zone


@_compile
def _unite_equal(parents, a, b):  # type: ignore[no-untyped-def]
    a, b = _find(parents, a), _find(parents, b)
    # The lower number stays the root, so that zones can be gathered from the last to the first.
    parents[max(a, b)] = min(a, b)


@_compile
def _start_zone(zones, zone, row, column, width):  # type: ignore[no-untyped-def]
    zones[zone, AREA], zones[zone, FIRST] = 0, row * width + column
    zones[zone, TOP], zones[zone, LEFT], zones[zone, RIGHT] = row, column, column
    zones[zone, LOWER] = zones[zone, HIGHER] = NOBODY


@_compile
def _extend_zone(zones, zone, row, column):  # type: ignore[no-untyped-def]
    zones[zone, AREA] += 1
    zones[zone, BOTTOM] = row
    zones[zone, LEFT] = min(zones[zone, LEFT], column)
    zones[zone, RIGHT] = max(zones[zone, RIGHT], column)


@_compile
def _absorb(zones, into, other):  # type: ignore[no-untyped-def]
    zones[into, AREA] += zones[other, AREA]
    zones[into, FIRST] = min(zones[into, FIRST], zones[other, FIRST])
    zones[into, TOP] = min(zones[into, TOP], zones[other, TOP])
    zones[into, BOTTOM] = max(zones[into, BOTTOM], zones[other, BOTTOM])
    zones[into, LEFT] = min(zones[into, LEFT], zones[other, LEFT])
    zones[into, RIGHT] = max(zones[into, RIGHT], zones[other, RIGHT])


@_compile
def _link(zones, links, strengths, count, a, b, level, neighbour):  # type: ignore[no-untyped-def]
    side = HIGHER if neighbour > level else LOWER
    # Along a border the same two zones meet at pixel after pixel.
    if zones[a, side] == b:
        return count
    zones[a, side] = b
    links[count, 0], links[count, 1] = a, b
    strengths[count] = min(level, neighbour)
    return count + 1


@_compile
def _level_table(thresholds):  # type: ignore[no-untyped-def]
    table = np.empty(BUCKETS + 1, np.uint16)
    level = 0
    for bucket in range(BUCKETS + 1):
        while level < thresholds.size and thresholds[level] <= bucket / BUCKETS:
            level += 1
        table[bucket] = level
    return table


@_compile
def _level(value, thresholds, table):  # type: ignore[no-untyped-def]
    level = table[int(value * BUCKETS)]
    while level < thresholds.size and value >= thresholds[level]:
        level += 1
    return level


@_compile
def _flat_zones(scaled, thresholds):  # type: ignore[no-untyped-def]
    height, width = scaled.shape
    table = _level_table(thresholds)
    zones = np.empty((scaled.size, 8), np.uint32)
    levels = np.empty(scaled.size, np.uint16)
    parents = np.empty(scaled.size, np.uint32)
    links = np.empty((4 * scaled.size, 2), np.uint32)
    strengths = np.empty(4 * scaled.size, np.uint16)
    # Levels and zones of this row and the one above, with a column of level 0 on either side.
    row_levels = np.zeros((2, width + 2), np.uint16)
    row_zones = np.zeros((2, width + 2), np.uint32)
    made = linked = 0
    for row in range(height):
        here, above = row_levels[row % 2], row_levels[1 - row % 2]
        zones_here, zones_above = row_zones[row % 2], row_zones[1 - row % 2]
        for column in range(width):
            x = column + 1
            level = _level(scaled[row, column], thresholds, table)
            here[x] = level
            if level == 0:
                continue
            w, nw, n, ne = here[x - 1], above[x - 1], above[x], above[x + 1]
            if n == level:
                zone = zones_above[x]
            elif w == level:
                zone = zones_here[x - 1]
            elif nw == level:
                zone = zones_above[x - 1]
            elif ne == level:
                zone = zones_above[x + 1]
            else:
                zone = np.uint32(made)
                made += 1
                parents[zone], levels[zone] = zone, level
                _start_zone(zones, zone, row, column, width)
            zones_here[x] = zone
            _extend_zone(zones, zone, row, column)
            # All other neighbours of equal level touch one another, and are united already.
            if ne == level and n != level and zones_above[x + 1] != zone:
                _unite_equal(parents, zone, zones_above[x + 1])
            if n > 0 and n != level:
                other = zones_above[x]
                linked = _link(zones, links, strengths, linked, zone, other, level, n)
            if w != level and n < min(level, w):
                other = zones_here[x - 1]
                linked = _link(zones, links, strengths, linked, zone, other, level, w)
            if ne != level and n < min(level, ne):
                other = zones_above[x + 1]
                linked = _link(zones, links, strengths, linked, zone, other, level, ne)
            if nw != level and max(n, w) < min(level, nw):
                other = zones_above[x - 1]
                linked = _link(zones, links, strengths, linked, zone, other, level, nw)
    return zones[:made], levels[:made], parents[:made], links[:linked], strengths[:linked]


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
def _iou(zones, zone, box):  # type: ignore[no-untyped-def]
    # Same operations in the same order as boxes.iou, so that results agree to the last bit.
    x0, y0 = float(zones[zone, LEFT]), float(zones[zone, TOP])
    x1, y1 = zones[zone, RIGHT] + 1.0, zones[zone, BOTTOM] + 1.0
    shared_width = max(min(x1, box[2]) - max(x0, box[0]), 0.0)
    shared_height = max(min(y1, box[3]) - max(y0, box[1]), 0.0)
    shared = shared_width * shared_height
    return shared / ((x1 - x0) * (y1 - y0) + (box[2] - box[0]) * (box[3] - box[1]) - shared)


@_compile
def _raise_best(best, value, above, upto):  # type: ignore[no-untyped-def]
    for level in range(above + 1, upto + 1):
        if value > best[level]:
            best[level] = value


@_compile
def _is_larger(zones, a, b):  # type: ignore[no-untyped-def]
    if zones[a, AREA] != zones[b, AREA]:
        return zones[a, AREA] > zones[b, AREA]
    return zones[a, FIRST] < zones[b, FIRST]


@_compile
def _descend(zones, levels, parents, links, strengths, num_levels, box):  # type: ignore[no-untyped-def]
    for zone in range(parents.size - 1, -1, -1):
        if parents[zone] != zone:
            _absorb(zones, parents[zone], zone)
    zone_order, zone_starts = _order_descending(levels, num_levels)
    link_order, link_starts = _order_descending(strengths, num_levels)
    links = links[link_order]
    # A component's extent holds from level `since` down to the one at which it changes.
    since = levels.copy()
    best = np.zeros(num_levels + 1)
    boxes = np.zeros((num_levels, 4), np.int64)
    largest = zone_order[0]
    for level in range(num_levels, 0, -1):
        for zone in zone_order[zone_starts[level + 1] : zone_starts[level]]:
            if parents[zone] == zone and _is_larger(zones, zone, largest):
                largest = zone
        for link in range(link_starts[level + 1], link_starts[level]):
            a, b = _find(parents, links[link, 0]), _find(parents, links[link, 1])
            if a == b:
                continue
            if zones[a, AREA] < zones[b, AREA]:
                a, b = b, a
            if since[a] > level:
                _raise_best(best, _iou(zones, a, box), level, since[a])
            if since[b] > level:
                _raise_best(best, _iou(zones, b, box), level, since[b])
            since[a] = level
            parents[b] = a
            _absorb(zones, a, b)
            if _is_larger(zones, a, largest):
                largest = a
        boxes[level - 1, 0] = zones[largest, LEFT]
        boxes[level - 1, 1] = zones[largest, TOP]
        boxes[level - 1, 2] = zones[largest, RIGHT] + 1
        boxes[level - 1, 3] = zones[largest, BOTTOM] + 1
    for zone in range(parents.size):
        if parents[zone] == zone:
            _raise_best(best, _iou(zones, zone, box), 0, since[zone])
    return boxes, best[1:]
