"""How a predicted box misses: one outcome for each image, by how the two boxes lie.

Two shares decide: how much of the predicted box lies in the object's, and how much of the
object's lies in the predicted one. Each image has exactly one outcome:

- **correct**: IoU of 0.5 or more.
- **part**: at least 90% of the predicted box lies in the object's, and it is too small.
- **too big**: at least 90% of the object's box lies in the predicted one, which is too big.
- **aside**: neither, and at least 10% of the predicted box lies in the object's.
- **background**: less than 10% of the predicted box lies in the object's, nor is it one that is
  too big; IoU is then below 0.1.
- **empty**: there is no predicted box.

Background is told by the predicted box and not by its IoU: a spot on a bird's head has an IoU
near 0 as well, and is part of the object.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.metrics.boxes import area, iou, shared_area
from captum_embed.errors import InputError

OUTCOMES = ("correct", "part", "too big", "aside", "background", "empty")
CORRECT_IOU = 0.5
MOSTLY = 0.9
HARDLY = 0.1
# Upper ends, exclusive, of the object's share of the image; the last group has none.
SIZE_ENDS = (0.1, 0.25, 0.5)


def outcomes(
    predicted: ArrayLike, objects: ArrayLike, overlap: ArrayLike | None = None
) -> NDArray[np.intp]:
    """The outcome of each image.

    Args:
        predicted: (N, 4), x0, y0, x1, y1; without area for an empty map.
        objects: (N, 4), with area.
        overlap: (N,) IoU of the two, where it was recorded; computed here without.

    Returns:
        (N,), indices into ``OUTCOMES``.

    Raises:
        InputError: see ``iou``; shapes other than (N, 4) and (N,), or an object without area.

    Example:
        >>> [OUTCOMES[i] for i in outcomes([(0, 0, 9, 9), (1, 1, 3, 3)], [(0, 0, 10, 10)] * 2)]
        ['correct', 'part']
    """
    boxes, truth = (np.asarray(corners, dtype=np.float64) for corners in (predicted, objects))
    computed = iou(boxes, truth)
    overlaps = computed if overlap is None else np.asarray(overlap, dtype=np.float64)
    if boxes.ndim != 2 or boxes.shape != truth.shape or overlaps.shape != boxes.shape[:1]:
        raise InputError(
            "expected as many predicted boxes (N, 4) as objects (N, 4) and overlaps (N,), got "
            f"{boxes.shape}, {truth.shape} and {overlaps.shape}"
        )
    areas, object_areas = area(boxes), area(truth)
    if not (object_areas > 0).all():
        raise InputError(f"object {int(np.argmin(object_areas))} has a box without area")
    shared = shared_area(boxes, truth)
    of_predicted = np.divide(shared, areas, out=np.zeros_like(areas), where=areas > 0)
    # The first that holds.
    conditions = {
        "correct": overlaps >= CORRECT_IOU,
        "empty": areas == 0,
        "part": of_predicted >= MOSTLY,
        "too big": shared / object_areas >= MOSTLY,
        "aside": of_predicted >= HARDLY,
    }
    return np.select(
        list(conditions.values()),
        [OUTCOMES.index(name) for name in conditions],
        OUTCOMES.index("background"),
    ).astype(np.intp)


def object_sizes(objects: ArrayLike, image_sizes: ArrayLike) -> NDArray[np.intp]:
    """The size group of each object.

    Args:
        objects: (N, 4), x0, y0, x1, y1, clipped to the image.
        image_sizes: (N, 2), width and height.

    Returns:
        (N,), from 0, below the first of ``SIZE_ENDS``, to ``len(SIZE_ENDS)``.

    Raises:
        InputError: other shapes, an image without pixels, or an object larger than its image.

    Example:
        >>> object_sizes([(0, 0, 9, 10), (0, 0, 20, 25)], [(100, 10), (20, 25)]).tolist()
        [0, 3]
    """
    truth = np.asarray(objects, dtype=np.float64)
    sides = np.asarray(image_sizes, dtype=np.float64)
    if truth.ndim != 2 or truth.shape[1] != 4 or sides.shape != (len(truth), 2):
        raise InputError(
            f"expected boxes (N, 4) and image sizes (N, 2), got {truth.shape} and {sides.shape}"
        )
    if not (sides > 0).all():
        raise InputError("an image has a width and a height above 0")
    shares = area(truth) / sides.prod(axis=1)
    # Boxes are kept to a thousandth of a pixel.
    if not (shares <= 1.001).all():
        raise InputError("an object is larger than its image: clip its box first")
    return np.digitize(shares, SIZE_ENDS)


def size_names() -> tuple[str, ...]:
    """What the size groups are called.

    Example:
        >>> size_names()
        ('<10%', '10-25%', '25-50%', '≥50%')
    """
    ends = [round(100 * end) for end in SIZE_ENDS]
    between = (f"{low}-{high}%" for low, high in pairwise(ends))
    return (f"<{ends[0]}%", *between, f"≥{ends[-1]}%")
