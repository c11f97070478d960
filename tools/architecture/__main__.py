"""`PYTHONPATH=tools python -m architecture`: docs/architecture.md made from the code, and figures of the code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from architecture.document import stale, write
from architecture.figures import count
from architecture.source import Sources

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 what is committed is not what the code gives."""
    parser = argparse.ArgumentParser(prog="python -m architecture", description="The layers of fastcnn, drawn and counted from its code.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="write the table of docs/architecture.md and its pictures")
    action.add_argument("--check", action="store_true", help="end with 1 if they are not what the code gives")
    action.add_argument("--figures", action="store_true", help="count circles, upward imports, parameters, docstrings and lengths")
    parser.add_argument("--places", action="store_true", help="with --figures: where each of them is")
    options = parser.parse_args(arguments)
    sources = Sources(ROOT)
    if options.figures:
        figures = count(sources)
        print("\n".join(figures.lines() + (figures.places() if options.places else [])))
    elif options.write:
        write(sources)
    else:
        problems = stale(sources)
        for problem in problems:
            print(f"error: {problem}: run make architecture", file=sys.stderr)
        return 1 if problems else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
