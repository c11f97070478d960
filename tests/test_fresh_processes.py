"""A forked fresh process is what a started one is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fresh_processes import SCRIPT, is_fresh_process

OPTIONS = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, "check": False}


def run(folder: Path, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = folder / SCRIPT
    script.write_text(text)
    command = [sys.executable, "-P", str(script), *arguments]
    assert is_fresh_process(command, OPTIONS)
    return subprocess.run(command, **OPTIONS)


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")


def test_it_knows_pytorch_its_arguments_and_nothing_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTCNN_TEST", "told")
    text = (
        "import os, sys, torch\nprint(sys.argv[1:], os.getcwd(), os.environ['FASTCNN_TEST'], __name__)\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'fastcnn', 'pytest', 'onnx'}), file=sys.stderr)"
    )
    done = run(tmp_path, text, "a", "b c")
    assert (done.returncode, done.stdout) == (0, f"['a', 'b c'] {tmp_path} told __main__\n")
    assert done.stderr == "['torch']\n"


def test_one_leaves_nothing_for_the_next(tmp_path: Path) -> None:
    text = "import torch\nprint(hasattr(torch, 'left'), torch.initial_seed() != 7)\ntorch.left = True\ntorch.manual_seed(7)"
    assert [run(tmp_path, text).stdout for _ in range(2)] == ["False True\n"] * 2


@pytest.mark.parametrize(
    ("text", "code", "last"),
    [
        ("raise ValueError('what was wrong')", 1, "ValueError: what was wrong"),
        ("import sys; sys.exit(5)", 5, None),
        ("import os; os.abort()", -6, None),
    ],
)
def test_failures_come_back(tmp_path: Path, text: str, code: int, last: str | None) -> None:
    done = run(tmp_path, text)
    assert done.returncode == code
    assert (done.stderr.splitlines() or [None])[-1] == last


def test_other_commands_are_started_as_ever(tmp_path: Path) -> None:
    assert not is_fresh_process([sys.executable, "-c", "print(1)"], OPTIONS)
    assert not is_fresh_process([sys.executable, "-P", str(tmp_path / SCRIPT)], {"text": True})
    assert subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True, text=True, check=True).stdout == "1\n"
