"""`fastcnn bench … --html` and `fastcnn bench page`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from bench_support import report
from typer.testing import CliRunner, Result

from fastcnn.bench.records.load import read_result
from fastcnn.bench.views.page import make_page
from fastcnn.bench.views.tables import to_json


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`bench("page", "r.json")` in an otherwise empty folder."""
    from fastcnn.cli.app import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTCNN_DEBUG", raising=False)
    return lambda *args: CliRunner().invoke(app, ["bench", *args], prog_name="fastcnn")


def test_run_writes_the_page_of_its_json(bench: Callable[..., Result], tmp_path: Path) -> None:
    options = ["--batch-size", "1", "--peers", "eager*", "--rounds", "5", "--threads", "1"]
    result = bench("simple_cnn", *options, "--json", "r.json", "--html", "r.html")
    assert result.exit_code == 0, result.output
    assert "the page is r.html" in result.stderr
    page = (tmp_path / "r.html").read_text()
    assert page == make_page(read_result(tmp_path / "r.json"))
    assert "simple_cnn at batch" in page
    assert json.loads((tmp_path / "r.json").read_text())["groups"][0]["model"] == "simple_cnn"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["simple_cnn", "--html", "old.html"], "old.html exists: --force (force=True) overwrites it, or give --html another name"),
        (["simple_cnn", "--html", "missing/r.html"], "there is no folder missing"),
        (["simple_cnn", "--html", "."], "is a folder: give --html the name of a file"),
        (["simple_cnn", "--json", "x", "--html", "./x"], "--json and --html both name x: give them two files"),
    ],
    ids=["exists", "no folder", "folder", "one file for two"],
)
def test_page_that_cannot_be_written_is_refused_before_the_run(bench: Callable[..., Result], tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "old.html").write_text("precious")
    result = bench(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert (tmp_path / "old.html").read_text() == "precious"


def test_page_of_a_stored_result(bench: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(to_json(report((1,), everything=False)) + "\n")
    assert bench("page", "r.json").exit_code == 0
    page = (tmp_path / "r.html").read_text()
    assert page == make_page(read_result(tmp_path / "r.json"))
    assert bench("page", "r.json").exit_code == 2
    assert bench("page", "r.json", "--force", "--html", "r.html").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.html", "r.json"]


def test_page_never_takes_the_place_of_its_result(bench: Callable[..., Result], tmp_path: Path) -> None:
    text = to_json(report((1,), everything=False))
    (tmp_path / "r.json").write_text(text)
    result = bench("page", "r.json", "--html", "./r.json", "--force")
    assert result.exit_code == 2
    assert "is the result itself" in result.stderr
    assert (tmp_path / "r.json").read_text() == text
