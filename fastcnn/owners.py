"""Which process a draft belongs to, and whether it still runs: a name tells it, since a killed process can tidy nothing up."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import secrets
import time
from pathlib import Path

# The machine as it runs now, the process and when it began, and a number of its own.
_MARK = re.compile(r"([0-9a-f]{8})-([0-9]+)-([0-9]+)-[0-9a-f]{8}")
# Where a process cannot be looked up (on another machine that shares the folder, in another container), its drafts are left alone for so long.
_SECONDS_OF_PATIENCE = 24 * 3600


def own_mark() -> str:
    """Text for the name of a draft, new with every call."""
    pid = os.getpid()
    return f"{_here()}-{pid}-{_started(pid) or 0}-{secrets.token_hex(4)}"


def is_abandoned(path: Path) -> bool:
    """Whether the process whose mark stands in the name of a draft is gone; False for a name without a mark."""
    mark = _MARK.search(path.name)
    if mark is None:
        return False
    here, pid, started = mark[1], int(mark[2]), int(mark[3])
    if here == _here() and started:
        return _started(pid) != started
    try:
        return time.time() - path.stat().st_mtime > _SECONDS_OF_PATIENCE
    except OSError:
        return False


@functools.cache
def _here() -> str:
    """Eight digits for this machine since it was started, and the processes that this one sees."""
    parts = [platform.node()]
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text(), lambda: os.readlink("/proc/self/ns/pid")):
        try:
            parts.append(read())
        except OSError:
            continue
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]


def _started(pid: int) -> int | None:
    """When a process began, in the kernel's ticks; None for one that is gone, and where there is no /proc."""
    try:
        # The name in parentheses may hold anything; after it come the state and, as the twentieth, the start.
        state, *fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if state == "Z" else int(fields[18])
    except (OSError, ValueError, IndexError):
        return None
