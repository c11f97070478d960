"""The handwritten digits that this package holds, ten pictures of MNIST's test set (see digits/README.md for their licence)."""

from __future__ import annotations

import csv
from pathlib import Path

_FOLDER = Path(__file__).with_name("digits")


def digit_files() -> dict[Path, int]:
    """Picture file (28x28, grey) -> the digit that it shows, 0 to 9 in turn."""
    with (_FOLDER / "labels.csv").open(newline="") as file:
        return {_FOLDER / row["file"]: int(row["digit"]) for row in csv.DictReader(file)}
