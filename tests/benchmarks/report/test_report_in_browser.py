"""The report as a user has it: opened in Chromium, clicked, and without a word on the console."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks.report.html import write_html

from benchmarks.report.charts import WIDTH

pytest.importorskip("selenium", reason="the report is looked at with Selenium (extra: test)")
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

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


@pytest.fixture(scope="module")
def report(finished_run: Path, shared_results: dict[str, Any]) -> str:
    return write_html(finished_run, shared_results).as_uri()


@pytest.fixture
def page(browser: webdriver.Chrome, report: str) -> Iterator[webdriver.Chrome]:
    """The report, freshly opened; nothing may be on the console in the end."""
    browser.get(report)
    yield browser
    assert browser.get_log("browser") == []


@pytest.fixture(scope="module")
def faithful_report(
    faithful_results: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> str:
    return write_html(tmp_path_factory.mktemp("faithful"), faithful_results).as_uri()


@pytest.fixture
def faithful(browser: webdriver.Chrome, faithful_report: str) -> Iterator[webdriver.Chrome]:
    """The report of a run with deletion and insertion, freshly opened."""
    browser.get(faithful_report)
    yield browser
    assert browser.get_log("browser") == []


def element(page: webdriver.Chrome, selector: str) -> WebElement:
    return page.find_element(By.CSS_SELECTOR, selector)


def elements(page: webdriver.Chrome, selector: str) -> list[WebElement]:
    return page.find_elements(By.CSS_SELECTOR, selector)


def legend(page: webdriver.Chrome, method: str) -> WebElement:
    return element(page, f'.legend button[data-method="{method}"]')


def line(page: webdriver.Chrome, method: str) -> WebElement:
    return element(page, f'#curves .series[data-method="{method}"]')


def test_it_renders(page: webdriver.Chrome, shared_results: dict[str, Any]) -> None:
    assert element(page, "h1").text == "Attribution benchmark: things <b>"
    rows = elements(page, "#results tbody tr")
    assert len(rows) == len(shared_results["summary"])
    for row in rows:
        assert row.is_displayed()
    for chart in ("#curves", "#costs"):
        assert element(page, chart).size["width"] > 300
        assert element(page, chart).size["height"] > 200
    assert element(page, "#costs .point.main").is_displayed()


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
    for picture in elements(page, ".cell svg"):
        assert picture.size["height"] > 50


def test_nothing_is_loaded_and_nothing_hostile_has_run(page: webdriver.Chrome) -> None:
    assert page.execute_script("return performance.getEntriesByType('resource')") == []
    assert page.execute_script("return window.hacked") is None
    assert "<script>window.hacked" in element(page, 'tr[data-method="saliency"]').text


def table(page: webdriver.Chrome, index: int) -> dict[str, list[Any]]:
    """Numbers of a column from top to bottom, None where there is none; every column's order."""
    found: dict[str, list[Any]] = page.execute_script(
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
    return found


def test_a_click_on_a_heading_sorts_and_another_sorts_the_other_way(
    page: webdriver.Chrome,
) -> None:
    buttons = elements(page, "#results thead tr:last-child th button")
    assert len(buttons) > 10
    for index, button in enumerate(buttons[1:], start=1):
        directions = set()
        for _ in range(2):
            button.click()
            found = table(page, index)
            numbers = [value for value in found["values"] if value is not None]
            direction = found["orders"].pop(index)
            assert numbers == sorted(numbers, reverse=direction == "descending")
            # What is missing stays last.
            assert found["values"][: len(numbers)] == numbers
            assert set(found["orders"]) == {"none"}
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
                    f"{100 * numbers['boxes']['accuracy_at_0.2']:.1f}"
                )


def test_headings_are_reached_and_pressed_with_the_keyboard(page: webdriver.Chrome) -> None:
    button = element(page, "#results thead tr:last-child th:nth-child(3) button")
    page.execute_script("arguments[0].focus()", button)
    button.send_keys("\ue007")
    heading = element(page, "#results thead tr:last-child th:nth-child(3)")
    assert heading.get_attribute("aria-sort") == "descending"


def test_a_click_in_the_legend_switches_a_line_off_and_on(page: webdriver.Chrome) -> None:
    button = legend(page, "ours_recommended")
    assert line(page, "ours_recommended").is_displayed()
    for shown in (False, True):
        button.click()
        ActionChains(page).move_to_element(element(page, "h1")).perform()
        assert line(page, "ours_recommended").is_displayed() is shown
        assert button.get_attribute("aria-pressed") == str(shown).lower()


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("all", lambda highlighted: True),
        ("none", lambda highlighted: False),
        ("some", lambda highlighted: highlighted),
    ],
)
def test_all_lines_none_or_the_highlights_can_be_shown(
    page: webdriver.Chrome, which: str, expected: Callable[[bool], bool]
) -> None:
    button = element(page, f'[data-show="{"all" if which == "none" else "none"}"]')
    button.click()
    element(page, f'[data-show="{which}"]').click()
    for entry in elements(page, ".legend li button"):
        highlighted = entry.get_attribute("data-highlighted") is not None
        method = str(entry.get_attribute("data-method"))
        assert line(page, method).is_displayed() is expected(highlighted)


