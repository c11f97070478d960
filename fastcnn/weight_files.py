"""What tells a weight file from other files and from names, without PyTorch: the command line asks before it imports anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fastcnn.limits import MAX_RECORDS, beyond, check_json_length, parse_json

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


def safetensors_header(path: Path) -> dict[str, Any]:
    """The JSON object that a safetensors file begins with, and a file of `fastcnn.save`: it names each tensor, its dtype, shape and place.

    Raises ValueError where there is none, or it is beyond `fastcnn.limits`.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= path.stat().st_size - 8:
            raise ValueError("it does not begin with the length of a header")
        start = file.read(1)
        if start != b"{":
            raise ValueError("its header is no object")
        check_json_length(length)
        header = parse_json(start + file.read(length - 1))
    reason = beyond(MAX_RECORDS, "its tensors are", len(header)) if isinstance(header, dict) else "its header is no object"
    if reason is not None:
        raise ValueError(reason)
    return dict(header)
