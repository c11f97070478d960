"""The cores that a process may keep busy."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fastcnn import cores

UNIFIED, LEGACY = "0::/a/b\n", "12:cpu,cpuacct:/a\n3:memory:/a\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, math.inf),
        ({"proc/self/cgroup": UNIFIED}, math.inf),
        ({"proc/self/cgroup": UNIFIED, "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, math.inf),
        ({"proc/self/cgroup": UNIFIED, "sys/fs/cgroup/a/b/cpu.max": "250000 100000\n"}, 2.5),
        ({"proc/self/cgroup": UNIFIED, "sys/fs/cgroup/a/b/cpu.max": "250000 100000", "sys/fs/cgroup/a/cpu.max": "50000 50000"}, 1.0),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4.0),
        ({"proc/self/cgroup": LEGACY, "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "-1\n"}, math.inf),
        (
            {
                "proc/self/cgroup": LEGACY,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
    ],
    ids=["no Linux", "no files", "no limit", "own", "above", "namespace", "legacy without", "legacy"],
)
def test_the_quota_of_the_control_groups(files, quota, tmp_path):
    assert cores._quota(write(tmp_path, files)) == quota


def test_a_share_of_a_core_is_one_core(monkeypatch):
    monkeypatch.setattr(cores, "_quota", lambda root: 0.5)
    assert cores.usable_cores() == 1


def test_no_more_than_the_process_may_run_on(monkeypatch):
    monkeypatch.setattr(cores, "_quota", lambda root: 1e9)
    assert 1 <= cores.usable_cores() < 1e6
