"""Two results side by side, and the check that a pipeline makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench_support import report
from typer.testing import CliRunner, Result

from fastcnn.bench.records.compare import Comparison, RowChange, compare_results
from fastcnn.bench.records.load import StoredResult, parse_result
from fastcnn.bench.records.result import BenchmarkReport, Status
from fastcnn.bench.records.statistics import speed_change
from fastcnn.bench.views.tables import to_json
from fastcnn.errors import RequestError, UnknownNameError


def _stored(made: BenchmarkReport, name: str) -> StoredResult:
    return parse_result(to_json(made), name)


def _compare(before: BenchmarkReport, after: BenchmarkReport, **options: Any) -> Comparison:
    return compare_results(_stored(before, "a.json"), _stored(after, "b.json"), **options)


def _row(comparison: Comparison, name: str) -> RowChange:
    return next(row for row in comparison.groups[0].rows if row.name == name)


def _slow_down_all(made: BenchmarkReport, factor: float) -> BenchmarkReport:
    for row in made.rows():
        row.rounds = [[sample * factor for sample in visit] for visit in row.rounds]
    for group in made.groups:
        group.finish("best-peer")
    return made


def test_a_row_that_became_slower_is_found_and_no_other() -> None:
    comparison = _compare(report(rounds=10), report(rounds=10, slower=1.2, seed=1))
    speed = _row(comparison, "fastcnn").speed
    assert speed.value == pytest.approx(1 / 1.2, rel=0.03)
    assert speed.low is not None
    assert speed.high is not None
    assert speed.low < speed.value < speed.high < 0.9
    assert _row(comparison, "fastcnn").verdict == "slower"
    for name in ("openvino", "eager", "fastcnn_torch"):
        assert abs(_row(comparison, name).speed.value - 1) < 0.05
        assert not _row(comparison, name).slower_by_more_than(0.05)
    judged, broken = comparison.judged(None)
    assert {row.name for _, row in judged} == {"fastcnn", "fastcnn_torch"}
    assert not broken
    assert {(group.batch_size, row.name) for group, row in judged if row.slower_by_more_than(0.05)} == {(1, "fastcnn"), (8, "fastcnn")}
    assert not any(row.slower_by_more_than(0.25) for _, row in judged)


def test_equal_speeds_pass_the_check() -> None:
    """The rule may be wrong once in 40 times at the limit itself; nothing in 10 comparisons comes near 5 % beyond equal."""
    wrong = 0
    for seed in range(10):
        comparison = _compare(report((1,), everything=False, seed=seed), report((1,), everything=False, seed=seed + 100))
        wrong += sum(row.slower_by_more_than(0.05) for _, row in comparison.judged(["*"])[0])
    assert wrong == 0


def test_a_machine_that_is_slower_as_a_whole_is_cancelled_by_another_row() -> None:
    before, after = report((1,), rounds=10), _slow_down_all(report((1,), rounds=10, seed=1), 1.3)
    assert _row(_compare(before, after), "fastcnn").slower_by_more_than(0.05)
    relative = _compare(before, after, relative_to="openvino")
    assert not _row(relative, "fastcnn").slower_by_more_than(0.05)
    assert abs(_row(relative, "fastcnn").speed.value - 1) < 0.05
    slower = _slow_down_all(report((1,), rounds=10, slower=1.2, seed=1), 1.3)
    assert _row(_compare(before, slower, relative_to="openvino"), "fastcnn").slower_by_more_than(0.05)
    assert "openvino" not in {row.name for _, row in relative.judged(["*"])[0]}


def test_interval_of_a_change_holds_the_truth_about_as_often_as_it_says() -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        before, after = (median * rng.lognormal(0, 0.05, (10, 1)) * rng.lognormal(0, 0.02, (10, 5)) for median in (1.2, 1.0))
        speed = speed_change(before, after, "before", resamples=500)
        assert speed.low is not None
        assert speed.high is not None
        held += speed.low <= 1.2 <= speed.high
    assert held >= 90  # 95 % promised; a fixed seed, so that this never flickers


def test_what_stands_in_one_file_only_is_said() -> None:
    before, after = report((1, 2, 8)), report((1, 8, 16))
    after.groups[0].rows = [row for row in after.groups[0].rows if row.name != "eager"]
    broken = next(row for row in after.groups[1].rows if row.name == "fastcnn")
    broken.status, broken.reason, broken.rounds = Status.FAILED, "RuntimeError: no", []
    comparison = _compare(before, after)
    assert comparison.only_before == ("inception_v3, batch 2, fp32, cpu",)
    assert comparison.only_after == ("inception_v3, batch 16, fp32, cpu",)
    assert [(row.name, row.before, row.after) for row in comparison.groups[0].unmatched] == [("eager", "timed", "not in the file")]
    assert [(row.name, row.after, row.broken) for row in comparison.groups[1].unmatched] == [("fastcnn", "failed: RuntimeError: no", True)]
    assert [row.name for _, row in comparison.judged(None)[1]] == ["fastcnn"]


def test_differences_of_the_machine_are_said_and_passing_ones_are_not() -> None:
    before, after = report((1,)), report((1,))
    after.environment |= {"date": "2027-01-01", "commit": "f" * 40, "load_average": 3.0, "gpu": {"name": "G", "power_watts": 70.0}}  # type: ignore[operator]
    after.environment["versions"]["torch"] = "2.16.0"
    after.environment["cpu"]["model"] = "Slide rule"
    after.settings["threads"] = 4  # type: ignore[index]
    said = [str(difference) for difference in _compare(before, after).differences]
    assert "versions.torch: 2.15.0 before, 2.16.0 after" in said
    assert "cpu.model: Abacus & Sons before, Slide rule after" in said
    assert "threads: 2 before, 4 after" in said
    assert not [text for text in said if text.startswith(("date", "commit", "load", "gpu.power"))]
    assert not _compare(before, before).differences


def test_requests_that_cannot_be_judged() -> None:
    few = report((1,), rounds=3)
    with pytest.raises(RequestError, match="fastcnn of inception_v3, batch 1, fp32, cpu has too few rounds to judge: measure with --rounds 5"):
        _compare(few, few).judged(None)
    with pytest.raises(RequestError, match="have no model, batch size, precision and device in common"):
        _compare(report((1,)), report((2,)))
    with pytest.raises(UnknownNameError, match="did you mean openvino"):
        _compare(report((1,)), report((1,)), relative_to="openvin")
    with pytest.raises(UnknownNameError, match="did you mean eager"):
        _compare(report((1,)), report((1,))).judged(["eagre"])


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`bench("compare", "a.json", "same.json")`: a folder with a result, one like it, one slower at fastcnn, and one slower throughout."""
    from fastcnn.cli.app import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTCNN_DEBUG", raising=False)
    made = {
        "a.json": report((1,)),
        "same.json": report((1,), seed=1),
        "slow.json": report((1,), seed=1, slower=1.3),
        "machine.json": _slow_down_all(report((1,), seed=1), 1.3),
    }
    for name, one in made.items():
        Path(name).write_text(to_json(one))
    return lambda *args: CliRunner().invoke(app, ["bench", *args], prog_name="fastcnn")


