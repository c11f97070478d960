"""`python -m soak --engine torch --minutes 60`: prints what `soak.soaking` found, as JSON."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import asdict

from soak.soaking import soak


def main() -> int:
    """Exit code 1 where an answer was wrong or a call raised."""
    parser = argparse.ArgumentParser(prog="python -m soak")
    parser.add_argument("--engine", default="torch")
    parser.add_argument("--model", default="inception_mnist")
    parser.add_argument("--minutes", type=float, default=60.0)
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    findings = soak(asked.engine, asked.model, asked.minutes * 60)
    print(json.dumps({**asdict(findings), "growth_mib": round(findings.growth_mib, 1)}))
    return int(bool(findings.wrong or findings.errors))


if __name__ == "__main__":
    sys.exit(main())
