"""Draws faithfulness.png: where the object is, against what the embedding rests on.

From the root of a checkout, with the folders of the runs of ``docs/faithfulness.md``:
``make_faithfulness.py runs/cub_all runs/mosaics runs/embedded_boxes runs/embedded runs/pets``.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import vl_convert

from benchmarks.report.chart_parts import CONFIG
from benchmarks.report.charts import planes_chart
from benchmarks.results.files import read_results

FOLDER = Path(__file__).parent
# Pets has three breeds here, and a mosaic takes four classes.
PLANES = (
    ("CUB-200-2011: boxes and mosaics", "max_box_acc", "mosaic_mass"),
    ("Embedded set: boxes and mosaics", "max_box_acc", "mosaic_mass"),
    ("Oxford-IIIT Pet: masks and the swap game", "mask_score", "swap_5"),
)


def joined(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two runs on one data set as one: methods that both have, with the figures of both."""
    both = [name for name in second["summary"] if name in first["summary"]]
    return {
        **second,
        "figures": [*second["figures"], *first["figures"]],
        "methods": [method for method in second["methods"] if method["name"] in both],
        "summary": {name: {**first["summary"][name], **second["summary"][name]} for name in both},
    }


def main(runs: list[str]) -> None:
    """Write the picture beside this file."""
    boxes, mosaics, embedded, its_mosaics, pets = (read_results(Path(run)) for run in runs)
    shown = [joined(boxes, mosaics), joined(embedded, its_mosaics), joined(mosaics, pets)]
    planes = [
        (title, results, across, up)
        for results, (title, across, up) in zip(shown, PLANES, strict=True)
    ]
    spec = {**planes_chart(planes).to_dict(), "config": CONFIG}
    (FOLDER / "faithfulness.png").write_bytes(vl_convert.vegalite_to_png(spec, scale=1.5))


if __name__ == "__main__":
    main(sys.argv[1:])