def test_command_ends_with_1_for_a_slower_row_only(bench: Callable[..., Result]) -> None:
    same = bench("compare", "a.json", "same.json", "--fail-if-slower", "5%")
    assert (same.exit_code, same.stderr) == (0, "")
    assert "inception_v3, batch 1, fp32, cpu" in same.stdout
    slow = bench("compare", "a.json", "slow.json", "--fail-if-slower", "5 %")
    assert slow.exit_code == 1
    assert "error: slower by more than 5 %: fastcnn (inception_v3, batch 1, fp32, cpu) takes" in slow.stderr
    assert "fastcnn_torch (" not in slow.stderr
    assert bench("compare", "a.json", "slow.json").exit_code == 0
    assert bench("compare", "a.json", "slow.json", "--fail-if-slower", "5%", "--rows", "eager,openvino").exit_code == 0
    assert bench("compare", "a.json", "slow.json", "--fail-if-slower", "5%", "--rows", "fast*").exit_code == 1
    assert bench("compare", "slow.json", "a.json", "--fail-if-slower", "0%").exit_code == 0


def test_command_says_when_other_rows_became_slower_too(bench: Callable[..., Result]) -> None:
    result = bench("compare", "a.json", "machine.json", "--fail-if-slower", "5%")
    assert result.exit_code == 1
    assert "note: 3 of 3 rows that are not fastcnn's became slower by more than 5% too" in result.stderr
    assert bench("compare", "a.json", "machine.json", "--fail-if-slower", "5%", "--relative-to", "openvino").exit_code == 0


