"""A few kills of the quick writers; `make kill` makes fifty of each."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it forks, and looks processes up in /proc")


def test_a_killed_writer_leaves_nothing_after_the_next_run():
    """In a process of its own: this one has threads, which do not survive a fork."""
    command = [sys.executable, "-m", "kills", "--kills", "2", "--writers", "onnx,predict"]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = done.stdout.splitlines()
    assert [row.split()[0] for row in rows] == ["onnx", "predict"]
    assert all(row.endswith("drafts 0, missing files 0, other bytes 0, orphans 0") for row in rows), json.dumps(rows)


def _environment():
    import os
    from pathlib import Path

    tests = str(Path(__file__).resolve().parents[1])
    return {**os.environ, "PYTHONPATH": tests, "OMP_NUM_THREADS": "1"}
