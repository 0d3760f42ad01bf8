"""Measure the threshold sweep against one labelling per threshold, side by side in one run.

    python -m docs.examples.measure_sweep

Three ways of labelling are timed, each on 99 thresholds, interleaved with the sweep:

- ``label``: ``skimage.measure.label`` and nothing else;
- ``largest``: + areas (``numpy.bincount``) and the tight box of the largest component;
- ``all``: + the tight boxes of all components (``scipy.ndimage.find_objects``) and their IoU,
  which is what the sweep computes. Its answers are compared with the sweep's.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from skimage.measure import label
from skimage.transform import resize

from benchmarks.metrics.boxes import iou
from benchmarks.metrics.floors import centre_box
from benchmarks.metrics.heatmaps import scale_to_max
from benchmarks.metrics.localization import THRESHOLDS, threshold_sweep

Heatmap = NDArray[np.float64]


def make_heatmaps(width: int, height: int, seed: int) -> dict[str, Heatmap]:
    """Heatmaps as networks give them (12 x 16, bilinear, with and without a ReLU), and noise."""
    generator = np.random.default_rng(seed)

    def upsample(cells: Heatmap) -> Heatmap:
        enlarged: Heatmap = resize(cells, (height, width), order=1, mode="edge")
        return np.maximum(enlarged, 0)

    return {
        "smooth, half zero": upsample(np.maximum(generator.normal(size=(12, 16)), 0)),
        "smooth, positive": upsample(generator.random((12, 16))),
        "pixel noise": generator.random((height, width)),
    }


def label_each(heatmap: Heatmap) -> None:
    """Label the components at each threshold."""
    scaled = scale_to_max(heatmap)
    for threshold in THRESHOLDS:
        label(scaled >= threshold, connectivity=2)


def box_largest(heatmap: Heatmap) -> NDArray[np.int64]:
    """Tight box of the largest component at each threshold, (99, 4)."""
    scaled = scale_to_max(heatmap)
    boxes = []
    for threshold in THRESHOLDS:
        labels = label(scaled >= threshold, connectivity=2)
        largest = labels == np.bincount(labels.ravel())[1:].argmax() + 1
        rows, columns = np.flatnonzero(largest.any(axis=1)), np.flatnonzero(largest.any(axis=0))
        boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return np.array(boxes)


def box_all(heatmap: Heatmap, target: tuple[float, ...]) -> tuple[Heatmap, Heatmap]:
    """IoU of the largest component and the best of all components, (99,) each."""
    scaled = scale_to_max(heatmap)
    of_largest, best = [], []
    for threshold in THRESHOLDS:
        labels = label(scaled >= threshold, connectivity=2)
        boxes = [(x.start, y.start, x.stop, y.stop) for y, x in find_objects(labels)]
        overlaps = iou(boxes, target)
        of_largest.append(overlaps[np.bincount(labels.ravel())[1:].argmax()])
        best.append(overlaps.max())
    return np.array(of_largest), np.array(best)


def time_interleaved(tasks: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each task over ``repeats`` turns in which all of them run.

    A turn calls a task until it has used a tenth of a second, and takes the mean. Every task runs
    on one core, and its processor time counts, so that other programs disturb little.
    """
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            calls, start = 0, time.process_time()
            while (used := time.process_time() - start) < 0.1:
                task()
                calls += 1
            times[name].append(1000 * used / calls)
    return {name: statistics.median(measured) for name, measured in times.items()}


def main() -> None:
    """Print milliseconds and ratios for each kind of heatmap."""
    parser = argparse.ArgumentParser(
        prog="python -m docs.examples.measure_sweep", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--width", type=int, default=500, help="pixels (default: %(default)s)")
    parser.add_argument("--height", type=int, default=375, help="pixels (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    arguments = parser.parse_args()
    if min(arguments.width, arguments.height, arguments.repeats) < 1:
        parser.error("--width, --height and --repeats are at least 1")
    target = centre_box(arguments.width, arguments.height)
    print(
        f"{arguments.width} x {arguments.height} pixels, {THRESHOLDS.size} thresholds, "
        f"median of {arguments.repeats} turns:\n"
        "milliseconds of processor time, and how many times the sweep's"
    )
    print(f"{'heatmap':<18} {'sweep':>7} {'label':>16} {'largest':>16} {'all':>16}")
    for name, heatmap in make_heatmaps(arguments.width, arguments.height, arguments.seed).items():
        # Warms up, and compiles where no cache is at hand.
        sweep = threshold_sweep(heatmap, target)
        if not np.array_equal((sweep.iou, sweep.best_iou), box_all(heatmap, target)):
            raise SystemExit(f"{name}: the sweep's IoU differ from those of the labellings")
        tasks: dict[str, Callable[[], object]] = {
            "sweep": lambda h=heatmap: threshold_sweep(h, target),  # type: ignore[misc]
            "label": lambda h=heatmap: label_each(h),  # type: ignore[misc]
            "largest": lambda h=heatmap: box_largest(h),  # type: ignore[misc]
            "all": lambda h=heatmap: box_all(h, target),  # type: ignore[misc]
        }
        medians = time_interleaved(tasks, arguments.repeats)
        ratios = [
            f"{medians[way]:8.1f} {medians[way] / medians['sweep']:6.1f}x"
            for way in list(tasks)[1:]
        ]
        print(f"{name:<18} {medians['sweep']:7.2f} " + " ".join(ratios), flush=True)


if __name__ == "__main__":
    main()
