"""report.html: the whole of a run on one page that needs no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from benchmarks.core.files import write_text
from benchmarks.report.charts import about_curve, charts_of, cost_rows, curves_of, frontier
from benchmarks.report.looks import (
    FLOOR,
    Look,
    as_text,
    figure_of,
    leading_figures,
    looks_of_run,
)
from benchmarks.report.panels import FOLDER, ImagePanels, Panels
from benchmarks.report.table import MISSING, table_of
from benchmarks.results.tables import counts_text, fewer_images, forward_text

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
    pictures: dict[str, str] = {}
    for image in (*panels.chosen, *panels.worst) if panels is not None else ():
        for file in (image.file, *(one.file for one in image.maps)):
            content = base64.b64encode((run / FOLDER / file).read_bytes()).decode("ascii")
            pictures[file] = f"data:image/png;base64,{content}"
    return write_text(run / FILE, render(results, panels, pictures))


def render(
    results: Mapping[str, Any],
    panels: Panels | None = None,
    pictures: Mapping[str, str] | None = None,
) -> str:
    """The page, the same for the same input.

    Args:
        results (Mapping): content of results.json.
        panels (Panels, optional): images and maps.
        pictures (Mapping, optional): data URI of each of their files.
    """
    environment = Environment(
        loader=PackageLoader("benchmarks.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"fact": _fact, "zip": zip}
    data, identity = results["data"], results.get("identity") or {}
    charts = {name: chart.to_dict() for name, chart in charts_of(results).items()}
    looks = looks_of_run(results)
    return environment.get_template("page.html").render(
        results=results,
        titles={method["name"]: method["title"] for method in results["methods"]},
        main=results["main_method"],
        policy=POLICY,
        missing=MISSING,
        subtitle=_subtitle(results),
        tiles=_tiles(results),
        table=table_of(results, looks),
        counts=counts_text(results["counts"], results["data"]),
        charts=charts,
        curves=_curves(results, looks, list(charts)),
        intervals=[name for name in charts if name.startswith("intervals_")],
        planes=[name for name in charts if name.startswith("against_")],
        cost=_cost(results, looks),
        forward=forward_text(results.get("forward") or {}),
        images=_images(panels, pictures or {}),
        data_rows=[
            (title, *(data[part].get(fact) for fact in data["test"]))
            for part, title in (("train", "weight bank"), ("test", "test"))
        ],
        machine={
            **results["versions"],
            **{key: results[key] for key in ("device", "workers", "threads") if key in results},
            **results.get("machine", {}),
        },
        fingerprints={
            k: identity[k] for k in ("network_fingerprint", "data_digest") if k in identity
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


def _subtitle(results: Mapping[str, Any]) -> str:
    floors = sum(method["family"] == FLOOR for method in results["methods"])
    data, settings, fewer = results["data"], results["settings"], fewer_images(results)
    some = f" ({fewer[0]} methods on {fewer[1]} of them)" if fewer else ""
    return (
        f"{len(results['summary']) - floors} methods and {floors} floors on "
        f"{results['counts']['images']} test images of classes {data['test']['classes']}{some}, "
        f"with a weight bank of classes {data['train']['classes']}. "
        f"Network {settings.get('network')}, layer {settings.get('layer')}."
    )


def _tiles(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The main method, the best of the others, the best floor, and what the main method costs."""
    leading = leading_figures(results)
    if not leading:
        return []
    figure, main = leading[0], results["main_method"]
    looks = [look for n, look in looks_of_run(results).items() if figure_of(results, n, figure)]
    others = [look for look in looks if not (look.main or look.fewer or look.family == FLOOR)
              and look.family not in ("ours", "control")]  # fmt: skip
    chosen = (
        ("main method", [look for look in looks if look.main]),
        ("best of the others", others),
        ("best floor", [look for look in looks if look.family == FLOOR]),
    )
    tiles = []
    for role, found in chosen:
        if found:
            one = figure_of(results, found[0].method, figure) or {}
            value, low, high = (as_text(one[key], figure["unit"]) for key in
                                ("value", "low", "high"))  # fmt: skip
            note = f"{role}: {figure['heading']}, 95% interval {low} to {high}"
            tiles.append({"number": value + figure["unit"], "name": found[0].label, "note": note,
                          "main": found[0].main})  # fmt: skip
    numbers = results["summary"].get(main, {}).get(figure["protocol"], {})
    if numbers.get("times_forward") is not None:
        tiles.append({
            "number": f"{numbers['times_forward']:.1f}\N{MULTIPLICATION SIGN}", "main": False,
            "name": "the time of a forward pass",
            "note": f"main method: {1000 * numbers['median_seconds']:.0f} ms per image",
        })  # fmt: skip
    return tiles


def _curves(
    results: Mapping[str, Any], looks: Mapping[str, Look], charts: Sequence[str]
) -> list[dict[str, Any]]:
    """Per protocol its curves' charts, and their legend with a column of values for each curve.

    The values are those of the figure of merit named as the curve, such as the area under it, or
    else the curve's own where it is read off at first.
    """
    groups: dict[str, list[str]] = {}
    curves = curves_of(results)
    files = dict(zip(curves, charts[: len(curves)], strict=True))
    for protocol, name in curves:
        groups.setdefault(protocol, []).append(name)
    found = []
    for protocol, names in groups.items():
        entries = []
        for method, look in looks.items():
            numbers = results["summary"][method].get(protocol, {})
            drawn = numbers.get("curves", {})
            if any(name in drawn for name in names):
                values = [_read_off(drawn.get(name), numbers["figures"].get(name), name)
                          for name in names]  # fmt: skip
                entries.append({"look": look, "values": values})
        found.append({
            "protocol": protocol, "entries": entries,
            "curves": [{"chart": files[protocol, name], **about_curve(name)} for name in names],
        })  # fmt: skip
    return found


def _read_off(
    curve: Mapping[str, Any] | None, figure: Mapping[str, Any] | None, name: str
) -> str | None:
    about = about_curve(name)
    if curve is None:
        return None
    if about["at"] is not None:
        x: Sequence[float] = curve["x"]
        nearest = min(range(len(x)), key=lambda index: abs(x[index] - about["at"]))
        return as_text(curve["y"][nearest], "%" if about["share"] else "")
    return as_text(figure["value"], "") if figure else None


def _cost(results: Mapping[str, Any], looks: Mapping[str, Look]) -> dict[str, Any] | None:
    """Families with their marks, and the methods that no cheaper one equals."""
    leading = leading_figures(results)
    rows = cost_rows(results, leading[0], looks) if leading else []
    if not rows:
        return None
    best = [
        {"look": looks[row["method"]], "time": f"{1000 * row['seconds']:.0f} ms",
         "value": as_text(row["value"], leading[0]["unit"]) + leading[0]["unit"]}
        for row in frontier(rows, leading[0]["better"])
    ]  # fmt: skip
    families = {looks[row["method"]].family: looks[row["method"]].shape for row in rows}
    return {"heading": leading[0]["heading"], "best": best, "families": families}


def _images(panels: Panels | None, pictures: Mapping[str, str]) -> dict[str, Any] | None:
    """Images drawn at random and the worst; one that is in both groups is stored once."""
    if panels is None or not panels.chosen:
        return None
    stored: dict[str, ImagePanels] = {one.key: one for one in (*panels.chosen, *panels.worst)}
    return {
        "panels": panels,
        "numbers": {key: number for number, key in enumerate(stored)},
        "stored": stored,
        "pictures": pictures,
        "measure": "IoU at τ = 0.2" if panels.protocol == "boxes" else "its score",
    }
