"""Picture files for tests."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image


def write_pictures(folder: Path, count: int, corrupt: Collection[int] = ()) -> list[str]:
    """Small PNG files p0000.png and so on, each another picture; those numbered in `corrupt` are cut off in the middle."""
    folder.mkdir(exist_ok=True)
    paths = []
    for number in range(count):
        path = folder / f"p{number:04}.png"
        coarse = np.random.default_rng(number).integers(0, 256, (7, 7), dtype=np.uint8)
        Image.fromarray(coarse).resize((30, 34), Image.Resampling.BILINEAR).save(path)
        if number in corrupt:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        paths.append(str(path))
    return paths
