"""`make fuzz SEEDS=first:last ENGINES=torch,onnxruntime,openvino,onnx`: random networks through every engine, and a table of what came out."""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable

from fuzz.sweep import ATTEMPTS, Result, sweep
from fuzz.verdict import ENGINES, KINDS

# Networks after which the table so far is shown: a long sweep that is stopped has told what it saw.
_PROGRESS = 50


def table(results: Iterable[Result], engines: tuple[str, ...]) -> str:
    """How often each engine was right, and which operations it refused."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    refused: Counter[str] = Counter()
    for result in results:
        for verdict in result.verdicts:
            counts[verdict.engine][verdict.kind] += 1
            if verdict.kind in ("refused", "differs"):
                refused[verdict.key] += 1
    lines = ["".join(f"{title:>12}" for title in ("engine", *KINDS))]
    lines += ["".join(f"{cell:>12}" for cell in (engine, *(counts[engine][kind] for kind in KINDS))) for engine in engines]
    lines += ["", *(f"{count:6} {what}" for what, count in refused.most_common())] if refused else []
    return "\n".join(lines)


def main() -> int:
    """Exit code 1 where a network failed."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--seeds", default="0:3000", help="first:last, the last left out")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--attempts", type=int, default=ATTEMPTS, help="to shrink a network that fails")
    options = parser.parse_args()
    first, _, last = options.seeds.partition(":")
    engines = tuple(options.engines.split(","))
    unknown = set(engines) - set(ENGINES)
    if unknown:
        parser.error(f"no engine is called {', '.join(sorted(unknown))}; there are {', '.join(ENGINES)}")
    results = list[Result]()
    for result in sweep(range(int(first), int(last or int(first) + 1)), engines, options.attempts):
        results.append(result)
        for found in (verdict for verdict in result.verdicts if verdict.is_news):
            print(f"\nseed {result.seed}: {found.engine}: {found.kind}: {found.detail}", flush=True)
        if result.smallest:
            print(result.smallest, flush=True)
        if len(results) % _PROGRESS == 0:
            print(f"\n… {len(results)} networks\n{table(results, engines)}", file=sys.stderr, flush=True)
    print(f"\n{table(results, engines)}")
    return 0 if all(verdict.good for result in results for verdict in result.verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
