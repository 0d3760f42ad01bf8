"""report.html: the whole of a run on one page that needs no network."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.core.files import write_text
from benchmarks.protocols.registry import PROTOCOLS
from benchmarks.report.charts import Style, costs, shape, styles
from benchmarks.report.cost import CostPlot, cost_plot, frontier
from benchmarks.report.flat import flat
from benchmarks.report.html_curves import curves_section
from benchmarks.report.html_faithfulness import faithfulness_section, removal_data
from benchmarks.report.html_images import images_section
from benchmarks.report.html_table import table_section
from benchmarks.report.markup import Markup, join, tag
from benchmarks.report.panels import FOLDER, Panels, read_panels
from benchmarks.results.tables import counts_text, fewer_images, forward_text

PAGE = Path(__file__).parent / "page"
FILE = "report.html"
# The page can load nothing but what is in it.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_html(run: Path, results: Mapping[str, Any], *, images: bool = True) -> Path:
    """report.html in the folder of a run.

    Args:
        run (Path): its folder, from which the images are read.
        results (Mapping): content of results.json.
        images (bool): with the images and maps, where the run has them.
    """
    panels = read_panels(run) if images else None
    pictures: dict[str, str] = {}
    if panels is not None:
        files = {
            f for i in (*panels.chosen, *panels.worst) for f in (i.file, *(m.file for m in i.maps))
        }
        pictures = {file: _data_uri(run / FOLDER / file) for file in files}
    return write_text(run / FILE, render(results, panels, pictures))


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


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
    results = flat(results)
    looks = styles(results)
    title = f"Attribution benchmark: {results['data']['name']}"
    sections = [
        ("results", "Results", table_section(results, looks)),
        ("curves", "Curves", curves_section(results, looks)),
        ("faithfulness", "Faithfulness", faithfulness_section(results, looks)),
        ("cost", "Cost", _cost_section(results, looks)),
        ("maps", "Maps", images_section(results, panels, pictures or {})),
        ("methods", "Methods", _methods_section(results)),
        ("setup", "Setup", _setup_section(results)),
    ]
    kept = [(anchor, name, content) for anchor, name, content in sections if content is not None]
    links = [tag("a", name, href=f"#section-{anchor}") for anchor, name, _ in kept]
    body = join(
        tag("header", tag("h1", title), tag("p", _subtitle(results), class_="lead"),
            _tiles(results), tag("nav", *links, aria_label="Sections")),
        tag("main", *(tag("section", content, id=f"section-{anchor}")
                      for anchor, _, content in kept)),
        tag("footer", "Made by ", tag("code", "python -m benchmarks"), " (captum_embed ",
            results["versions"].get("captum-embed", "unknown"), ")"),
        tag("div", id="tip", role="status", hidden=True),
    )  # fmt: skip
    head = join(
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),
        tag("style", _page_file("style.css")),
    )
    scripts = join(
        tag("script", _as_json(_chart_data(results)), type="application/json", id="data"),
        tag("script", _page_file("script.js")),
    )
    page = tag("html", tag("head", head), tag("body", body, scripts), lang="en")
    return f"<!doctype html>\n{page}\n"


def _page_file(name: str) -> Markup:
    return Markup((PAGE / name).read_text(encoding="utf-8"))


def _as_json(value: Any) -> Markup:
    """JSON in which nothing ends the script element."""
    return Markup(json.dumps(value, separators=(",", ":")).replace("<", "\\u003c"))


def _chart_data(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the script reads off under the pointer."""
    about = {method["name"]: method for method in results["methods"]}
    tips = {}
    for name, protocols in results["summary"].items():
        numbers = protocols.get("boxes") or protocols.get("attention") or {}
        lines = [about[name]["title"], about[name]["family"]]
        if (seconds := numbers.get("median_seconds")) is not None:
            ratio = numbers.get("times_forward")
            times = "" if ratio is None else f", {ratio:.1f} times the forward pass"
            lines.append(f"{1000 * seconds:.0f} ms per image{times}")
        if (held := numbers.get("peak_memory_bytes")) is not None:
            lines.append(f"{held / 1e6:.0f} MB at most")
        for protocol, figure, label in (
            ("boxes", "accuracy_at_0.2", "IoU ≥ 0.5 at τ = 0.2"),
            ("attention", "score", "attention in the box"),
            ("faithfulness", "deletion", "deletion"),
            ("faithfulness", "insertion", "insertion"),
        ):
            found = protocols.get(protocol, {}).get(figure)
            if found is not None:
                low, high = protocols[protocol]["intervals"][figure]
                lines.append(f"{label}: {_percent(found)} [{100 * low:.1f}, {100 * high:.1f}]")
        tips[name] = "\n".join(lines)
    shown = {n: p["boxes"]["accuracy_curve"] for n, p in results["summary"].items() if "boxes" in p}
    return {
        "thresholds": results["thresholds"],
        "curves": shown,
        "removal": removal_data(results),
        "tips": tips,
    }


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _subtitle(results: Mapping[str, Any]) -> str:
    floors = sum(method["family"] == "floor" for method in results["methods"])
    shown = len(results["summary"]) - floors
    data, settings = results["data"], results["settings"]
    fewer = fewer_images(results)
    some = f" ({fewer[0]} methods on {fewer[1]} of them)" if fewer else ""
    return (
        f"{shown} methods and {floors} floors on {results['counts']['images']} test images of "
        f"classes {data['test']['classes']}{some}, with a weight bank of classes "
        f"{data['train']['classes']}. Network {settings.get('network')}, layer "
        f"{settings.get('layer')}."
    )


