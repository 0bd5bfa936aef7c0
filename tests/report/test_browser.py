"""The report in headless Chromium: nothing in the console, and what its buttons, boxes and tables do."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankpo.report.page import Content, render
from rankpo.report.runs import open_runs
from tests.browser import Page
from tests.report.world import QUERIES, Corpus, Preferences, write_world


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of four runs, open in a browser of 1,280 pixels."""
    root = tmp_path_factory.mktemp("report")
    runs = open_runs([str(folder) for folder in write_world(root)])
    path = root / "report.html"
    path.write_text(render(Content(title="Four runs", runs=runs, datasets=[Corpus(), Preferences()])))
    with Page(root / "profile") as page:
        page.address = f"file://{path}"
        yield page


@pytest.fixture(autouse=True)
def fresh(page: Page):
    """Every test opens the page anew, with no theme remembered, and leaves no error in the console."""
    page.open(page.address)
    page.js("localStorage.clear()")
    page.open(page.address)
    yield
    assert page.errors == []


def column(page: Page, table: str, number: int) -> list[str]:
    return page.js(f"[...document.querySelectorAll('{table} tbody tr')].map(row => row.cells[{number}].textContent)")


def test_errors_are_noticed(page):
    """The two below would show in `errors`: a check of the check."""
    page.js(
        "console.error('x'); setTimeout(() => { throw new Error('y') }); fetch('https://example.org/z').catch(() => 0)"
    )
    page.wait("new Promise(done => setTimeout(() => done(true), 300))")
    noted, page.errors = page.errors, []
    assert any('"x"' in error for error in noted) and any("Error: y" in error for error in noted)
    assert any("Content Security Policy" in error for error in noted), "the page may load nothing"


def test_nothing_is_wider_than_the_page_and_charts_are_large(page):
    assert page.js("document.documentElement.scrollWidth") <= 1280
    wide = "[...document.querySelectorAll('table')].filter(t => t.scrollWidth > t.parentElement.clientWidth + 1).length"
    assert page.js(wide) == 0
    widths = page.js("[...document.querySelectorAll('svg.chart')].map(chart => chart.getBoundingClientRect().width)")
    assert len(widths) == 3 and min(widths) >= 600 and max(widths) >= 1200


def test_a_click_on_a_head_sorts(page):
    """nDCG: stage one .9, plain .3, replayed .9; names by letters; a second click turns the order round."""
    table = "#evaluation table:first-of-type"
    names = column(page, table, 0)
    page.click(f"{table} th:nth-child(2) button")
    assert column(page, table, 0)[-1].startswith("plain")
    assert page.js(f"document.querySelector('{table} th:nth-child(2)').ariaSort") == "descending"
    page.click(f"{table} th:nth-child(2) button")
    assert column(page, table, 0)[0].startswith("plain")
    page.click(f"{table} th:nth-child(1) button")
    assert column(page, table, 0) == sorted(names)
    assert page.js(f"document.querySelectorAll('{table} [aria-sort]').length") == 1


def test_the_legend_hides_a_run_in_all_charts(page):
    visible = "[...document.querySelectorAll('.series[data-key=g1]')].filter(s => getComputedStyle(s).display !== 'none').length"
    assert page.js(visible) == 3  # the frontier, the loss, the evaluation
    page.click("#training .legend button[data-key=g1]")
    assert page.js(visible) == 0
    pressed = "[...document.querySelectorAll('.legend button[data-key=g1]')].map(b => b.ariaPressed)"
    assert page.js(pressed) == ["false", "false"], "both legends know it"
    page.click("#summary .legend button[data-key=g1]")
    assert page.js(visible) == 3


def test_a_run_has_one_colour_in_all_charts(page):
    colours = page.js(
        "[...document.querySelectorAll('.series[data-key=g1], .legend button[data-key=g1]')].map(s => getComputedStyle(s)"
        ".getPropertyValue('--c'))"
    )
    assert len(colours) == 5 and len(set(colours)) == 1
    assert (
        len(set(page.js("[...document.querySelectorAll('.legend button')].map(b => b.style.getPropertyValue('--c'))")))
        == 3
    )


def test_the_theme_follows_the_system_and_the_button(page):
    ground = "getComputedStyle(document.body).backgroundColor"
    page.prefer("dark")
    assert page.js(ground) == "rgb(21, 25, 29)"
    page.prefer("light")
    assert page.js(ground) == "rgb(255, 255, 255)"
    page.click("#theme")
    page.click("#theme")
    assert page.js("document.getElementById('theme').textContent") == "Theme: dark"
    assert page.js(ground) == "rgb(21, 25, 29)"
    page.open(page.address)
    assert page.js(ground) == "rgb(21, 25, 29)", "the choice is remembered"


