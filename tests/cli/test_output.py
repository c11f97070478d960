"""Tables, JSON and logs."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastcnn.cli import output


@dataclass
class _Figures:
    worst: float
    sizes: tuple[int, ...]


def test_json_has_only_json_types(capsys):
    output.print_json({"path": Path("a/b"), 1: _Figures(float("nan"), (1, 2)), "inf": float("inf"), "set": {3}, "none": None})
    assert json.loads(capsys.readouterr().out) == {
        "path": str(Path("a/b")),
        "1": {"worst": None, "sizes": [1, 2]},
        "inf": None,
        "set": [3],
        "none": None,
    }


def test_table_in_a_pipe_is_not_cut(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    long = "x" * 300
    output.print_table(("name", "count"), [(long, 1234567), ("y", None)], right=("count",), footer=("total", 1234567))
    lines = capsys.readouterr().out.splitlines()
    assert [row.split() for row in lines] == [["name", "count"], [long, "1,234,567"], ["y"], ["total", "1,234,567"]]


def test_table_takes_no_markup_from_its_cells(capsys):
    output.print_table(("reason",), [("[bold]1, 3[/bold] [/]",)])
    assert "[bold]1, 3[/bold] [/]" in capsys.readouterr().out


def test_fields_are_not_wrapped(capsys):
    output.print_fields({"sha256": "f" * 200, "nothing": None})
    assert capsys.readouterr().out == f"sha256  {'f' * 200}\n"


def test_library_prints_go_to_stderr_while_working(capsys):
    with output.working("working"):
        print("a library speaks")
    assert capsys.readouterr() == ("", "a library speaks\n")


@pytest.mark.parametrize(
    ("level", "line"), [(logging.INFO, "note: auto chose torch\n"), (logging.WARNING, "warning: auto chose torch\n"), (logging.DEBUG, "")]
)
def test_logs_go_to_stderr(capsys, cli, level, line):
    output.set_up_streams(debug=False)
    logging.getLogger("fastcnn.optimize").log(level, "auto chose %s", "torch")
    assert capsys.readouterr() == ("", line)