def _tiles(results: Mapping[str, Any]) -> Markup | None:
    """The main method, the best of the others, the floor, and what the main method costs."""
    protocol, figure, what = (
        ("boxes", "accuracy_at_0.2", "IoU ≥ 0.5 at τ = 0.2")
        if any("boxes" in protocols for protocols in results["summary"].values())
        else ("attention", "score", "of the map in the box")
    )
    about = {method["name"]: method for method in results["methods"]}
    numbers = {n: p[protocol] for n, p in results["summary"].items() if protocol in p}
    main = results["main_method"]
    others = [n for n in numbers if about[n]["family"] not in ("ours", "control", "floor")]
    best = max(others, key=lambda name: numbers[name][figure], default=None)
    tiles = []
    for name, label in (
        (main, "main method"),
        (best, "best of the others"),
        ("centre_box", "floor"),
    ):
        if name in numbers:
            low, high = numbers[name]["intervals"][figure]
            tiles.append(
                _tile(
                    _percent(numbers[name][figure]),
                    about[name]["title"],
                    f"{label}: {what}, 95% interval {100 * low:.1f} to {100 * high:.1f}",
                    main=name == main,
                )
            )
    if main in numbers and (ratio := numbers[main].get("times_forward")) is not None:
        seconds = numbers[main]["median_seconds"]
        tiles.append(
            _tile(f"{ratio:.1f}×", "the time of a forward pass",  # noqa: RUF001
                  f"main method: {1000 * seconds:.0f} ms per image")
        )  # fmt: skip
    return tag("div", *tiles, class_="tiles") if tiles else None


def _tile(number: str, name: str, note: str, *, main: bool = False) -> Markup:
    return tag(
        "div",
        tag("b", number),
        tag("span", name),
        tag("small", note),
        class_="tile main" if main else "tile",
    )


def _cost_section(results: Mapping[str, Any], looks: Mapping[str, Style]) -> Markup | None:
    plot = cost_plot(results)
    if plot is None:
        return None
    forward = results["forward"].get(plot.protocol, {}).get("median_seconds")
    families = dict.fromkeys(point.family for point in plot.points)
    keys = [
        tag("span", tag("svg", shape(family), viewBox="-8 -8 16 16", class_="key"), family)
        for family in families
    ]
    memory, threads = results.get("memory") or {}, results["threads"]
    measured = memory.get("measured")
    return join(
        tag("h2", "Accuracy against cost"),
        tag(
            "p",
            f"{plot.label[0].upper()}{plot.label[1:]} over the median time per image, on "
            f"{results['device']}, {threads} thread{'s' if threads != 1 else ''}. The line joins "
            "the methods that no cheaper one equals. ",
            f"{_sentence(forward_text(results['forward']))} " if forward else None,
            f"Peak memory: {measured}, on an image of {memory['size'][0]} by {memory['size'][1]} "
            "pixels." if measured else None,
        ),
        tag("div", costs(plot, looks, results["main_method"], forward),
            tag("div", tag("div", *keys, class_="keys"), _frontier_table(plot), class_="beside"),
            class_="chart with-legend"),
    )  # fmt: skip