def test_command_prints_one_json_document(bench: Callable[..., Result]) -> None:
    result = bench("compare", "a.json", "slow.json", "--json", "--fail-if-slower", "5%")
    data = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (data["schema"], data["before"], data["after"], data["fail_if_slower"]) == ("fastcnn-bench-compare/1", "a.json", "slow.json", 0.05)
    assert len(data["slower"]) == 1
    row = next(row for row in data["groups"][0]["rows"] if row["name"] == "fastcnn")
    assert row["verdict"] == "slower"
    assert row["speed"]["low"] <= row["speed"]["value"] <= row["speed"]["high"] < 1
    assert row["before"]["p50"] < row["after"]["p50"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compare", "a.json"], "missing argument"),
        (["compare", "a.json", "none.json"], "none.json"),
        (["compare", "a.json", "same.json", "--fail-if-slower", "0.05"], "takes a percentage such as 5%"),
        (["compare", "a.json", "same.json", "--fail-if-slower=-5%"], "takes a percentage such as 5%"),
        (["compare", "a.json", "same.json", "--rows", "eager"], "--rows chooses what --fail-if-slower judges"),
        (["compare", "a.json", "same.json", "--fail-if-slower", "5%", "--rows", ","], "--rows names no row"),
        (["compare", "a.json", "same.json", "--fail-if-slower", "5%", "--rows", "nobody"], "unknown row 'nobody'"),
        (["page", "none.json"], "none.json"),
        (["page", "a.json", "--html", "missing/a.html"], "there is no folder missing"),
        (["page", "a.json", "--html", "same.json"], "--force"),
    ],
    ids=" ".join,
)
def test_wrong_requests_end_with_2_and_one_line(bench: Callable[..., Result], arguments: list[str], said: str) -> None:
    result = bench(*arguments)
    assert result.exit_code == 2, result.output
    assert said in result.stderr.lower() or said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not result.stdout


def test_help_of_bench_and_of_its_subcommands(bench: Callable[..., Result]) -> None:
    run = bench("--help")
    assert run.exit_code == 0
    assert run.stdout.startswith("Usage: fastcnn bench [OPTIONS] [MODEL]...")
    assert "fastcnn bench compare" in run.stdout
    assert "fastcnn bench page" in run.stdout
    compare = bench("compare", "--help")
    assert "Usage: fastcnn bench compare" in compare.stdout
    assert "whole 95 % interval" in " ".join(compare.stdout.split())
    assert "exit code 1" in " ".join(compare.stdout.split())
    assert "Usage: fastcnn bench page" in bench("page", "-h").stdout


@pytest.mark.parametrize(
    ("words", "offered", "not_offered"),
    [
        ("fastcnn bench ", {"compare", "page", "inception_v3"}, {"run"}),
        ("fastcnn bench com", {"compare"}, {"page"}),
        ("fastcnn bench inception_v", {"inception_v3", "inception_v4"}, {"compare"}),
        ("fastcnn bench --rou", {"--rounds"}, set()),
        ("fastcnn bench inception_v3 --rou", {"--rounds"}, set()),
        ("fastcnn bench --device ", {"cpu", "cuda"}, {"compare"}),
        ("fastcnn bench compare --rel", {"--relative-to"}, {"--rounds"}),
    ],
)
def test_completion_knows_both_the_run_and_its_subcommands(words: str, offered: set[str], not_offered: set[str]) -> None:
    from fastcnn.cli.app import app

    variables = {"_FASTCNN_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    found = set(CliRunner().invoke(app, [], prog_name="fastcnn", env=variables).stdout.split())
    assert offered <= found
    assert not not_offered & found
