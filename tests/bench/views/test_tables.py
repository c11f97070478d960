from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from bench_support import report as made_up_report
from bench_support import with_precisions
from rich.console import Console

from fastcnn.bench.records.result import BenchmarkReport, GroupResult, RowResult, Status, WarmUp, first_of_each_precision
from fastcnn.bench.records.rows import ROWS
from fastcnn.bench.views.tables import print_report, to_json, write_json
from fastcnn.errors import RequestError

STEADY = WarmUp(6, 0.1, 0.02, True)


def _report(**changes: Any) -> BenchmarkReport:
    rows = [
        RowResult("peer", False, Status.TIMED, None, 1.5, {"device": "CPU"}, 1e-6, STEADY, [[0.020, 0.022]] * 6),
        RowResult("broken", False, Status.FAILED, "computes something else: relative error 1.0e-03", 1.0),
        RowResult("gone", False, Status.ABSENT, "gone is not installed"),
        RowResult("ours", True, Status.TIMED, None, 9.5, {}, 2e-6, WarmUp(9, 10.2, 0.01, False), [[0.010, 0.011]] * 6),
    ]
    group = GroupResult("tiny", 4, (4, 3, 8, 8), "float32", "cpu", 1e-5, rows, **changes)
    group.finish("best-peer")
    place = {"cpu": {"model": "Abacus", "cores": 2}, "versions": {"torch": "2.11"}, "platform": "Linux", "load_average": 0.1}
    return BenchmarkReport(place, {"threads": 2}, [group])


def _text(report: BenchmarkReport, width: int = 160) -> str:
    screen = Console(file=io.StringIO(), width=width)
    print_report(report, screen)
    return screen.file.getvalue()  # type: ignore[attr-defined]


def test_table_has_the_fastest_on_top_and_every_other_row_with_its_reason() -> None:
    text = _text(_report())
    assert "Abacus, 2 cores, 2 threads" in text
    assert "tiny · 4×3×8×8 float32 · cpu · offline" in text
    lines = [line for line in text.splitlines() if line.startswith(("ours", "peer"))]
    assert [line.split()[0] for line in lines] == ["ours", "peer"]
    for cell in ("10.5 ms", "10.0 – 11.0", "381.0", "2.00×", "2.00 – 2.00", "2e-06", "9.5 s"):
        assert cell in lines[0]
    assert "1.00×" in lines[1]
    assert "times as fast as peer; 12 timed runs a row" in text
    assert "failed  broken: computes something else: relative error 1.0e-03" in text
    assert "absent  gone: gone is not installed" in text
    assert "ours was still getting faster after 10 s of warm-up" in text
    assert "interrupted" not in text
    assert "busy" not in text


def test_table_fits_a_narrow_terminal() -> None:
    report = _report()
    report.groups[0].rows[0].name = "torch_compile_freezing"
    text = _text(report, width=80)
    assert "…" not in text
    assert "set-up" not in text
    line, explained = [line for line in text.splitlines() if line.startswith("torch_compile_freezing")]
    assert explained.endswith(ROWS["torch_compile_freezing"])
    assert line.split()[1:] == ["10.5", "ms", "381.0", "2.00×", "2.00", "–", "2.00", "2e-06"]


def test_table_says_when_it_was_interrupted_or_the_machine_busy() -> None:
    report = _report(interrupted=True)
    report.environment["load_average"] = 1.7  # type: ignore[index]
    text = _text(report)
    assert "interrupted: the figures are of the rounds that were complete" in text
    assert "the machine was busy before the run (load average 1.7 on 2 cores)" in text


def test_words_of_the_table_are_explained_below_it() -> None:
    lines = _text(made_up_report((1, 8), everything=False)).splitlines()
    start = lines.index("what the words mean")
    said = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in lines[start + 1 :]}
    assert list(said) == ["eager", "torch_compile_freezing", "openvino", "fastcnn_torch", "fastcnn", "single-stream", "offline", "set-up"]
    assert said["fastcnn"] == ROWS["fastcnn"]
    assert "what the words mean" not in _text(_report())  # it has no row that is known


def test_few_rounds_say_why_there_is_no_interval() -> None:
    report = _report()
    for row in report.groups[0].rows:
        row.rounds = row.rounds[:2]
    report.groups[0].finish("best-peer")
    assert "intervals need at least 5 rounds" in _text(report)


def test_json_holds_every_sample_and_the_figures_of_the_table() -> None:
    data = json.loads(to_json(_report()))
    assert data["schema"] == "fastcnn-bench/2"
    assert data["interrupted"] is False
    (group,) = data["groups"]
    assert (group["model"], group["batch_size"], group["input_shape"], group["scenario"], group["baseline"]) == (
        "tiny",
        4,
        [4, 3, 8, 8],
        "offline",
        "peer",
    )
    rows = {row["name"]: row for row in group["rows"]}
    assert rows["ours"]["rounds"] == [[0.010, 0.011]] * 6
    assert rows["ours"]["seconds"]["p50"] == pytest.approx(0.0105)
    assert rows["ours"]["images_per_second"] == pytest.approx(4 / 0.0105)
    assert rows["ours"]["ratio"]["value"] == pytest.approx(2.0)
    assert rows["ours"]["warm_up"] == {"runs": 9, "seconds": 10.2, "seconds_per_run": 0.01, "steady": False}
    assert rows["peer"]["proof"] == {"device": "CPU"}
    assert (rows["gone"]["status"], rows["gone"]["reason"], rows["gone"]["seconds"]) == ("absent", "gone is not installed", None)
    assert rows["broken"]["status"] == "failed"


def test_json_has_null_where_there_is_no_number() -> None:
    report = _report()
    report.groups[0].rows[2].relative_error = math.nan
    assert "NaN" not in to_json(report)


def test_json_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    write_json(_report(), path)
    assert json.loads(path.read_text())["schema"]
    before = path.read_bytes()

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RequestError, match="No space"):
        write_json(_report(interrupted=True), path)
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]
    assert path.read_bytes() == before


def test_precisions_stand_side_by_side_where_there_are_several() -> None:
    report = with_precisions(made_up_report((1,), everything=False))
    lines = _text(report).splitlines()
    start = lines.index("precision: float32 → bfloat16 → INT8")
    table = [line.split() for line in lines[start + 2 : start + 5]]
    assert [line[:2] for line in table] == [["float32", "fastcnn"], ["bfloat16", "fastcnn_bf16_openvino"], ["INT8", "fastcnn_int8_openvino"]]
    rows = {row.name: row for row in report.groups[0].rows}
    assert [line[2] for line in table] == [f"{rows[line[1]].ratio.value:.2f}×" for line in table]
    assert [" ".join(line[3:]) for line in table] == ["95.4 MB 8.6e-7", "47.7 MB 6.5e-3 100.0%", "24.8 MB 3.8e-2 98.4%"]
    assert not any("precision:" in line for line in _text(made_up_report((1,), everything=False)).splitlines())


def test_a_precision_without_a_row_of_ours_is_shown_by_another() -> None:
    assert first_of_each_precision([("int8", True), ("fp32", False), ("fp32", True), (None, True)]) == [2, 0]
    assert first_of_each_precision([("bf16", False), ("fp32", False), ("fp32", False)]) == [1, 0]
    assert first_of_each_precision([("fp32", True), ("fp32", False)]) == []
    assert first_of_each_precision([(None, True)]) == []
