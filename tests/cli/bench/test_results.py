"""`fastcnn bench compare` and `fastcnn bench page`: what can be done with a stored result."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from bench_support import report
from typer.testing import CliRunner, Result

from fastcnn.bench.records.result import BenchmarkReport
from fastcnn.bench.records.rows import ROWS
from fastcnn.bench.views.tables import to_json


def _slow_down_all(made: BenchmarkReport, factor: float) -> BenchmarkReport:
    for row in made.rows():
        row.rounds = [[sample * factor for sample in visit] for visit in row.rounds]
    for group in made.groups:
        group.finish("best-peer")
    return made


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


def test_command_says_what_it_could_have_seen(bench: Callable[..., Result]) -> None:
    said = bench("compare", "a.json", "same.json", "--fail-if-slower", "5%")
    data = json.loads(bench("compare", "a.json", "same.json", "--fail-if-slower", "5%", "--json").stdout)
    ours = [row for row in data["groups"][0]["rows"] if row["ours"]]
    widest = max(1 / row["speed"]["low"] - 1 / row["speed"]["high"] for row in ours) / 2
    assert data["widest_interval"] == pytest.approx(widest)
    expected = (
        f"no row is slower by more than 5%; the widest interval is ±{widest:.1%}, so a loss of less than {0.05 + widest:.1%} may not have been seen"
    )
    assert said.stdout.splitlines()[-1] == expected
    assert "no row is slower" not in bench("compare", "a.json", "same.json").stdout
    slow = bench("compare", "a.json", "slow.json", "--fail-if-slower", "5%")
    assert "no row is slower" not in slow.stdout + slow.stderr


def test_results_that_were_interrupted_alike_are_no_difference(bench: Callable[..., Result]) -> None:
    made = report((1,))
    made.groups[0].interrupted = True
    Path("cut.json").write_text(to_json(made))
    assert bench("compare", "cut.json", "cut.json").stderr == ""
    assert bench("compare", "a.json", "cut.json").stderr.splitlines() == ["warning: not the same: interrupted: no before, yes after"]


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
    assert re.match(r"Usage: fastcnn bench \[OPTIONS\] (\[MODEL\]\.\.\.|MODEL)\n", run.stdout)  # typer before 0.29 leaves the dots out
    assert "fastcnn bench compare" in run.stdout
    assert "fastcnn bench page" in run.stdout
    for name, meaning in ROWS.items():
        assert f"  {name:<29}  {meaning}\n" in run.stdout
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
