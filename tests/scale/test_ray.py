"""Two actors on this machine: workers and drivers are killed, and the parts hold every picture once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="ray is an extra")

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc"),
    pytest.mark.slow,
]

# Each picture is slowed down, so that there is something to kill; the module is found by the workers through PYTHONPATH.
DRIVER = """
import sys, time
from pathlib import Path
from slow_asking import SlowAsking
from fastcnn.scale.job import Job
from fastcnn.scale.parts import Parts
from fastcnn.scale.ray_pool import run_on_ray
from fastcnn.scale.shards import find_shards

shards = find_shards(["t"])
parts = Parts(Path("parts").resolve(), "0" * 12, "1" * 12, "jsonl")
parts.check(shards)
for shard, outcome in run_on_ray(Job(SlowAsking("simple_cnn"), parts), parts.missing(shards), "local", 2):
    assert not isinstance(outcome, Exception), outcome
"""
SLOW = """
import time
import numpy as np
from fastcnn.prediction.predictor import Predictor
from fastcnn.preprocessing import Preprocessing
from fastcnn.scale.job import Asking

def forward(batch):
    time.sleep(0.05)
    return batch.reshape(len(batch), -1)[:, :10]

class SlowAsking(Asking):
    def load(self):
        return Predictor("slow", "numpy", Preprocessing("L", 28, (28, 28), mean=(0.5,), std=(0.5,)), "none", None, False, None, forward)
"""


def workers_of(session: int) -> list[int]:
    """The actors below one driver, which is the leader of its session."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split() if entry.name.isdigit() else []
            if fields and b"_Worker" in (entry / "cmdline").read_bytes() and int(_variable(entry, "FASTCNN_TEST_RAY") or 0) == session:
                found.append(int(entry.name))
        except (OSError, ValueError):
            continue
    return found


def _variable(process: Path, name: str) -> str | None:
    pairs = (process / "environ").read_bytes().split(b"\0")
    return next((pair.partition(b"=")[2].decode() for pair in pairs if pair.startswith(f"{name}=".encode())), None)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


def test_killed_workers_and_drivers_leave_every_picture_once(tars, tmp_path: Path) -> None:
    names = tars(12, 16, corrupt=(3, 100))
    (tmp_path / "slow_asking.py").write_text(SLOW)
    mark = random.Random().randrange(1, 2**31)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "FASTCNN_TEST_RAY": str(mark), "RAY_raylet_start_wait_time_s": "200"}
    parts, chance, killed = tmp_path / "parts", random.Random(1), 0

    def start() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", DRIVER], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)

    def wait_for(count: int, driver: subprocess.Popen) -> None:
        deadline = time.monotonic() + 240
        while driver.poll() is None and len(rows(parts)) < count and time.monotonic() < deadline:
            time.sleep(0.02)

    driver = start()
    try:
        wait_for(16, driver)
        time.sleep(chance.uniform(0, 0.1))
        for worker in workers_of(mark)[:1]:
            os.kill(worker, signal.SIGKILL)
            killed += 1
        wait_for(64, driver)
        driver.kill()
        assert driver.wait(60) == -signal.SIGKILL
        assert 0 < len(rows(parts)) < len(names)
        driver = start()
        assert driver.wait(300) == 0
    finally:
        driver.kill()
        driver.wait()
    assert killed == 1
    assert sorted(f"{row['shard']}/{row['file']}" for row in rows(parts)) == sorted(names)
    assert sum(row["error"] is not None for row in rows(parts)) == 2
