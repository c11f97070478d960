"""`python -m mutation`: many mutants of each format, each format in a process of its own, and a table of what came out.

A mutant that takes longer than 30 seconds ends its process, as a crash does; both are found by the last line.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mutation.mutations import FORMATS

_SECONDS = 30


def _child(format_: str, seeds: range) -> None:
    from mutation.readers import run_here, subject

    run_here()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one = subject(format_, folder)
        base = peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for seed in seeds:
            print(json.dumps({"seed": seed}), flush=True)
            faulthandler.dump_traceback_later(_SECONDS, exit=True)
            started = time.perf_counter()
            verdict = one.judge(seed, folder)
            seconds = time.perf_counter() - started
            faulthandler.cancel_dump_traceback_later()
            grown, peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(json.dumps({"seed": seed, **vars(verdict), "seconds": seconds, "grown": grown, "peak": peak}), flush=True)


def main() -> int:
    """Exit code 1 where a mutant was accepted wrongly, or reading one was a defect, a crash or a hang."""
    parser = argparse.ArgumentParser(prog="python -m mutation")
    parser.add_argument("--seeds", default="0:1000", help="FIRST:LAST")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    first, last = map(int, asked.seeds.split(":"))
    if asked.child:
        _child(asked.formats, range(first, last))
        return 0
    bad = 0
    for format_ in asked.formats.split(","):
        command = [sys.executable, "-m", "mutation", "--child", "--formats", format_, "--seeds", asked.seeds]
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        rows = [json.loads(line) for line in process.stdout.splitlines() if line.startswith('{"seed"')]
        verdicts = [row for row in rows if "kind" in row]
        counts = collections.Counter(row["kind"] for row in verdicts)
        slowest, grown = max((row["seconds"] for row in verdicts), default=0.0), max((row["grown"] for row in verdicts), default=0)
        figures = ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))
        print(f"{format_:12} {len(verdicts)} mutants: {figures}; slowest {slowest:.1f} s; memory grew by {grown / 1024:.0f} MB", flush=True)
        for row in verdicts:
            if row["kind"] in ("wrong", "defect"):
                bad += 1
                print(f"  seed {row['seed']}: {row['kind']}: {row['what']}: {row['text'][:200]}")
        if process.returncode:
            bad += 1
            print(f"  ended with code {process.returncode} at seed {rows[-1]['seed'] if rows else 'none'}")
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
