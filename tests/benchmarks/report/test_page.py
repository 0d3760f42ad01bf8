import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report.page import render, write_page
from benchmarks.report.panels import read_panels

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

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text += data + "\n"

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def without_library(html: str) -> str:
    """The page without Vega, in which addresses of name spaces stand."""
    first, _, rest = html.partition("</script>\n<script>")
    return first + rest.partition("</script>")[2]


@pytest.fixture(scope="module")
def html(finished_run: Path, shared_results: dict[str, Any]) -> str:
    page = write_page(finished_run, shared_results, read_panels(finished_run))
    return page.read_text(encoding="utf-8")


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


def test_every_method_is_in_the_table_and_in_the_legend(
    page: Page, shared_results: dict[str, Any]
) -> None:
    def methods(tag: str) -> set[str | None]:
        return {a["data-method"] for a in page.named(tag) if "data-method" in a}

    measured = set(shared_results["summary"])
    assert methods("tr") == measured
    assert methods("button") == measured
    for method in shared_results["methods"]:
        assert method["title"] in page.text


def test_the_table_has_the_numbers_and_their_intervals(
    page: Page, shared_results: dict[str, Any]
) -> None:
    numbers = shared_results["summary"]["layer_grad_cam"]["boxes"]
    figure = numbers["figures"]["accuracy_at_0.2"]
    assert f"[{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]" in page.text
    values = {a.get("data-value") for a in page.named("td")}
    assert {str(figure["value"]), str(figure["difference"])} <= values
    assert {str(numbers["median_seconds"]), str(numbers["peak_memory_bytes"])} <= values


def test_rows_are_sorted_by_the_first_leading_figure(
    page: Page, shared_results: dict[str, Any]
) -> None:
    rows = [
        str(a["data-method"]) for a in page.named("tr") if a.get("class") and "data-method" in a
    ]
    summary = shared_results["summary"]
    figures = [summary[name]["boxes"]["figures"]["accuracy_at_0.2"]["value"]
               for name in rows if "boxes" in summary[name]]  # fmt: skip
    assert figures == sorted(figures, reverse=True)
    assert rows[-1] == "uniform_heatmap"


def test_methods_measured_on_fewer_images_say_so(page: Page) -> None:
    assert "Occlusion (n = 4)" in page.text
    assert "Eigen-CAM (n" not in page.text
    assert "1 method on 4 of them" in page.text


def test_text_from_outside_is_escaped(html: str, page: Page) -> None:
    assert not any(hostile in html for hostile in HOSTILE)
    for hostile in HOSTILE:
        assert hostile in page.text
    assert [a.get("src") for a in page.named("script")] == [None, None, None]
    assert not page.named("img")
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_data_for_the_charts_cannot_end_its_element(html: str) -> None:
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    assert "<script>window.hacked" in json.dumps(json.loads(data))


def test_the_page_loads_nothing(html: str, page: Page) -> None:
    own = without_library(html)
    assert len(own) < len(html) - 500_000
    assert "@import" not in own
    assert "url(" not in own
    assert "http:" not in own
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), value
    (policy,) = [a["content"] for a in page.named("meta") if "http-equiv" in a]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy


def test_the_page_is_the_same_each_time(
    finished_run: Path, shared_results: dict[str, Any], html: str
) -> None:
    same = json.loads(json.dumps(shared_results))
    again = write_page(finished_run, same, read_panels(finished_run))
    assert again.read_text(encoding="utf-8") == html


def test_images_with_the_worst_are_in_the_page(page: Page) -> None:
    pictures = page.named("image")
    assert len(pictures) > 20
    assert all((a["href"] or "").startswith("data:image/png;base64,") for a in pictures)
    assert "Where Ours, recommended does worst" in page.text
    assert page.text.rindex("001.Thing/02.jpg") > page.text.index("does worst")
    assert "0.62" in page.text
    assert "0.00, empty map" in page.text


def test_images_can_be_left_out(results: dict[str, Any]) -> None:
    text = render(results)
    assert "data:image/png" not in without_library(text)
    assert "section-maps" not in text


def test_settings_versions_counts_and_the_command_are_in_the_page(page: Page) -> None:
    for expected in (
        "efficientnet_lite0", "not set", "3.11", "0123abcd", "1 left out", "cannot read <x>.jpg",
        "2 listed but absent", "python -m benchmarks localize --data 'a <b> & c'",
        "no rule for the layer <Swish>", "growth of a process",
    ):  # fmt: skip
        assert expected in page.text


def test_an_invented_protocol_shows_up_in_table_tiles_and_charts(
    invented_results: dict[str, Any],
) -> None:
    text = render(invented_results)
    page = Page(text)
    assert page.unbalanced == []
    assert "<i>of</i>" not in without_library(text)
    assert "Wobble <i>of</i> maps" in page.text
    assert "tremor" in page.text
    charts = {a["data-chart"] for a in page.named("div") if "data-chart" in a}
    assert {"curve_wobbling", "curve_deletion", "intervals_wobble", "against_wobble"} <= charts
    figure = invented_results["summary"]["eigen_cam"]["tremor"]["figures"]["wobble"]
    assert f"{figure['value']:.3f}" in page.text
    # Lower is better: what is above the main method is not.
    row = text.split('data-method="eigen_cam"')[1].split("</tr>")[0]
    assert figure["difference_low"] > 0
    assert 'class="below"><span class="number">+' in row


def test_a_run_without_curves_and_boxes_is_shown_too(results: dict[str, Any]) -> None:
    for protocols in results["summary"].values():
        protocols.pop("boxes", None)
    page = Page(render(results))
    assert page.unbalanced == []
    charts = {a["data-chart"] for a in page.named("div") if "data-chart" in a}
    assert charts == {"cost", "intervals_score"}


def test_a_run_without_our_methods_or_costs_is_shown_too(results: dict[str, Any]) -> None:
    results["main_method"], results["memory"], results["forward"] = None, None, {}
    for name in ("ours_recommended", "ours_transfer"):
        del results["summary"][name]
    for protocols in results["summary"].values():
        for numbers in protocols.values():
            numbers |= {"median_seconds": None, "times_forward": None, "peak_memory_bytes": None}
            for figure in numbers["figures"].values():
                for end in ("difference", "difference_low", "difference_high"):
                    figure.pop(end, None)
    results["methods"] = [m for m in results["methods"] if m["family"] != "ours"]
    page = Page(render(results))
    assert page.unbalanced == []
    assert "minus main" not in page.text
    assert "against cost" not in page.text


def test_differences_that_leave_out_zero_are_marked(results: dict[str, Any]) -> None:
    cases = {
        "eigen_cam": ((-0.3, -0.1), ["below"]),
        "layer_grad_cam": ((0.1, 0.3), ["above"]),
        "control_uniform": ((-0.1, 0.3), []),
    }
    for name, ((low, high), _) in cases.items():
        for numbers in results["summary"][name].values():
            for figure in numbers["figures"].values():
                middle = (low + high) / 2
                figure |= {
                    "difference": middle, "difference_low": low, "difference_high": high
                }  # fmt: skip
    html = render(results)
    for name, (_, expected) in cases.items():
        row = html.split(f'data-method="{name}"')[1].split("</tr>")[0]
        assert [kind for kind in ("below", "above") if f'class="{kind}"' in row] == expected
