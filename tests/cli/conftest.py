"""The command line inside this process (`cli`) and as a process of its own (`fastcnn_process`)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`cli("list", "--json")` runs the command in an empty folder; the streams are kept apart in the result."""
    from fastcnn.cli.app import app

    monkeypatch.chdir(tmp_path)
    for name in ("COLUMNS", "FORCE_COLOR", "FASTCNN_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args], prog_name="fastcnn")


@pytest.fixture
def environment() -> dict[str, str]:
    """What a subprocess gets: ours, without what would change how a table looks."""
    return {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "FASTCNN_DEBUG", "PYTHONIOENCODING")}


@pytest.fixture
def fastcnn_process(tmp_path: Path, environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`fastcnn_process("list", NO_COLOR="1")` runs `python -m fastcnn list` in an empty folder, keywords being environment variables."""

    def run(*args: object, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fastcnn", *map(str, args)]
        return subprocess.run(
            command, cwd=tmp_path, env=environment | variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )

    return run


@pytest.fixture
def terminal(tmp_path: Path, environment: dict[str, str]) -> Callable[..., str]:
    """`terminal("list")` runs the command on a pseudo-terminal, where it must succeed; returns what the person sees."""
    pty = pytest.importorskip("pty", reason="pseudo-terminals exist on Unix only")

    def run(*args: str, **variables: str) -> str:
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "fastcnn", *args]
        process = subprocess.Popen(command, cwd=tmp_path, env={**environment, "TERM": "xterm-256color", **variables}, stdout=theirs, stderr=theirs)
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # Linux says EIO when the other side has closed
            while part := os.read(ours, 65536):
                shown += part
        os.close(ours)
        assert process.wait() == 0, shown
        return shown.decode()

    return run
