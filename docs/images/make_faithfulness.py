"""Draws faithfulness.png: where the object is, against what the embedding rests on.

From the root of a checkout, with the folders of the three runs of ``docs/faithfulness.md``:
``.venv/bin/python docs/images/make_faithfulness.py runs/cub runs/pets runs/embedded``.
"""

import sys
from pathlib import Path

import vl_convert

from benchmarks.report.chart_parts import CONFIG
from benchmarks.report.charts import planes_chart
from benchmarks.results.files import read_results

FOLDER = Path(__file__).parent
# Pets has three breeds here, and a mosaic takes four classes.
PLANES = (
    ("CUB-200-2011: boxes and mosaics", "score", "mosaic_mass"),
    ("Oxford-IIIT Pet: masks and the swap game", "mask_score", "swap_5"),
    ("Embedded set: masks and mosaics", "mask_score", "mosaic_mass"),
)


def main(runs: list[str]) -> None:
    """Write the picture beside this file."""
    planes = [
        (title, read_results(Path(run)), across, up)
        for run, (title, across, up) in zip(runs, PLANES, strict=True)
    ]
    spec = {**planes_chart(planes).to_dict(), "config": CONFIG}
    (FOLDER / "faithfulness.png").write_bytes(vl_convert.vegalite_to_png(spec, scale=1.5))


if __name__ == "__main__":
    main(sys.argv[1:])
