"""A benchmark's page: every number as in the JSON, everything escaped, the same bytes each time, and no part promised that is not there."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from bench_support import HOSTILE, is_rounded, number_at, report, shown_numbers, with_precisions
from markupsafe import escape

from fastcnn.bench.records.load import parse_result, read_result
from fastcnn.bench.records.result import BenchmarkReport, Status
from fastcnn.bench.records.rows import ROWS
from fastcnn.bench.views.page import make_page, write_page
from fastcnn.bench.views.tables import to_json

STORED = sorted((Path(__file__).parents[3] / "bench" / "results").glob("*.json"))
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


def test_row_fastcnn_stands_for_us_wherever_it_has_a_time() -> None:
    """Not whichever of our rows was the fastest at that batch size: the reader would compare two different things."""

    def names(made: BenchmarkReport) -> list[str]:
        cards = re.findall(r'<a class="card".*?</a>', _page(made), re.DOTALL)
        return [re.search(r"<b>(.*?)</b>", card)[1] for card in cards]  # type: ignore[index]

    made = report((1, 8), everything=False, slower=1.5)
    assert [next(row.name for row in group.rows if row.ours) for group in made.groups] == ["fastcnn_torch"] * 2  # the fastest
    assert names(made) == ["fastcnn"] * 2
    for group in made.groups:
        group.rows = [row for row in group.rows if row.name != "fastcnn"]
    assert names(made) == ["fastcnn_torch"] * 2


def test_words_are_explained() -> None:
    html = _page(report((1, 8), everything=False))
    assert f"<dt>openvino</dt><dd>{escape(ROWS['openvino'])}</dd>" in html
    assert "<dt>offline</dt><dd>whole batches, one after the other</dd>" in html
    assert "<dt>onnxruntime</dt>" not in html  # absent from this run


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


def test_precisions_stand_side_by_side_where_there_are_several(page: str) -> None:
    assert "→" not in re.sub(r"<title>.*?</title>", "", page)
    several = _page(with_precisions(report((1,), everything=False)))
    assert "float32 → bfloat16 → INT8: the fastest row in each. Speed: times as fast as openvino." in several
    table = several[several.index("float32 → bfloat16") :].partition("</table>")[0]
    assert all(name in table for name in ("fastcnn_bf16_openvino", "fastcnn_int8_openvino"))
    assert "fastcnn_int8_onnxruntime" not in table
    assert shown_numbers(several)
