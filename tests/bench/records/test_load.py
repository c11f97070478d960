"""Result files read back: both schemas, and what is said of a file that is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench_support import report

from fastcnn.bench.records.load import parse_result, read_result
from fastcnn.bench.records.result import RooflineStep, Status
from fastcnn.bench.records.statistics import Ratio
from fastcnn.bench.views.tables import to_json
from fastcnn.errors import FileFormatError

STORED = sorted((Path(__file__).parents[3] / "bench" / "results").glob("*.json"))


def test_a_report_comes_back_as_it_was() -> None:
    made = report()
    read = parse_result(to_json(made), "r.json").report
    assert read.to_dict() == made.to_dict()
    assert isinstance(read.groups[0].rows[0].ratio, Ratio)
    assert isinstance(read.groups[0].roofline, list)
    assert isinstance(read.groups[0].roofline[0], RooflineStep)
    assert read.groups[0].rows[-1].status is Status.ABSENT


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_committed_results_are_read_whatever_their_schema(path: Path) -> None:
    result = read_result(path)
    assert result.text == path.read_text()
    for group, plain in zip(result.report.groups, result.data["groups"], strict=True):
        assert (group.model, group.batch_size, group.baseline) == (plain["model"], plain["batch_size"], plain["baseline"])
        for row, stored in zip(group.rows, plain["rows"], strict=True):
            summary = row.summary()
            assert row.rounds == stored["rounds"]
            assert (summary is None) == (stored["seconds"] is None)
            if summary is not None:
                assert summary.p50 == stored["seconds"].get("p50", stored["seconds"].get("median"))


def _with(path: str, value: Any) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        *steps, last = path.split(".")
        for step in steps:
            data = data[int(step) if step.isdigit() else step]
        data[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_with("schema", "fastcnn-bench/99"), "has the schema fastcnn-bench/99; this release of fastcnn reads"),
        (_with("schema", None), "is not the result of a benchmark"),
        (_with("groups.0.model", 3), "groups[0].model is 3, not text"),
        (_with("groups.0.batch_size", 0), "groups[0].batch_size is 0"),
        (_with("groups.0.batch_size", True), "groups[0].batch_size is true, not a whole number"),
        (_with("groups.0.rows", {}), "groups[0].rows is an object, not an array"),
        (_with("groups.0.rows.0.status", "fine"), 'groups[0].rows[0].status is "fine", not one of timed, failed, absent, interrupted'),
        (_with("groups.0.rows.0.rounds", []), "groups[0].rows[0] is timed but has no samples"),
        (_with("groups.0.rows.0.rounds", [[0.1], [0.1, 0.2]]), "groups[0].rows[0].rounds must all be equally long"),
        (_with("groups.0.rows.0.rounds", [[0.1], [-0.2]]), "of times above 0"),
        (_with("groups.0.rows.0.seconds.p50", 0.001), "groups[0].rows[0].seconds.p50 is 0.001, and its samples give"),
        (_with("groups.0.rows.0.seconds", None), "groups[0].rows[0].seconds.count is null"),
        (_with("groups.0.rows.0.images_per_second", None), "groups[0].rows[0].images_per_second is missing"),
        (_with("groups.0.ladder.0.seconds.p10", 1.0), "groups[0].ladder[0].seconds.p10"),
        (lambda data: data["groups"][0].pop("device"), "groups[0].device is missing"),
        (lambda data: data.pop("groups"), "groups is missing"),
    ],
)
def test_damage_is_named_with_its_place(change: Callable[[Any], Any], said: str) -> None:
    data = json.loads(to_json(report((1,))))
    change(data)
    with pytest.raises(FileFormatError) as caught:
        parse_result(json.dumps(data), "r.json")
    assert said in str(caught.value)
    assert str(caught.value).startswith("r.json ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", [0.001, 0.3, 0.9, 0.999])
def test_a_file_that_was_cut_off_says_so(tmp_path: Path, part: float) -> None:
    text = to_json(report((1,)))
    path = tmp_path / "half.json"
    path.write_text(text[: int(len(text) * part)])
    with pytest.raises(FileFormatError, match=r"half\.json is cut off: its JSON ends in the middle of line \d+"):
        read_result(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not JSON"),
        (b"hello", "is not JSON: Expecting value in line 1, column 1"),
        (b"\xff\xfe\x00", "it is not text in UTF-8"),
        (b"[1, 2]", "is not the result of a benchmark"),
        (b'{"schema": "other/1"}', "is not the result of a benchmark"),
        (b'{"schema": NaN}', "it holds NaN"),
        (b"[" * 100_000, "is not JSON"),
    ],
    ids=["empty", "words", "binary", "array", "other schema", "NaN", "deep"],
)
def test_what_is_no_result_is_refused_in_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(FileFormatError) as caught:
        read_result(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_result(tmp_path / "none.json")
