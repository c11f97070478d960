"""What `make quick` leaves out, and what `make test` and `make demo` run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from slow_tests import LIST, slow_functions

ROOT = Path(__file__).parents[1]


def test_a_function_is_slow_in_the_mean_or_altogether() -> None:
    durations = [("a.py::one", 0.4), ("a.py::two[x-y]", 0.9), ("a.py::two[z]", 0.2), ("a.py::two[z]", 0.1)]
    assert slow_functions(durations) == ["a.py::two"]
    assert slow_functions([(f"a.py::many[{number}]", 0.2) for number in range(20)]) == ["a.py::many"]


def test_quick_leaves_out_what_is_listed_or_marked(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = pytester.path / "listed.txt"
    listed.write_text("test_some.py::test_listed\n")
    monkeypatch.setattr("slow_tests.LIST", listed)
    pytester.makepyfile(
        test_some="import pytest\n@pytest.mark.parametrize('x', [1, 2])\ndef test_listed(x): ...\n@pytest.mark.slow\ndef test_marked(): ...\n"
        "def test_quick(): ...\n"
    )
    options = ("-p", "slow_tests", "-p", "no:cacheprovider")
    pytester.inline_run(*options, "--quick").assertoutcome(passed=1)
    pytester.inline_run(*options).assertoutcome(passed=4)
    monkeypatch.setattr("slow_tests.MEAN_SECONDS", 0.0)
    pytester.inline_run(*options, "--write-slow")
    assert listed.read_text().split() == ["test_some.py::test_listed", "test_some.py::test_marked", "test_some.py::test_quick"]


def test_the_list_is_sorted_and_without_parameters() -> None:
    names = LIST.read_text().splitlines()
    assert names == sorted(set(names))
    assert not [name for name in names if "[" in name or not name.startswith("tests/")]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("target", "wanted", "unwanted"),
    [
        ("demo", "'.[openvino]'", "'.[dev]'"),
        ("test", "--durations=10", "--quick"),
        ("quick", "--quick", "mypy"),
    ],
)
def test_targets(target: str, wanted: str, unwanted: str, tmp_path: Path) -> None:
    """What a target would run, in a clone without an environment."""
    command = ["make", "--dry-run", "--directory", str(ROOT), f"VENV={tmp_path}/venv", target]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert wanted in said
    assert unwanted not in said
