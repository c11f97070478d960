"""A benchmark's page in headless Chromium, on a desktop's and a phone's width, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench_support import ShownNumber, is_rounded, number_at, report
from browser import CHROMIUM, Browser

from fastcnn.bench.records.load import StoredResult, parse_result, read_result
from fastcnn.bench.views.page import make_page
from fastcnn.bench.views.tables import to_json

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian's package is chromium)")


STORED = sorted((Path(__file__).parents[3] / "bench" / "results").glob("*.json"))


# What lies beyond the right edge (tables scroll within themselves), text of plots that is cut off, and the colours in use.
LOOK = """(() => {
  document.querySelectorAll("details").forEach(part => part.open = true);
  const box = element => element.getBoundingClientRect();
  const scrolls = element => element.closest(".scroll table, svg *") !== null;
  const outside = (text, plot) =>
    text.left < plot.left - 1 || text.right > plot.right + 1 || text.top < plot.top - 1 || text.bottom > plot.bottom + 1;
  const beyond = element => !scrolls(element) && box(element).right > innerWidth + 0.5;
  const scale = matrix => Math.hypot(matrix.a, matrix.b);
  const texts = [...document.querySelectorAll("svg text")];
  return {
    width: innerWidth,
    page: document.documentElement.scrollWidth,
    wide: [...document.querySelectorAll("body *")].filter(beyond).map(element => element.outerHTML),
    cut: texts.filter(text => outside(box(text), box(text.closest("svg")))).map(text => text.textContent),
    smallest: Math.min(...texts.map(text => parseFloat(getComputedStyle(text).fontSize) * scale(text.getScreenCTM()))),
    background: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(texts[0]).fill,
  };
})()"""


NUMBERS = """[...document.querySelectorAll("[data-path]")].map(
  element => [element.textContent.trim(), element.getAttribute("value"), element.dataset.path])"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def made() -> StoredResult:
    return parse_result(to_json(report()), "result.json")


@pytest.fixture(scope="module")
def page(made: StoredResult, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "result.html"
    path.write_text(make_page(made), encoding="utf-8")
    return path.as_uri()


def _look(browser: Browser, url: str, width: int, dark: bool = False) -> dict[str, Any]:
    browser.open(url, width, dark=dark)
    seen: dict[str, Any] = browser.evaluate(LOOK)
    return seen


def _check_numbers(browser: Browser, result: StoredResult) -> None:
    numbers = [ShownNumber(*found) for found in browser.evaluate(NUMBERS)]
    assert len(numbers) > 200
    for shown in numbers:
        value = number_at(result.data, shown.path)
        assert shown.value is None or float(shown.value) == value, shown
        assert is_rounded(shown.text, value * (100 if shown.path.endswith("share") else 1)), shown


def test_problems_would_be_noticed(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text(
        "<!doctype html><svg width=100 height=20><text x=90 y=15>cut off</text></svg><div style='width: 3000px'>wide</div>"
        "<script>console.error('oh'); nothing()</script><img src=missing.png>"
    )
    seen = _look(browser, path.as_uri(), 1280)
    assert seen["page"] > 1280
    assert len(seen["wide"]) == 1
    assert seen["cut"] == ["cut off"]
    assert any("oh" in text for text in browser.complaints)
    assert len(browser.complaints) >= 2
    assert any(url.endswith("missing.png") for url in browser.requested)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_page_fits_is_silent_and_shows_the_numbers_of_the_file(browser: Browser, made: StoredResult, page: str, width: int, dark: bool) -> None:
    seen = _look(browser, page, width, dark)
    assert browser.complaints == []
    assert [url for url in browser.requested if not url.startswith("data:")] == [page]
    assert seen["width"] == width
    assert seen["page"] <= width
    assert seen["wide"] == []
    assert seen["cut"] == []
    assert seen["smallest"] >= 8.5  # pixels
    _check_numbers(browser, made)


def test_colours_follow_the_theme(browser: Browser, page: str) -> None:
    light, dark = (_look(browser, page, 400, dark) for dark in (False, True))
    assert light["background"] != dark["background"]
    assert light["ink"] != dark["ink"]


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_committed_results_fit_a_phone(browser: Browser, tmp_path: Path, path: Path) -> None:
    result = read_result(path)
    target = tmp_path / "page.html"
    target.write_text(make_page(result), encoding="utf-8")
    seen = _look(browser, target.as_uri(), 400)
    assert (browser.complaints, seen["wide"], seen["cut"]) == ([], [], [])
    assert seen["page"] <= 400
    _check_numbers(browser, result)
