"""What tells a weight file from other files and from names, without PyTorch: the command line asks before it imports anything."""

from __future__ import annotations

import os
from pathlib import Path

# A string that ends so means a file, even where there is none.
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")


def means_file(source: str) -> bool:
    """Whether what was given as weights means a file, there or not, and no name of weights."""
    return source.endswith(SUFFIXES) or os.sep in source or Path(source).exists()


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors does, the format of `fastcnn.save` too: the length of a JSON object that fits into it, and the object."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError:
        return False
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size
