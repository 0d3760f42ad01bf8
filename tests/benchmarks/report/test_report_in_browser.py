"""The report as a user has it: opened in Chromium, clicked, and without a word on the console."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report.page import write_page
from benchmarks.report.panels import read_panels

pytest.importorskip("selenium", reason="the report is looked at with Selenium (extra: test)")
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--window-size=1300,900",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    absent = [str(path) for path in (CHROMIUM, DRIVER) if not path.exists()]
    if absent:
        pytest.skip(f"no {' and '.join(absent)} (Debian packages chromium and chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
        try:
            yield driver
        finally:
            driver.quit()


def drawn(browser: webdriver.Chrome, address: str) -> webdriver.Chrome:
    """A page whose charts are drawn."""
    browser.get(address)
    WebDriverWait(browser, 30).until(lambda _: element(browser, "body").get_attribute("data-drawn"))
    return browser


@pytest.fixture(scope="module")
def report(finished_run: Path, shared_results: dict[str, Any]) -> str:
    return write_page(finished_run, shared_results, read_panels(finished_run)).as_uri()


@pytest.fixture
def page(browser: webdriver.Chrome, report: str) -> Iterator[webdriver.Chrome]:
    """The report, freshly opened; nothing may be on the console in the end."""
    yield drawn(browser, report)
    assert browser.get_log("browser") == []


@pytest.fixture(scope="module")
def invented_report(
    invented_results: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> str:
    return write_page(tmp_path_factory.mktemp("invented"), invented_results).as_uri()


@pytest.fixture
def invented(browser: webdriver.Chrome, invented_report: str) -> Iterator[webdriver.Chrome]:
    """The report of a run with a protocol that nothing in report/ knows."""
    yield drawn(browser, invented_report)
    assert browser.get_log("browser") == []


def element(page: webdriver.Chrome, selector: str) -> WebElement:
    return page.find_element(By.CSS_SELECTOR, selector)


def elements(page: webdriver.Chrome, selector: str) -> list[WebElement]:
    return page.find_elements(By.CSS_SELECTOR, selector)


def chart(page: webdriver.Chrome, name: str) -> WebElement:
    return element(page, f'.vega[data-chart="{name}"]')


def legend(page: webdriver.Chrome, method: str) -> WebElement:
    return element(page, f'.legend button[data-method="{method}"]')


def lines(page: webdriver.Chrome, name: str) -> int:
    """How many lines of a curve chart are there to be seen."""
    page.execute_async_script("setTimeout(arguments[0], 60)")
    paths = chart(page, name).find_elements(By.CSS_SELECTOR, "g.mark-line path")
    return sum(path.get_attribute("d") is not None for path in paths)


def test_it_renders(page: webdriver.Chrome, shared_results: dict[str, Any]) -> None:
    assert element(page, "h1").text == "Attribution benchmark: things <b>"
    rows = elements(page, "#results tbody tr")
    assert len(rows) == len(shared_results["summary"])
    for row in rows:
        assert row.is_displayed()
    names = [str(one.get_attribute("data-chart")) for one in elements(page, ".vega")]
    assert {"curve_accuracy", "cost", "intervals_score", "against_score"} <= set(names)
    for name in names:
        svg = chart(page, name).find_element(By.TAG_NAME, "svg")
        assert svg.size["width"] > 300
        assert svg.size["height"] > 80
    assert lines(page, "curve_accuracy") == len(shared_results["summary"]) - 1


def test_every_image_can_be_decoded(page: webdriver.Chrome) -> None:
    sizes = page.execute_async_script(
        """
        const done = arguments[0];
        const sizes = Array.from(document.querySelectorAll("image"), async (one) => {
          const image = new Image();
          image.src = one.getAttribute("href");
          await image.decode();
          return [image.width, image.height];
        });
        Promise.all(sizes).then(done, (error) => done(String(error)));
        """
    )
    assert len(sizes) > 20
    assert sizes == [[120, 90]] * len(sizes)
    for picture in elements(page, ".cells svg"):
        assert picture.size["height"] > 50


def test_nothing_is_loaded_and_nothing_hostile_has_run(page: webdriver.Chrome) -> None:
    assert page.execute_script("return performance.getEntriesByType('resource')") == []
    assert page.execute_script("return window.hacked") is None
    assert "<script>window.hacked" in element(page, "#results tbody").text
    for entry in elements(page, ".legend li button"):
        entry.click()
    assert page.execute_script("return window.hacked") is None


def table(page: webdriver.Chrome, index: int) -> dict[str, list[Any]]:
    """Numbers of a column from top to bottom, None where there is none; every column's order."""
    columns: dict[str, list[Any]] = page.execute_script(
        """
        const values = Array.from(document.querySelectorAll("#results tbody tr"), (row) => {
          const value = row.children[arguments[0]].dataset.value;
          return value === undefined ? null : Number(value);
        });
        const headings = document.querySelectorAll("#results thead tr:last-child th");
        return { values, orders: Array.from(headings, (one) => one.getAttribute("aria-sort")) };
        """,
        index,
    )
    return columns


