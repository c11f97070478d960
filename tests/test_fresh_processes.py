"""A forked fresh process is what a started one is."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from fresh_processes import SCRIPT, is_fresh_process

from fastcnn.export import runtimes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")


def run(folder: Path, text: str, *arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[str]:
    """Runs a script as `export/runtimes.py` does, with `given` on its standard input."""
    script = folder / SCRIPT
    script.write_text(text)
    command = [sys.executable, "-P", str(script), *arguments]
    with tempfile.TemporaryFile() as complaints:
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": complaints}
        assert is_fresh_process(command, options)
        with runtimes.subprocess.Popen(command, **options) as process:
            process.stdin.write(given)
            process.stdin.close()
            said = process.stdout.read()
            process.wait()
        assert type(process) is not subprocess.Popen
        complaints.seek(0)
        return subprocess.CompletedProcess(command, process.returncode, said.decode(), complaints.read().decode())


def test_it_knows_pytorch_its_arguments_its_input_and_nothing_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTCNN_TEST", "told")
    text = (
        "import os, sys, torch\nprint(sys.argv[1:], os.getcwd(), os.environ['FASTCNN_TEST'], __name__, sys.stdin.read())\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'fastcnn', 'pytest', 'onnx'}), file=sys.stderr)"
    )
    done = run(tmp_path, text, "a", "b c", given=b"pictures")
    assert (done.returncode, done.stdout) == (0, f"['a', 'b c'] {tmp_path} told __main__ pictures\n")
    assert done.stderr == "['torch']\n"


def test_one_leaves_nothing_for_the_next(tmp_path: Path) -> None:
    text = "import torch\nprint(hasattr(torch, 'left'), torch.initial_seed() != 7)\ntorch.left = True\ntorch.manual_seed(7)"
    assert [run(tmp_path, text).stdout for _ in range(2)] == ["False True\n"] * 2


def test_its_parent_is_the_process_that_it_is_told(tmp_path: Path) -> None:
    assert run(tmp_path, "import os, sys\nprint(os.getppid() == int(sys.argv[1]))", str(os.getpid())).stdout == "True\n"


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


def test_it_can_be_killed_and_others_follow(tmp_path: Path) -> None:
    script = tmp_path / SCRIPT
    script.write_text("import time; time.sleep(600)")
    with (
        tempfile.TemporaryFile() as complaints,
        runtimes.subprocess.Popen([sys.executable, "-P", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints) as process,
    ):
        process.kill()
    assert process.returncode == -9
    assert run(tmp_path, "print(1)").stdout == "1\n"


def test_other_commands_are_started_as_ever(tmp_path: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    assert not is_fresh_process([sys.executable, "-P", str(tmp_path / SCRIPT)], pipes)
    with tempfile.TemporaryFile() as complaints:
        assert not is_fresh_process([sys.executable, "-c", "print(1)"], {**pipes, "stderr": complaints})
    with runtimes.subprocess.Popen([sys.executable, "-c", "print(1)"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.read() == "1\n"
