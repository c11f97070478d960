"""`make compat`: PYTHONPATH=tools python -m compat."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compat.environments import RUNTIMES
from compat.files import make_files
from compat.matrix import document, record, run

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "compatibility.md"
RESULTS = ROOT / "bench" / "results" / "compat"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 no runtime could be had."""
    parser = argparse.ArgumentParser(
        prog="python -m compat", description="Exported files in runtimes of others: a record, and docs/compatibility.md."
    )
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "fastcnn" / "compat", metavar="DIR", help="[%(default)s]")
    parser.add_argument("--files", type=Path, metavar="DIR", help="where the exported files are kept  [DIR/files of --environments]")
    parser.add_argument("--only", metavar="KIND,...", help="of these runtimes; the page is then left as it is")
    parser.add_argument("--skip", default="", metavar="KIND,...", help="without these runtimes: the page says that they were not tried")
    options = parser.parse_args(arguments)
    chosen = [one for one in RUNTIMES if options.only is None or one.kind in options.only.split(",")]
    folder = options.files or options.environments / "files"
    folder.mkdir(parents=True, exist_ok=True)
    cases = []
    for case in make_files(folder):
        print(f"{case.model}, {case.column}: opset {case.opset}", file=sys.stderr)
        cases.append(case)
    rows: dict[str, list[dict[str, Any]] | str] = {}
    for one in chosen:
        missing = "skipped in this run" if one.kind in options.skip.split(",") else one.prepare(options.environments)
        rows[one.name] = missing or run(one.command(options.environments), options.environments / one.name, cases)
        found = rows[one.name]
        verdict = found if isinstance(found, str) else f"{sum(cell['verdict'] == 'right' for cell in found)} of {len(found)} right"
        print(f"{one.name}: {verdict}", file=sys.stderr)
    versions = {name: importlib.metadata.version(name) for name in ("fastcnn", "torch", "onnx", "onnxscript")}
    now = datetime.now(UTC)
    data = record(chosen, cases, rows, {"date": f"{now:%Y-%m-%d}", "versions": versions})
    if options.only is not None:
        json.dump(data, sys.stdout, indent=1)
        return 0
    RESULTS.mkdir(parents=True, exist_ok=True)
    source = RESULTS / f"{now:%Y-%m-%d}.json"
    source.write_text(json.dumps(data, indent=1) + "\n")
    PAGE.write_text(document(data, str(source.relative_to(ROOT))))
    print(f"{source.relative_to(ROOT)} and {PAGE.relative_to(ROOT)} are written", file=sys.stderr)
    return 0 if any(isinstance(found, list) for found in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
