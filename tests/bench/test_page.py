"""A benchmark's page: every number as in the JSON, everything escaped, the same bytes each time, and no part promised that is not there."""

from __future__ import annotations

import base64
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from bench_support import HOSTILE, is_rounded, number_at, report, shown_numbers

from fastcnn.bench.records.load import parse_result, read_result
from fastcnn.bench.records.result import BenchmarkReport, Status
from fastcnn.bench.views import plots, units
from fastcnn.bench.views.page import make_page, write_page
from fastcnn.bench.views.tables import to_json

STORED = sorted((Path(__file__).parents[2] / "bench" / "results").glob("*.json"))
VOID = {"meta", "link", "br", "img", "input", "hr"}


def _page(made: BenchmarkReport) -> str:
    return make_page(parse_result(to_json(made) + "\n", "result.json"))


@pytest.fixture(scope="module")
def page() -> str:
    return _page(report())


def _headline(html: str) -> str:
    found = re.search(r"<h1>(.*?)</h1>", html, re.DOTALL)
    assert found is not None
    return re.sub(r"<[^>]+>", "", found[1])


class _Checker(HTMLParser):
    """Elements that are open, which must close in order; ids, references and links."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"{name} on {tag}"
            if name == "id":
                self.ids.append(str(value))
            if name in ("href", "src", "xlink:href", "srcset"):
                self.links.append(str(value))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_well_formed_and_reaches_for_nothing(page: str) -> None:
    checker = _Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert len(set(checker.ids)) == len(checker.ids)
    assert not {"script", "iframe", "object", "embed", "form"} & set(checker.tags)
    assert {"figure", "figcaption", "svg", "title", "table", "main", "h1"} <= set(checker.tags)
    for link in checker.links:
        assert link.startswith(("data:", "#")), link
        assert not link.startswith("#") or link[1:] in checker.ids
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(checker.ids)
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_every_number_is_the_one_in_the_file(page: str) -> None:
    data = json.loads(to_json(report()))
    numbers = shown_numbers(page)
    for shown in numbers:
        value = number_at(data, shown.path)
        if shown.value is not None:
            assert float(shown.value) == value, shown
        assert is_rounded(shown.text, value * (100 if shown.path.endswith("share") else 1)), shown
    paths = {shown.path for shown in numbers}
    for g, group in enumerate(data["groups"]):
        for r, row in enumerate(group["rows"]):
            if row["status"] == "timed":
                figures = (
                    "seconds.p50",
                    "seconds.p99",
                    "images_per_second",
                    "ratio.value",
                    "setup_seconds",
                    "cold_start_seconds",
                    "peak_memory_bytes",
                )
                assert {f"groups.{g}.rows.{r}.{name}" for name in figures} <= paths
        assert f"groups.{g}.ladder.2.seconds.p50" in paths
        assert f"groups.{g}.roofline.39.flops" in paths
        assert f"groups.{g}.roofline_total.share" in paths
    assert "ceilings.copy_bytes_per_second" in paths


def test_the_result_file_rides_along_to_the_byte(page: str) -> None:
    carried = re.search(r'href="data:application/json;base64,([^"]+)" download="result.json"', page)
    assert carried is not None
    assert base64.b64decode(carried[1]).decode() == to_json(report()) + "\n"


def test_hostile_names_are_shown_and_not_obeyed(page: str) -> None:
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;&#34;&#39;`%{{ 7*7 }}#" in page
    assert "49" not in _headline(page)
    made = report((1,))
    made.groups[0].model = made.groups[0].rows[0].name = made.environment["cpu"]["model"] = made.environment["date"] = HOSTILE  # type: ignore[index]
    hostile = _page(made)
    checker = _Checker()
    checker.feed(hostile)
    assert "script" not in checker.tags
    assert checker.open == []


def test_same_result_gives_the_same_bytes(page: str, tmp_path: Path) -> None:
    assert _page(report()) == page
    write_page(report(), tmp_path / "result.html")
    assert (tmp_path / "result.html").read_text() == page
    assert [file.name for file in tmp_path.iterdir()] == ["result.html"]


def test_page_of_a_stored_file_is_that_of_the_run(page: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(to_json(report()) + "\n")
    assert make_page(read_result(path)) == page


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_committed_results_make_a_page(path: Path) -> None:
    result = read_result(path)
    html = make_page(result)
    numbers = shown_numbers(html)
    assert len(numbers) > 200
    for shown in numbers:
        assert is_rounded(shown.text, number_at(result.data, shown.path) * (100 if shown.path.endswith("share") else 1)), shown


def test_parts_that_were_not_measured_are_named_once() -> None:
    html = _page(report(everything=False))
    for said in ("Cold start was not measured", "Peak memory was not measured", "The ladder of techniques was not measured", "The roofline was not"):
        assert html.count(said) == 1
    assert ">Set-up<" in html
    assert ">Roofline" not in html


@pytest.mark.parametrize(
    ("slower", "said"),
    [
        (1.0, "fastcnn is the fastest, 1.11× the speed of openvino, the best peer (95\u00a0% interval 1."),
        (1.12, "fastcnn is level with openvino, the best peer, at "),
        (1.25, "openvino is the fastest; fastcnn has 0."),
    ],
)
def test_headline_claims_no_more_than_the_interval_allows(slower: float, said: str) -> None:
    assert said in _headline(_page(report((1,), rounds=12, everything=False, slower=slower)))


def test_headline_without_interval_baseline_or_times() -> None:
    few = _headline(_page(report((1,), rounds=2, everything=False)))
    assert "interval" not in few
    alone = report((1,), everything=False)
    alone.groups[0].rows = alone.groups[0].rows[:1]
    alone.groups[0].finish("best-peer")
    assert "fastcnn takes" in _headline(_page(alone))
    broken = report((1,), everything=False)
    for row in broken.rows():
        row.status, row.reason, row.rounds, row.ratio = Status.FAILED, "RuntimeError: no", [], None
    html = _page(broken)
    assert _headline(html) == "No row was timed"
    assert html.count("RuntimeError: no") >= 5
    assert _headline(_page(BenchmarkReport({}, {}, []))) == "No row was timed"


def test_failed_absent_unsteady_and_interrupted_are_told() -> None:
    made = report((1,))
    made.groups[0].interrupted = True
    made.groups[0].requested_batch_size, made.groups[0].lowered_because = 2, "eager: OutOfMemoryError"
    html = _page(made)
    assert "onnxruntime: absent, onnxruntime is not installed" in html
    assert ": failed, computes something else" in html
    assert "eager was still getting faster when its warm-up ended" in html
    assert "The run was interrupted" in html
    assert "The batch size was lowered from 2 to 1: eager: OutOfMemoryError" in html


def test_three_batch_sizes_give_a_line_for_each_row() -> None:
    assert "Throughput by batch size" not in _page(report((1, 8), everything=False))
    html = _page(report((1, 4, 16), everything=False))
    assert "Throughput by batch size" in html
    assert "images per second by batch size" in html


def test_roofline_without_times_of_its_steps_says_so() -> None:
    from dataclasses import replace

    made = report((1,))
    steps = made.groups[0].roofline
    assert steps is not None
    made.groups[0].roofline = [replace(step, seconds=None, share=None) for step in steps]
    assert "hollow points were not timed apart" in _page(made)


def test_plot_is_alone_in_its_names_and_takes_the_colours_of_the_page() -> None:
    rows = [plots.Bar("a<b", 2.0, "x.0", 1.5, 2.5, emphasis=True), plots.Bar("c", 1.0, "x.1")]
    svg = plots.bars(rows, units.plain, "images/s", 'a "title" & more', key="k1")
    root = ET.fromstring(svg)
    texts = [element.text for element in root.iter() if element.tag.endswith("}text")]
    assert {"a<b", "c", "2.00", "1.00", "images/s"} <= set(texts)
    title = next(element for element in root if element.tag.endswith("}title"))
    assert (title.text, title.get("id")) == ('a "title" & more', root.get("aria-labelledby"))
    assert "var(--ours)" in svg
    assert "var(--peer)" in svg
    assert not re.search(r"#0102[0-9a-f]{2}", svg)
    assert "<style" not in svg
    assert all(element.get("id", "k1").startswith("k1") for element in root.iter())
    drawn = plots.coloured(svg, dict.fromkeys(plots.COLOURS.values(), "#abcdef"))
    assert "var(" not in drawn


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("torch_compile_max_autotune", ["torch_compile_max_autotune"]),
        ("fastcnn_file_onnxruntime_cuda", ["fastcnn_file_onnxruntime_", "cuda"]),
        ("weights and activations channels_last", ["weights and activations", "channels_last"]),
        ("bias, residual add and ReLU in the convolution's kernel and more", ["bias, residual add and", "ReLU in the …"]),
        ("x" * 90, ["x" * 25 + "…"]),
        ("", [""]),
    ],
)
def test_long_names_stand_in_two_lines(name: str, lines: list[str]) -> None:
    svg = plots.bars([plots.Bar(name, 1.0, "x.0")], units.plain, "ms", "title", key="k")
    texts = [element.text or "" for element in ET.fromstring(svg).iter() if element.tag.endswith("}text")]
    assert not [line for line in lines if line and line not in texts]


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [
        (units.digits, 9.996, "10.0"),
        (units.digits, 0.0, "0"),
        (units.digits, 1234567.0, "1,234,567"),
        (units.milliseconds, 0.0316314, "31.6"),
        (units.seconds, 0.0316314, "31.6\u202fms"),
        (units.seconds, 0.9999, "1.00\u202fs"),
        (units.seconds, 61.2, "61.2\u202fs"),
        (units.seconds, 3.2e-6, "3.20\u202fµs"),
        (units.memory, 2**30, "1.00\u202fGiB"),
        (units.volume, 1.5e6, "1.50\u202fMB"),
        (units.rate, 4.76e11, "476\u202fGFLOP/s"),
        (units.bandwidth, 2.2e10, "22.0\u202fGB/s"),
        (units.ratio, 1.0446, "1.04×"),
        (units.bound, 0.9966, "0.997"),
        (units.bound, 0.99996, "0.99996"),
        (units.bound, 1.12, "1.12"),
        (units.error, 8.56e-7, "8.6e-7"),
        (units.share, 0.873, "87\u202f%"),
    ],
)
def test_figures_for_people(unit: units.Unit, value: float, text: str) -> None:
    assert unit(value) == text


def test_dates_in_words() -> None:
    assert units.day("2026-03-04T05:06:07+00:00") == "4 March 2026"
    assert units.day("yesterday") == units.day(None) == ""
