import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report.charts import styles
from benchmarks.report.html import render, write_html
from benchmarks.report.html_table import table_section
from benchmarks.results.summary import FLOORS

VOID = {"meta", "link", "input", "br", "img"}
HOSTILE = ("<script>window.hacked", "<img src=x", "<Swish>", "<x>.jpg", "'a <b> & c'", "things <b>")


class Page(HTMLParser):
    """Elements, their attributes and all text outside of style and script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text += data + "\n"

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def html(finished_run: Path, shared_results: dict[str, Any]) -> str:
    return write_html(finished_run, shared_results).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_every_element_is_closed(page: Page) -> None:
    assert page.unbalanced == []
    assert page.open == []


def test_ids_are_unique_and_what_is_referred_to_is_there(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [a["href"] for a in (*page.named("a"), *page.named("use"))]
    assert len(links) > 6
    assert {link[1:] for link in links if link} <= set(ids)


def test_every_method_is_in_the_table_the_legend_and_the_charts(
    page: Page, shared_results: dict[str, Any]
) -> None:
    def methods(tag: str, start: str = "") -> set[str | None]:
        return {
            a.get("data-method")
            for a in page.named(tag)
            if "data-method" in a and (a.get("class") or "").startswith(start)
        }

    measured = set(shared_results["summary"])
    assert methods("tr") == measured
    assert methods("button") == methods("g", "series") == measured - {"uniform_heatmap"}
    assert methods("g", "point") == measured - set(FLOORS)
    for method in shared_results["methods"]:
        assert method["title"] in page.text


def test_the_table_has_the_numbers_and_their_intervals(
    page: Page, shared_results: dict[str, Any]
) -> None:
    numbers = shared_results["summary"]["layer_grad_cam"]["boxes"]
    low, high = numbers["intervals"]["accuracy_at_0.2"]
    assert f"{100 * numbers['accuracy_at_0.2']:.1f}" in page.text
    assert f"[{100 * low:.1f}, {100 * high:.1f}]" in page.text
    values = {a.get("data-value") for a in page.named("td")}
    assert str(numbers["max_box_acc_v2"]) in values
    assert str(numbers["median_seconds"]) in values
    assert str(numbers["peak_memory_bytes"]) in values


def test_rows_are_sorted_by_the_first_figure_at_first(
    page: Page, shared_results: dict[str, Any]
) -> None:
    rows = [a["data-method"] for a in page.named("tr") if a.get("class") and "data-method" in a]
    summary = shared_results["summary"]
    figures = [
        summary[name]["boxes"]["accuracy_at_0.2"]
        for name in rows
        if name is not None and "boxes" in summary[name]
    ]
    assert figures == sorted(figures, reverse=True)
    assert rows[-1] == "uniform_heatmap"


def test_text_from_outside_is_escaped(html: str, page: Page) -> None:
    assert not any(hostile in html for hostile in HOSTILE)
    for hostile in HOSTILE:
        assert hostile in page.text
    assert [a.get("src") for a in page.named("script")] == [None, None]
    assert not page.named("img")
    assert not any(name.startswith("on") for _, found in page.elements for name in found)


def test_data_for_the_script_cannot_end_its_element(html: str) -> None:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    data = json.loads(found)
    assert "<script>window.hacked" in data["tips"]["saliency"]
    assert len(data["curves"]["saliency"]) == len(data["thresholds"]) == 99


def test_the_page_loads_nothing(html: str, page: Page) -> None:
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    assert "url(" not in html
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), value
    (policy,) = [a["content"] for a in page.named("meta") if "http-equiv" in a]
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_the_page_is_the_same_each_time(
    finished_run: Path, shared_results: dict[str, Any], html: str
) -> None:
    again = write_html(finished_run, json.loads(json.dumps(shared_results)))
    assert again.read_text(encoding="utf-8") == html


def test_images_with_the_worst_are_in_the_page(page: Page, shared_results: dict[str, Any]) -> None:
    pictures = page.named("image")
    assert pictures
    assert all((a["href"] or "").startswith("data:image/png;base64,") for a in pictures)
    assert "Where Ours, LOCALIZE does worst" in page.text
    ious = {
        image["key"]: image["protocols"]["boxes"]["methods"]["ours_localize"]["iou"][19]
        for image in shared_results["images"]
    }
    worst = min(ious, key=lambda key: ious[key])
    assert page.text.rindex(worst) > page.text.index("does worst")
    assert "empty map" in page.text


def test_images_can_be_left_out(tmp_path: Path, results: dict[str, Any], html: str) -> None:
    text = render(results)
    assert "data:image/png" not in text
    assert "section-maps" not in text
    assert len(text) < 0.5 * len(html)


def test_settings_versions_counts_and_the_command_are_in_the_page(page: Page) -> None:
    for expected in (
        "efficientnet_lite0", "not set", "3.11", "0123abcd", "1 left out", "cannot read <x>.jpg",
        "2 listed but absent", "python -m benchmarks localize --data 'a <b> & c'",
        "no rule for the layer <Swish>", "growth of a process",
    ):  # fmt: skip
        assert expected in page.text


def test_a_run_of_one_protocol_has_no_curves(results: dict[str, Any]) -> None:
    for protocols in results["summary"].values():
        protocols.pop("boxes", None)
    text = render(results)
    assert "section-curves" not in text
    assert "section-cost" in text
    assert "of the map in the box" in text


def test_a_run_without_our_methods_or_costs_is_shown_too(results: dict[str, Any]) -> None:
    results["main_method"], results["memory"] = None, None
    for name in ("ours_localize", "ours_paper"):
        del results["summary"][name]
    for protocols in results["summary"].values():
        for numbers in protocols.values():
            for figure in numbers["figures"].values():
                figure.pop("difference", None)
            numbers |= {"median_seconds": None, "times_forward": None, "peak_memory_bytes": None}
    results["methods"] = [m for m in results["methods"] if m["family"] != "ours"]
    page = Page(render(results))
    assert page.unbalanced == []
    assert "minus main" not in page.text
    assert "Accuracy against cost" not in page.text


@pytest.mark.parametrize(
    ("ends", "mark"), [((-0.3, -0.1), "below"), ((0.1, 0.3), "above"), ((-0.1, 0.3), None)]
)
def test_differences_that_leave_out_zero_are_marked(
    results: dict[str, Any], ends: tuple[float, float], mark: str | None
) -> None:
    for numbers in results["summary"]["saliency"].values():
        parts = ("difference", "difference_low", "difference_high")
        for found in numbers["figures"].values():
            found |= dict(zip(parts, (sum(ends) / 2, *ends), strict=True))
    table = str(table_section(results, styles(results)))
    row = table.split('data-method="saliency"')[1].split("</tr>")[0]
    assert [kind for kind in ("below", "above") if f'class="{kind}"' in row] == [mark] * bool(mark)


def test_the_highlighted_methods_have_colours_of_their_own(results: dict[str, Any]) -> None:
    looks = styles(results)
    highlighted = [n for n, look in looks.items() if look.highlighted and look.colour is not None]
    colours = [looks[name].colour for name in highlighted]
    assert len(colours) == len(set(colours)) == 7
    assert looks["ours_localize"].colour == 0
    families = {m["name"]: m["family"] for m in results["methods"]}
    assert {families[n] for n in highlighted} == set(families.values()) - {"floor"}
