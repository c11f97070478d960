"""How much a file may ask of this machine: bounds that are checked before anything is read or decoded, each raised by an environment variable."""

from __future__ import annotations

import json
import os
import zlib
from typing import Any

from fastcnn.errors import RequestError

# What a file may take in memory beyond its own size: inflated records, golden pictures, one batch.
MAX_BYTES = "FASTCNN_MAX_BYTES"
# Records of an archive, tensors of a safetensors file.
MAX_RECORDS = "FASTCNN_MAX_RECORDS"
# Of a picture, as it says before it is decoded or as it would be after a resize.
MAX_PIXELS = "FASTCNN_MAX_PIXELS"

DEFAULTS = {MAX_BYTES: 2**30, MAX_RECORDS: 50_000, MAX_PIXELS: 100_000_000}

# Parsed JSON takes up to this many times the bytes of its text.
_JSON_GROWTH = 16


def limit(name: str) -> int:
    """The bound of this name: the environment's, else the usual one. Raises RequestError where the environment's is no whole number from 1."""
    text = os.environ.get(name)
    if text is None:
        return DEFAULTS[name]
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) > 0):
        raise RequestError(f"{name} is a whole number from 1, not {text!r}")
    return int(text)


def beyond(name: str, what: str, amount: int) -> str | None:
    """Why `what` is too much, and which variable raises the bound; None where `amount` is within it."""
    most = limit(name)
    return f"{what} {amount:,}, more than {most:,} ({name} raises it)" if amount > most else None


def check_json_length(length: int) -> None:
    """Raises ValueError for a JSON text of so many bytes that parsing it would take too much."""
    reason = beyond(MAX_BYTES, "bytes of its description, decoded, would be", length * _JSON_GROWTH)
    if reason is not None:
        raise ValueError(reason)


def inflate(data: bytes, size: int, *, raw: bool = False) -> bytes:
    """The `size` bytes that zlib packed, `raw` without its header as in a zip archive. What would come after them is not made.

    Raises ValueError where it cannot be unpacked, or gives more bytes or fewer.
    """
    inflater = zlib.decompressobj(-15 if raw else 15)
    try:
        found = inflater.decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(f"it cannot be unpacked: {error}") from error
    if len(found) != size or (not raw and (not inflater.eof or inflater.unused_data)):
        raise ValueError(f"it does not unpack to {size:,} bytes")
    return found


def parse_json(text: str | bytes) -> Any:
    """What JSON text says. Raises ValueError where it is none, too long, or nested so deep that Python gives up on it."""
    check_json_length(len(text))
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