def _frontier_table(plot: CostPlot) -> Markup:
    rows = [
        tag("tr", tag("th", point.title, scope="row"), tag("td", f"{1000 * point.seconds:.0f} ms"),
            tag("td", _percent(point.accuracy)), data_method=point.name)
        for point in frontier(plot.points)
    ]  # fmt: skip
    caption = tag("caption", "No cheaper method equals these")
    return tag("table", caption, tag("tbody", *rows))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _methods_section(results: Mapping[str, Any]) -> Markup:
    served = [m for m in results["methods"] if not m["unavailable"] and m["family"] != "floor"]
    missing = [method for method in results["methods"] if method["unavailable"]]
    rows = [
        tag("tr", tag("th", m["title"], scope="row"), tag("td", m["family"]),
            tag("td", m.get("explains")), tag("td", tag("code", m["name"])))
        for m in served
    ]  # fmt: skip
    parts = [
        tag("h2", "Methods"),
        _plain_table(("method", "family", "what its map is", "name on the command line"), rows),
    ]
    if missing:
        reasons = [
            tag("tr", tag("th", m["title"], scope="row"), tag("td", m["unavailable"]))
            for m in missing
        ]
        parts += [
            tag("h3", f"Not available for this network ({len(missing)})"),
            _plain_table(("method", "why"), reasons),
        ]
    return join(*parts)


def _plain_table(headings: Sequence[str], rows: Sequence[Markup]) -> Markup:
    head = tag("tr", *(tag("th", heading, scope="col") for heading in headings))
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="plain")
    return tag("div", table, class_="scroll", tabindex=0)


def _facts(facts: Mapping[str, Any]) -> Markup:
    items = [tag("div", tag("dt", key), tag("dd", _shown(value))) for key, value in facts.items()]
    return tag("dl", *items)


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _setup_section(results: Mapping[str, Any]) -> Markup:
    data = results["data"]
    protocols = [
        tag("li", tag("b", name), f": {PROTOCOLS[name].title}")
        for name in results["counts"]["measured"]
        if name in PROTOCOLS
    ]
    unreadable = [tag("li", message) for message in data.get("unreadable", [])]
    return join(
        tag("h2", "Setup"),
        tag("h3", "Reproduce"),
        tag("div", tag("pre", tag("code", results["command"], id="command"), tabindex=0),
            tag("button", "copy", type="button", id="copy", hidden=True), class_="command"),
        tag("h3", "What was measured"),
        tag("ul", *protocols),
        tag("p", _sentence(counts_text(results["counts"], data))),
        tag("ul", *unreadable) if unreadable else None,
        tag("h3", "Data"),
        tag("p", data["name"], ", in ", tag("code", data["root"])),
        _data_table(data),
        tag("h3", "Settings"),
        _facts(results["settings"]),
        tag("h3", "Versions and machine"),
        _facts({**results["versions"], "device": results["device"],
                "threads": results["threads"], **results.get("machine", {})}),
        *_fingerprints(results),
    )  # fmt: skip


def _data_table(data: Mapping[str, Any]) -> Markup:
    facts = list(data["test"])
    rows = [
        tag("tr", tag("th", name, scope="row"), *(tag("td", data[part].get(f)) for f in facts))
        for part, name in (("train", "weight bank"), ("test", "test"))
    ]
    return _plain_table(("", *facts), rows)


def _fingerprints(results: Mapping[str, Any]) -> list[Markup]:
    identity = results.get("identity") or {}
    found = {k: identity[k] for k in ("network_fingerprint", "data_digest") if k in identity}
    return [tag("h3", "Fingerprints"), _facts(found)] if found else []
