"""The page of a front in a real browser: it is picked from with one look, and asks no network for anything."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from nas.report.page import page, write_page

RECORDED = Path(__file__).parents[2] / "benchmarks" / "results" / "real-edge.json"
LIMIT_BYTES = 2_000_000


@pytest.fixture
def front() -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads(RECORDED.read_text())
    return recorded


def opened(browser: Chrome, path: Path, width: int = 1280, height: int = 800) -> Chrome:
    browser.get("about:blank")
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri())
    return browser


def found(browser: Chrome, css: str) -> list[WebElement]:
    elements: list[WebElement] = browser.find_elements(By.CSS_SELECTOR, css)
    return elements


def names(browser: Chrome, css: str = "#models tbody tr") -> list[str]:
    return [str(row.get_attribute("data-model")).split("/")[-1] for row in found(browser, css)]


def test_a_slider_greys_out_what_breaks_its_limit(browser: Chrome, front: dict[str, Any], tmp_path: Path) -> None:
    opened(browser, write_page([front], tmp_path / "front.html"))
    assert not found(browser, "tr.out")
    slider = browser.find_element(By.ID, "latency-slider")
    slider.send_keys(Keys.HOME)
    for _ in range(60):
        slider.send_keys(Keys.ARROW_RIGHT)
    limit = float(str(browser.find_element(By.ID, "latency-limit").get_attribute("value")))
    models = [*front["members"], *front["references"]]
    expected = {model["name"] for model in models if model["latency_ms"] > limit}
    assert 0 < len(expected) < len(models)
    assert set(names(browser, "#models tr.out")) == set(names(browser, "#charts g[aria-label=dot] > .out")) == expected
    fit = sum(member["latency_ms"] <= limit for member in front["members"])
    assert f"{fit} of {len(front['members'])} members fit" in browser.find_element(By.ID, "count").text
    slider.send_keys(Keys.END)
    assert not found(browser, "tr.out")


def test_a_typed_limit_counts_as_well(browser: Chrome, front: dict[str, Any], tmp_path: Path) -> None:
    opened(browser, write_page([front], tmp_path / "front.html"))
    browser.find_element(By.ID, "accuracy-limit").send_keys("90")
    browser.find_element(By.ID, "params-limit").send_keys("1")
    models = [*front["members"], *front["references"]]
    fit = [m["name"] for m in models if m["scores"]["test_keyword_error"] <= 10 and m["params"] <= 1e6]
    assert fit and names(browser, "#models tr:not(.out)[data-model]") == fit


def test_the_targets_limits_are_set_from_the_beginning(browser: Chrome, front: dict[str, Any], tmp_path: Path) -> None:
    front["target"]["max_latency_ms"] = 1.0
    opened(browser, write_page([front], tmp_path / "front.html"))
    slow = {model["name"] for model in front["members"] + front["references"] if model["latency_ms"] > 1}
    assert slow and set(names(browser, "#models tr.out")) == slow


def test_a_chosen_model_that_breaks_a_limit_says_so_and_limits_are_lifted(
    browser: Chrome, front: dict[str, Any], tmp_path: Path
) -> None:
    opened(browser, write_page([front], tmp_path / "front.html"))
    reset, card = browser.find_element(By.ID, "reset"), browser.find_element(By.ID, "card")
    assert not reset.is_displayed() and "breaks" not in card.text
    browser.find_element(By.ID, "params-limit").send_keys("0.2")  # million; the knee has more
    assert "It breaks your limits" in card.text
    reset.click()
    assert "breaks" not in card.text and not found(browser, "tr.out") and not reset.is_displayed()


def test_the_table_sorts_both_ways(browser: Chrome, front: dict[str, Any], tmp_path: Path) -> None:
    opened(browser, write_page([front], tmp_path / "front.html"))
    by_eer = sorted(front["members"] + front["references"], key=lambda model: model["scores"]["test_eer"])
    for order in (by_eer, by_eer[::-1]):
        heads = WebDriverWait(browser, 60).until(lambda page: [b for b in found(page, "th button") if b.text.startswith("EER")])
        heads[0].click()
        assert names(browser) == [model["name"] for model in order]


def test_each_pair_of_objectives_has_a_chart_with_every_model_and_its_interval(
    browser: Chrome, front: dict[str, Any], tmp_path: Path
) -> None:
    opened(browser, write_page([front], tmp_path / "front.html"))
    charts = found(browser, "#charts svg")
    assert len(charts) == 3
    for chart in charts:
        models = len(front["members"] + front["references"])
        assert len(chart.find_elements(By.CSS_SELECTOR, "g[aria-label=dot] > *")) == models
        assert len(chart.find_elements(By.CSS_SELECTOR, "g[aria-label=rule] > *")) == 2 * models
    labels = " ".join(chart.text for chart in charts)
    assert all(label in labels for label in ("latency, ms", "keyword error, %", "equal error rate, %"))


def test_the_card_begins_with_the_knee_and_follows_a_click(browser: Chrome, front: dict[str, Any], tmp_path: Path) -> None:
    opened(browser, write_page([front], tmp_path / "front.html"))
    card, last = browser.find_element(By.ID, "card"), front["members"][-1]
    [knee] = [member["name"] for member in front["members"] if "knee" in member["aliases"]]
    assert knee in card.text and "knee" in card.text
    dot = found(browser, f"#charts g[aria-label=dot] > [data-model$='/{last['name']}']")[0]
    ActionChains(browser).move_to_element(dot).click().perform()
    accuracy = 100 - last["scores"]["test_keyword_error"]
    latency, params = f"{last['latency_ms']:.3g}", f"{last['params'] / 1e6:.2f} M params"
    for shown in (f"{last['name']} ", f"{accuracy:.1f} [", "against the teacher", "EER against BC-ResNet", latency, params):
        assert shown in card.text
    assert "measured" in card.text and "speechocean" in card.text
    assert f"srlnas export {last['run_id']} --name real-edge-{last['name']}" in card.text
    found(browser, "#models tr[data-model$='/teacher']")[0].click()
    assert "not in the registry" in card.text and not found(browser, "#copy")


def pasted(browser: Chrome) -> str:
    browser.execute_script("document.body.append(Object.assign(document.createElement('textarea'), {id: 'paste'}))")
    area = browser.find_element(By.ID, "paste")
    area.send_keys(Keys.CONTROL, "v")
    return str(area.get_attribute("value"))


def test_the_command_is_copied(browser: Chrome, front: dict[str, Any], tmp_path: Path) -> None:
    opened(browser, write_page([front], tmp_path / "front.html"))
    command = browser.find_element(By.ID, "command").text
    browser.find_element(By.ID, "copy").click()
    assert pasted(browser) == command


def test_it_works_in_a_sandboxed_frame(browser: Chrome, front: dict[str, Any], tmp_path: Path) -> None:
    write_page([front], tmp_path / "front.html")
    (tmp_path / "frame.html").write_text('<iframe sandbox="allow-scripts" src="front.html" width="1200" height="700"></iframe>')
    opened(browser, tmp_path / "frame.html")
    browser.switch_to.frame(0)
    command = browser.find_element(By.ID, "command").text
    browser.find_element(By.ID, "copy").click()
    assert browser.find_element(By.ID, "copy").text == "Copied" and len(found(browser, "#charts svg")) == 3
    assert pasted(browser) == command


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_it_fits_the_screen(browser: Chrome, front: dict[str, Any], tmp_path: Path, width: int, height: int) -> None:
    opened(browser, write_page([front], tmp_path / "front.html"), width, height)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    for part in ("#charts figure", "#card", "#limits input"):
        for element in found(browser, part):
            assert element.rect["x"] >= 0 and element.rect["x"] + element.rect["width"] <= width
    if width == 1280:
        assert all(part.rect["y"] + part.rect["height"] < height for part in found(browser, "#charts, #copy"))


def test_several_studies_are_laid_over_one_another_with_what_does_not_compare(
    browser: Chrome, front: dict[str, Any], tmp_path: Path
) -> None:
    other = copy.deepcopy(front) | {
        "study": "other",
        "machine": "another",
        "corpus": "another",
        "stage": "search",
        "split": "val",
    }
    opened(browser, write_page([front, other], tmp_path / "both.html"))
    assert len(names(browser)) == 2 * len(front["members"] + front["references"])
    warnings = browser.find_element(By.ID, "warnings").text
    assert "Latency and memory do not compare" in warnings and warnings.count("Scores do not compare") == 2
    found(browser, f"#models tr[data-model='other/{front['members'][0]['name']}']")[0].click()
    assert "srlnas search --resume other" in browser.find_element(By.ID, "card").text


def test_words_of_a_study_are_words_and_nothing_is_asked_of_a_network(
    browser: Chrome, front: dict[str, Any], tmp_path: Path
) -> None:
    evil = "</script><img src=http://127.0.0.1:9/x onerror='document.title=1'>{{page.js}}"
    front["notes"].append(evil)
    front["study"] = front["members"][0]["name"] = evil
    browser.get("about:blank")
    browser.get_log("browser")  # what pages before it complained of
    opened(browser, write_page([front], tmp_path / "front.html"))
    assert not found(browser, "img") and evil in browser.find_element(By.ID, "studies").text and evil in browser.title
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_a_page_is_small_and_a_study_is_shown_once(front: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot write"):
        write_page([front], tmp_path / "nowhere" / "front.html")
    assert len(page([front]).encode()) < LIMIT_BYTES / 2
    with pytest.raises(ValueError, match="real-edge was given more than once"):
        page([front, front])


def test_a_search_without_candidates_has_a_page(browser: Chrome, front: dict[str, Any], tmp_path: Path) -> None:
    front |= {"members": [], "references": [], "stage": "search", "split": "val"}
    opened(browser, write_page([front], tmp_path / "front.html"))
    assert "No candidate has finished yet" in browser.find_element(By.ID, "count").text