def test_a_click_on_a_heading_sorts_and_another_sorts_the_other_way(
    page: webdriver.Chrome,
) -> None:
    buttons = elements(page, "#results thead tr:last-child th button")
    assert len(buttons) > 9
    for index, button in enumerate(buttons[1:], start=1):
        directions = set()
        for _ in range(2):
            button.click()
            sorted_by = table(page, index)
            numbers = [value for value in sorted_by["values"] if value is not None]
            direction = sorted_by["orders"].pop(index)
            assert numbers == sorted(numbers, reverse=direction == "descending")
            # What is missing stays last.
            assert sorted_by["values"][: len(numbers)] == numbers
            assert set(sorted_by["orders"]) == {"none"}
            directions.add(direction)
        assert directions == {"ascending", "descending"}


def test_methods_sort_by_name_and_rows_stay_whole(
    page: webdriver.Chrome, shared_results: dict[str, Any]
) -> None:
    heading = element(page, "#results thead th.method")
    for reverse in (False, True):
        heading.find_element(By.TAG_NAME, "button").click()
        rows = elements(page, "#results tbody tr")
        names = [row.find_element(By.CSS_SELECTOR, ".name").text.lower() for row in rows]
        assert names == sorted(names, reverse=reverse)
        for row in rows:
            numbers = shared_results["summary"][row.get_attribute("data-method")]
            if "boxes" in numbers:
                assert row.find_element(By.CSS_SELECTOR, "td .number").text == (
                    f"{100 * numbers['boxes']['figures']['accuracy_at_0.2']['value']:.1f}"
                )


def test_headings_are_reached_and_pressed_with_the_keyboard(page: webdriver.Chrome) -> None:
    button = element(page, "#results thead tr:last-child th:nth-child(3) button")
    page.execute_script("arguments[0].focus()", button)
    button.send_keys("\ue007")
    heading = element(page, "#results thead tr:last-child th:nth-child(3)")
    assert heading.get_attribute("aria-sort") == "descending"


def test_a_click_in_the_legend_switches_a_line_off_and_on(page: webdriver.Chrome) -> None:
    button = legend(page, "ours_recommended")
    every = lines(page, "curve_accuracy")
    for shown in (False, True):
        button.click()
        assert lines(page, "curve_accuracy") == every - (not shown)
        assert button.get_attribute("aria-pressed") == str(shown).lower()


@pytest.mark.parametrize("which", ["all", "none", "some"])
def test_all_lines_none_or_the_highlights_can_be_shown(page: webdriver.Chrome, which: str) -> None:
    element(page, f'[data-show="{"all" if which == "none" else "none"}"]').click()
    element(page, f'[data-show="{which}"]').click()
    entries = elements(page, ".legend li button")
    wanted = {
        "all": entries,
        "none": [],
        "some": [entry for entry in entries if entry.get_attribute("data-named") is not None],
    }[which]
    pressed = [entry for entry in entries if entry.get_attribute("aria-pressed") == "true"]
    assert pressed == wanted
    # The uniform heatmap has no boxes, so no curve.
    curves = [one for one in wanted if one.get_attribute("data-method") != "uniform_heatmap"]
    assert lines(page, "curve_accuracy") == len(curves)


def test_one_click_switches_a_method_in_all_charts(invented: webdriver.Chrome) -> None:
    names = ("curve_accuracy", "curve_deletion", "curve_wobbling")
    before = [lines(invented, name) for name in names]
    for shown in (False, True):
        legend(invented, "eigen_cam").click()
        assert [lines(invented, name) for name in names] == [n - (not shown) for n in before]


def value(page: webdriver.Chrome, method: str) -> str:
    return legend(page, method).find_element(By.CSS_SELECTOR, ".value").text


def point_at(page: webdriver.Chrome, name: str, aside: int = 0) -> float:
    """The pointer on a chart, to the right of its middle; where the legend reads it off."""
    ActionChains(page).scroll_to_element(chart(page, name)).move_to_element_with_offset(
        chart(page, name), aside, 0
    ).perform()
    return float(element(page, ".legend output").text.rpartition(", at ")[2])


def test_the_legend_reads_the_curves_off_under_the_pointer(
    page: webdriver.Chrome, shared_results: dict[str, Any]
) -> None:
    curve = shared_results["summary"]["layer_grad_cam"]["boxes"]["curves"]["accuracy"]["y"]
    assert value(page, "layer_grad_cam") == f"{100 * curve[19]:.1f}"
    tau = point_at(page, "curve_accuracy", 60)
    assert 0.5 < tau < 0.8
    assert value(page, "layer_grad_cam") == f"{100 * curve[round(100 * tau) - 1]:.1f}"
    ActionChains(page).move_to_element(element(page, "#section-charts h2")).perform()
    assert element(page, ".legend output").text == "Accuracy over the threshold, at 0.20"
    assert value(page, "layer_grad_cam") == f"{100 * curve[19]:.1f}"