def test_search_finds_queries(page):
    entries = "[...document.querySelectorAll('#query-list button')].map(b => b.dataset.query)"
    assert sorted(page.js(entries)) == ["q1", "q2", "q3"]
    page.write("#query-search", "WELDER")
    assert (
        page.js(entries) == ["q2"] and page.js("document.querySelector('#query-count').textContent") == "1 of 3 queries"
    )
    assert page.js("document.querySelector('.query').firstChild.textContent") == QUERIES["q2"], (
        "shown as text, not as HTML"
    )
    page.write("#query-search", "no such words")
    assert page.js("document.querySelector('#query-detail').textContent") == "No query matches."
    page.write("#query-search", "")
    assert len(page.js(entries)) == 3


def test_hits_stand_side_by_side(page):
    """Query 1 by stage one: d1, d3, d2; by plain: d2, d3, d1. The judge prefers d1 to d3 and d3 to d2."""
    page.click("#query-list button[data-query=q1]")
    sides = {
        when: page.js(f"[...document.querySelectorAll('[data-side={when}] li')].map(item => item.innerText)")
        for when in ("before", "after")
    }
    assert [text.split()[0] for text in sides["before"]] == ["1", "2", "3"]
    order = "[...document.querySelectorAll('[data-side=after] li')].map(item => item.dataset.document)"
    assert page.js(order) == ["d2", "d3", "d1"]
    assert (
        "now 3 ▼2" in sides["before"][0]
        and "grade 2" in sides["before"][0]
        and "judge: preferred 1 ×" in sides["before"][0]
    )
    assert "was 3 ▲2" in sides["after"][0] and "not relevant" in sides["after"][0]
    assert "same rank" in sides["after"][1] and "judge: not preferred 1 ×" in sides["after"][1]
    text = page.js("document.querySelector('#query-detail').innerText")
    assert "before 2 of 2, after 0 of 2" in text
    marks = page.js("[...document.querySelectorAll('[data-side=before] li:first-child mark')].map(m => m.textContent)")
    assert marks == ["nurse", "Basel"], "whole words of the query; 'in' is too short"
    assert page.js("[...document.querySelectorAll('[data-document=d3] mark')].length") == 0, "Nursing is another word"
    assert "<script>alert(1)</script>" in sides["before"][1], "texts are shown as they are"


def test_models_and_order_are_chosen(page):
    choose = (
        "(() => {{ const select = [...document.querySelectorAll('.controls select')][{0}]; select.value = '{1}';"
        " select.dispatchEvent(new Event('change')); }})()"
    )
    page.js(choose.format(1, 2))  # after: replayed
    page.js(choose.format(3, "loss"))
    assert page.js("[...document.querySelectorAll('#query-list button')].map(b => b.dataset.query)") == [
        "q3",
        "q2",
        "q1",
    ]
    page.click("#query-list button[data-query=q1]")
    assert page.js("document.querySelector('[data-side=after]').innerText").startswith("replayed")
    gone = page.js("document.querySelector('[data-side=before] [data-document=d2]').innerText")
    assert "no longer in the list" in gone


def test_the_pointer_shows_values(page):
    box = page.js(
        "(() => { const b = document.querySelector('.charts svg').getBoundingClientRect(); return [b.x, b.y, b.width, b.height] })()"
    )
    x, y, width, height = box
    page.js(f"window.scrollTo(0, {y - 100})")
    top = page.js("document.querySelector('.charts svg').getBoundingClientRect().y")
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + width * 0.9, y=top + height / 2)
    page.wait("!document.getElementById('tip').hidden")
    text = page.js("document.getElementById('tip').innerText")
    assert "update 2" in text and "stage_one 1\n" in text and "plain 0.65\n" in text  # the mean of .6 and .7


def test_keyboard_reaches_everything(page):
    """All that can be clicked is a button, link, field or summary, with a name."""
    nameless = page.js(
        "[...document.querySelectorAll('button, a, input, select')].filter(e => !(e.innerText || e.labels?.length)).length"
    )
    assert nameless == 0
    page.js("document.querySelector('#query-list button[data-query=q2]').focus()")
    page.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
    page.call("Input.dispatchKeyEvent", type="keyUp", key="Enter", code="Enter", windowsVirtualKeyCode=13)
    page.wait("document.querySelector('#query-list [aria-current]').dataset.query === 'q2'")


def test_a_narrow_window_does_not_scroll_sideways(page):
    page.resize(700, 900)
    assert page.js("document.documentElement.scrollWidth") <= 700
    page.resize(1280, 900)


def test_screenshots_show_more_than_ground(page, tmp_path: Path):
    page.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000  # an empty page of this size has about 6 kB
