"""`python -m kills`: each writer is killed at many moments of its run, evenly spread, and run once more.

After the second run the folder must hold what an uninterrupted run leaves, its results with the same bytes, and no process of the killed one may run.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from kills.writers import WRITERS, Left, Writer, prepare, processes_of, run_in


def kill_many(writer: Writer, data: Path, folder: Path, kills: int) -> dict[str, int]:
    """How often what was found after so many kills, each followed by a second run."""
    whole = folder / "whole" / "work"
    whole.mkdir(parents=True)
    run_in(whole, writer, data)
    expected = Left.of(whole, writer)
    again = folder / "timed" / "work"
    again.mkdir(parents=True)
    seconds = run_in(again, writer, data)
    counts = dict.fromkeys(("drafts after the kill", "drafts", "missing files", "other bytes", "orphans"), 0)
    for number in range(kills):
        work = folder / f"killed{number}" / "work"
        work.mkdir(parents=True)
        run_in(work, writer, data, seconds * (number + 0.5) / kills)
        counts["drafts after the kill"] += bool(Left.of(work, writer).names - expected.names)
        run_in(work, writer, data)
        found = Left.of(work, writer)
        counts["drafts"] += bool(found.names - expected.names)
        counts["missing files"] += bool(expected.names - found.names)
        counts["other bytes"] += found.digests != expected.digests
        counts["orphans"] += bool(_still_running(work))
        shutil.rmtree(work.parent)
    return counts


def _still_running(work: Path) -> list[int]:
    """Those of a killed writer's processes that do not end within a second: a killed process takes a moment to be gone."""
    deadline = time.monotonic() + 1
    while (running := processes_of(work)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return running


def main() -> int:
    """Exit code 1 where anything was left, or a second run gave something else."""
    parser = argparse.ArgumentParser(prog="python -m kills")
    parser.add_argument("--kills", type=int, default=50, help="of each writer")
    parser.add_argument("--writers", default=",".join(WRITERS))
    asked = parser.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        data = prepare(Path(name) / "data")
        for kind in asked.writers.split(","):
            counts = kill_many(WRITERS[kind], data, Path(name) / kind, asked.kills)
            print(f"{kind:12} {asked.kills} kills: {', '.join(f'{what} {count}' for what, count in counts.items())}", flush=True)
            bad += sum(count for what, count in counts.items() if what != "drafts after the kill")
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