def test_curves_that_nothing_in_the_report_knows_are_read_off_too(
    invented: webdriver.Chrome, invented_results: dict[str, Any]
) -> None:
    panels = [chart(invented, f"curve_{name}").rect for name in ("deletion", "wobbling")]
    assert panels[0]["y"] == panels[1]["y"]
    assert panels[0]["x"] + panels[0]["width"] < panels[1]["x"]
    curves = invented_results["summary"]["eigen_cam"]["tremor"]["curves"]
    for name in ("deletion", "wobbling"):
        share = point_at(invented, f"curve_{name}")
        assert 0.3 < share < 0.7
        assert value(invented, "eigen_cam") == f"{curves[name]['y'][round(10 * share)]:.3f}"
        assert value(invented, "centre_box") == "", "it has no such curve"


def test_pointing_at_a_method_of_the_cost_chart_names_it_and_lights_it(
    page: webdriver.Chrome,
) -> None:
    ActionChains(page).scroll_to_element(chart(page, "cost")).perform()
    marks = chart(page, "cost").find_elements(By.CSS_SELECTOR, "g.mark-symbol path")
    hollow = [one for one in marks if one.value_of_css_property("fill-opacity") == "0"]
    assert 0 < len(hollow) < len(marks)
    (point,) = [one for one in hollow if "Occlusion" in str(one.get_attribute("aria-label"))]
    ActionChains(page).move_to_element(point).perform()
    tip = element(page, "#vg-tooltip-element")
    WebDriverWait(page, 5).until(lambda _: tip.is_displayed())
    assert "Occlusion (n = 4)" in tip.text
    assert "times the forward pass" in tip.text
    assert "lit" in str(legend(page, "occlusion").get_attribute("class"))


def test_pointing_at_a_row_lights_its_line(page: webdriver.Chrome) -> None:
    ActionChains(page).move_to_element(element(page, 'tr[data-method="eigen_cam"] .name')).perform()
    lit = "return document.querySelector('[data-chart=curve_accuracy]').view.signal('lit')"
    assert page.execute_script(lit) == "eigen_cam"


def test_the_wheel_zooms_with_shift_alone(page: webdriver.Chrome) -> None:
    domain = "return document.querySelector('[data-chart=cost]').view.scale('y').domain()"
    before = page.execute_script(domain)
    wheel = """
        const canvas = document.querySelector('[data-chart=cost] svg');
        canvas.scrollIntoView({block: 'center', behavior: 'instant'});
        const box = canvas.getBoundingClientRect();
        const init = {deltaY: -200, shiftKey: arguments[0], bubbles: true, cancelable: true,
                      clientX: box.left + box.width / 2, clientY: box.top + box.height / 2};
        const under = document.elementFromPoint(init.clientX, init.clientY);
        under.dispatchEvent(new WheelEvent('wheel', init));
        setTimeout(arguments[1], 100);
    """
    page.execute_async_script(wheel, False)
    assert page.execute_script(domain) == before
    page.execute_async_script(wheel, True)
    low, high = page.execute_script(domain)
    assert high - low < before[1] - before[0]


def test_maps_can_be_taken_off_the_images(page: webdriver.Chrome) -> None:
    overlay, switch = element(page, ".overlay"), element(page, "#overlays")
    assert overlay.value_of_css_property("display") == "inline"
    switch.click()
    assert overlay.value_of_css_property("display") == "none"
    switch.click()
    assert overlay.value_of_css_property("display") == "inline"


def luminance(page: webdriver.Chrome, selector: str, what: str) -> float:
    colour: str = page.execute_script(
        "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]",
        selector,
        what,
    )
    channels = [int(part) / 255 for part in colour.strip("rgba()").split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_both_schemes(page: webdriver.Chrome, scheme: str) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    background = luminance(page, "body", "backgroundColor")
    assert (background > 0.5) is (scheme == "light")
    for selector in (
        "body",
        "header .muted",
        "nav a",
        ".tiles .main b",
        "#results small",
        ".legend .value",
    ):
        text = luminance(page, selector, "color")
        brighter, darker = max(text, background), min(text, background)
        assert (brighter + 0.05) / (darker + 0.05) >= 4.5, selector


@pytest.mark.parametrize("width", [390, 800])
def test_it_fits_a_phone_and_narrow_pages(invented: webdriver.Chrome, width: int) -> None:
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 2, "mobile": width < 600}
    invented.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        drawn(invented, invented.current_url)
        assert invented.execute_script("return document.documentElement.scrollWidth") <= width
        for one in elements(invented, ".vega svg"):
            assert 250 < one.size["width"] <= width
        for one in elements(invented, ".legend .value"):
            assert one.rect["x"] + one.rect["width"] <= width
        named = chart(invented, "intervals_accuracy_at_0.2").text.replace("\n", " ")
        assert width == 800 or "\u2026" not in named, "on a phone names are whole"
    finally:
        invented.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
