"""report.html: a run on one page that loads nothing from outside."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from benchmarks.core.files import write_text
from benchmarks.report.charts import charts_of
from benchmarks.report.looks import (
    FLOOR,
    Look,
    figure_of,
    leading_figures,
    looks_of_run,
)
from benchmarks.report.panels import FOLDER, Panels
from benchmarks.results.tables import (
    cell_of,
    counts_text,
    fewer_images,
    filled_columns,
    forward_text,
    number_text,
)

FILE = "report.html"
# The page can load nothing but what is in it, and its charts' expressions are never run as code.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_page(run: Path, results: Mapping[str, Any], panels: Panels | None = None) -> Path:
    """report.html in the folder of a run.

    Args:
        run (Path): its folder, from which the files of the images are read.
        results (Mapping): content of results.json.
        panels (Panels, optional): see `benchmarks.report.panels.read_panels`.
    """
    return write_text(run / FILE, render(results, panels, run / FOLDER))


def render(
    results: Mapping[str, Any], panels: Panels | None = None, folder: Path = Path(FOLDER)
) -> str:
    """The page, the same for the same input.

    Args:
        results (Mapping): content of results.json.
        panels (Panels, optional): images and maps.
        folder (Path): of their files.
    """
    environment = Environment(
        loader=PackageLoader("benchmarks.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip

    def picture(file: str) -> str:
        content = base64.b64encode((folder / file).read_bytes()).decode("ascii")
        return f"data:image/png;base64,{content}"

    environment.filters |= {"fact": _fact, "picture": picture, "zip": zip}
    identity = results.get("identity") or {}
    looks, columns = looks_of_run(results), filled_columns(results)
    protocols = [column.protocol for column in columns]
    return environment.get_template("page.html").render(
        results=results,
        data=results["data"],
        titles={method["name"]: method["title"] for method in results["methods"]},
        main=results["main_method"],
        policy=POLICY,
        fewer=fewer_images(results),
        num_floors=sum(look.family == FLOOR for look in looks.values()),
        tiles=_tiles(results, looks),
        columns=columns,
        starts=[i for i, name in enumerate(protocols) if not i or name != protocols[i - 1]],
        rows=[
            (look, [cell_of(column, results["summary"][name]) for column in columns])
            for name, look in looks.items()
        ],
        counts=counts_text(results["counts"], results["data"]),
        forward=forward_text(results.get("forward") or {}),
        looks=list(looks.values()),
        charts={name: chart.to_dict(validate=False) for name, chart in charts_of(results).items()},
        panels=panels if panels and panels.chosen else None,
        machine={
            **results["versions"],
            **{key: results[key] for key in ("device", "workers", "threads") if key in results},
            **results.get("machine", {}),
            **{k: identity[k] for k in ("network_fingerprint", "data_digest") if k in identity},
        },
        style=_file("style.css"),
        script=_file("script.js"),
        vega=Markup(vl_convert.javascript_bundle()),  # type: ignore[call-arg]
    )


def _file(name: str) -> Markup:
    return Markup((Path(__file__).parent / "templates" / name).read_text(encoding="utf-8"))


def _fact(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _tiles(results: Mapping[str, Any], looks: Mapping[str, Look]) -> list[tuple[str, str, str]]:
    """Number, name and note: the main method, the best of the others, of the floors, and a cost."""
    leading = leading_figures(results)
    if not leading:
        return []
    figure, tiles = leading[0], []
    others = [look for look in looks.values()
              if not look.fewer and look.family not in ("ours", "control", FLOOR)]  # fmt: skip
    for role, candidates in {
        "main method": [look for look in looks.values() if look.main],
        "best of the others": others,
        "best floor": [look for look in looks.values() if look.family == FLOOR],
    }.items():
        for look in candidates[:1]:  # The best comes first.
            if numbers := figure_of(results, look.method, figure):
                value, low, high = (number_text(numbers[key], figure["unit"]) for key in
                                    ("value", "low", "high"))  # fmt: skip
                note = f"{role}: {figure['heading']}, 95% interval {low} to {high}"
                tiles.append((value + figure["unit"], look.label, note))
    cost = results["summary"].get(results["main_method"], {}).get(figure["protocol"], {})
    if cost.get("times_forward") is not None:
        note = f"main method: {1000 * cost['median_seconds']:.0f} ms per image"
        times = f"{cost['times_forward']:.1f}\N{MULTIPLICATION SIGN}"
        tiles.append((times, "the time of a forward pass", note))
    return tiles
