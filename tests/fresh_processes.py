"""Processes in which nothing but PyTorch is loaded, without importing PyTorch for each of them.

Every check of a TorchScript or `.pt2` file runs `export/fresh_process.py` in a process of its own, whose import of PyTorch
takes longer than the check. The tests make dozens of such files. While they run, one process imports PyTorch, nothing else,
and forks a child for each script: the child is as fresh. `tests/export/test_determinism.py` exports in processes that know
nothing of this one, so the plain way is tested there.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

SCRIPT = "fresh_process.py"


def is_fresh_process(command: Any, options: dict[str, Any]) -> bool:
    """Whether a call of `subprocess.run` runs our script, and only captures what it says."""
    wanted = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, "check": False}
    return isinstance(command, list) and command[:2] == [sys.executable, "-P"] and Path(command[2]).name == SCRIPT and options == wanted


def running_them_forked(run: Callable[..., Any]) -> Callable[..., Any]:
    """`subprocess.run`, but for our script."""
    parents: list[_Parent] = []

    def run_or_fork(command: Any, **options: Any) -> Any:
        if not is_fresh_process(command, options):
            return run(command, **options)
        if not parents:
            parents.append(_Parent())
        return parents[0].run(command)

    return run_or_fork


class _Parent:
    """The process that has imported PyTorch and forks; jobs and answers are lines of JSON."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([sys.executable, "-P", __file__], stdin=pipe, stdout=pipe, text=True)
        atexit.register(self._end)

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            said = [Path(folder, name) for name in ("stdout", "stderr")]
            job = {"script": command[2:], "said": list(map(str, said)), "folder": os.getcwd(), "environment": dict(os.environ)}
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
            assert answer, "the process that forks ended"
            return subprocess.CompletedProcess(command, int(answer), *(path.read_text(errors="replace") for path in said))

    def _end(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()


def _serve() -> None:
    """Forks for every job until there are no more. Children start with PyTorch and with what `torch.export.load` imports of it."""
    import torch  # noqa: F401

    for name in ("torch._dynamo", "torch._export.serde.serialize", "torch.export.pt2_archive._package"):
        with contextlib.suppress(ImportError):  # private names: where one is missing, its child imports what it needs
            importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(_run_here(json.loads(line)))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run_here(job: dict[str, Any]) -> int:
    """Runs the script in this process, as `python -P SCRIPT` would; returns the exit code."""
    import runpy

    for number, path in zip((1, 2), job["said"], strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    sys.argv = job["script"]
    code = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    _serve()