def test_the_legend_reads_the_curves_off_under_the_pointer(
    page: webdriver.Chrome, shared_results: dict[str, Any]
) -> None:
    curve = shared_results["summary"]["layer_grad_cam"]["boxes"]["accuracy_curve"]

    def value() -> str:
        return legend(page, "layer_grad_cam").find_element(By.CSS_SELECTOR, ".value").text

    assert value() == f"{100 * curve[19]:.1f}"
    chart = element(page, "#curves")
    ActionChains(page).move_to_element_with_offset(chart, 60, 0).perform()
    tau = float(element(page, "#tau").text.removeprefix("τ = "))
    left, right = (float(str(chart.get_attribute(f"data-{side}"))) for side in ("left", "right"))
    pointer = WIDTH * (0.5 + 60 / chart.size["width"])
    assert tau == pytest.approx((pointer - left) / (right - left), abs=0.008)
    assert value() == f"{100 * curve[round(100 * tau) - 1]:.1f}"
    ActionChains(page).move_to_element(element(page, "h2")).perform()
    assert element(page, "#tau").text == "τ = 0.20"
    assert value() == f"{100 * curve[19]:.1f}"


def test_pointing_at_a_method_of_the_cost_chart_names_it(page: webdriver.Chrome) -> None:
    tip = element(page, "#tip")
    assert not tip.is_displayed()
    point = element(page, '#costs .point[data-method="occlusion"] .target')
    ActionChains(page).scroll_to_element(element(page, "#costs")).move_to_element(point).perform()
    assert tip.is_displayed()
    assert tip.text.startswith("Occlusion")
    assert "times the forward pass" in tip.text
    assert "lit" in str(line(page, "occlusion").get_attribute("class"))


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
    for selector in ("body", ".lead", "nav a", ".tile.main b", "#results small", ".legend .value"):
        text = luminance(page, selector, "color")
        brighter, darker = max(text, background), min(text, background)
        assert (brighter + 0.05) / (darker + 0.05) >= 4.5, selector


def test_it_fits_a_phone(page: webdriver.Chrome) -> None:
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= 390
        assert element(page, "#curves").size["width"] > 250
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def removal_line(page: webdriver.Chrome, kind: str, method: str) -> WebElement:
    return element(page, f'.removal svg[data-kind="{kind}"] .series[data-method="{method}"]')


def removal_values(page: webdriver.Chrome, method: str) -> list[str]:
    button = element(page, f'.removal button[data-method="{method}"]')
    return [value.text for value in button.find_elements(By.CSS_SELECTOR, ".value")]


def test_a_report_without_faithfulness_has_no_such_panel(page: webdriver.Chrome) -> None:
    assert not elements(page, ".removal")
    assert not elements(page, "#section-faithfulness")


def test_deletion_and_insertion_stand_side_by_side(faithful: webdriver.Chrome) -> None:
    first, second = (panel.rect for panel in elements(faithful, ".removal > svg"))
    assert first["y"] == second["y"]
    assert first["x"] + first["width"] < second["x"]
    assert min(first["width"], second["width"]) > 300
    for panel in elements(faithful, ".removal > svg"):
        assert "is better" in panel.find_element(By.CSS_SELECTOR, ".heading").text
    assert "random order" in element(faithful, "#section-faithfulness").text


def test_one_click_switches_a_method_in_all_charts_and_legends(faithful: webdriver.Chrome) -> None:
    entries = elements(faithful, '.legend button[data-method="eigen_cam"]')
    assert len(entries) == 2
    for clicked, shown in ((entries[1], False), (entries[0], True)):
        clicked.click()
        ActionChains(faithful).move_to_element(element(faithful, "h1")).perform()
        for kind in ("deletion", "insertion"):
            assert removal_line(faithful, kind, "eigen_cam").is_displayed() is shown
        assert line(faithful, "eigen_cam").is_displayed() is shown
        assert {e.get_attribute("aria-pressed") for e in entries} == {str(shown).lower()}


def test_deletion_and_insertion_are_read_off_at_the_share_under_the_pointer(
    faithful: webdriver.Chrome, faithful_results: dict[str, Any]
) -> None:
    found = faithful_results["summary"]["saliency"]["faithfulness"]
    areas = [f"{found[kind]:.3f}" for kind in ("deletion", "insertion")]
    assert removal_values(faithful, "saliency") == areas
    panel = elements(faithful, ".removal > svg")[1]
    ActionChains(faithful).scroll_to_element(panel).perform()
    expected = [f"{found[f'{kind}_curve'][3]:.3f}" for kind in ("deletion", "insertion")]
    # At 29% and at 32% the nearest measured share is 30%.
    for aside in (-0.16, -0.132):
        ActionChains(faithful).move_to_element_with_offset(
            panel, round(aside * panel.size["width"]), 0
        ).perform()
        assert element(faithful, "#share").text == "at 30% of the pixels"
        assert removal_values(faithful, "saliency") == expected
    for crosshair in elements(faithful, ".removal .crosshair"):
        assert crosshair.get_attribute("visibility") == "visible"
    ActionChains(faithful).move_to_element(element(faithful, "h1")).perform()
    assert element(faithful, "#share").text == "area under the curve"
    assert removal_values(faithful, "saliency") == areas
    # The other chart's legend keeps its own numbers.
    assert legend(faithful, "saliency").find_element(By.CSS_SELECTOR, ".value").text == (
        f"{100 * faithful_results['summary']['saliency']['boxes']['accuracy_at_0.2']:.1f}"
    )


@pytest.mark.parametrize("width", [390, 1000])
def test_deletion_and_insertion_fit_narrow_pages(faithful: webdriver.Chrome, width: int) -> None:
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    faithful.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert faithful.execute_script("return document.documentElement.scrollWidth") <= width
        first, second = (panel.rect for panel in elements(faithful, ".removal > svg"))
        assert (first["y"] < second["y"]) is (width == 390), "one above the other on a phone"
        assert first["width"] > 250
        for value in elements(faithful, ".removal .value"):
            assert value.rect["x"] + value.rect["width"] <= width
    finally:
        faithful.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
