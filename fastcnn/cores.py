"""How many cores there are to use."""

from __future__ import annotations

import math
import os
from pathlib import Path


def usable_cores() -> int:
    """The cores that this process may keep busy, which a container or a scheduler may have made fewer than the machine
    has: those it may run on, and no more than its share of their time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _quota(Path("/")))))


def _quota(root: Path) -> float:
    """The cores whose time the control groups of this process grant it: the least of its own and those above;
    infinite where there is no limit.

    Args:
        root: where `proc` and `sys` are.
    """
    limits = [math.inf]
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        is_unified = (number, controllers) == ("0", "")
        if not is_unified and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("" if is_unified else "cpu")
        own = top / path.lstrip("/")
        # In a container the path may be the host's and the files those of the container: then only the top is there.
        groups = [group for group in (own, *own.parents) if group.is_relative_to(top)]
        limits += [_unified_limit(group) if is_unified else _legacy_limit(group) for group in groups]
    return min(limits)


def _unified_limit(group: Path) -> float:
    quota, _, period = _read(group / "cpu.max").strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else math.inf


def _legacy_limit(group: Path) -> float:
    quota, period = (_read(group / name).strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else math.inf


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
