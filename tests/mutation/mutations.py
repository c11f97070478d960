"""Ways to damage a file, chosen by a seed: of its bytes, of its records, and of what its JSON says."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx

# What stands in the place of a field.
_ODD = (None, True, 0, 1, 3, 99, -1, 2**31, 2**63, 3_000_000, 0.5, 1e300, float("inf"), float("nan"), "", "x", "\ud800\x1b[31m", [], {}, [[]], ["x"])


@dataclass(frozen=True)
class Mutation:
    """What was done, and the bytes of the file after it. A forged one has its digests made right again."""

    what: str
    data: bytes
    forged: bool = False


def mutate(format_: str, data: bytes, seed: int) -> Mutation:
    """One mutation; the same for the same format, bytes and seed."""
    rng = random.Random(f"{format_} {seed}")
    shaped = _SHAPED[format_]
    if shaped and rng.random() < 0.5:
        what, function = rng.choice(shaped)
        return function(what, data, rng)
    what, function = rng.choice(_BYTES)
    return Mutation(what, function(data, rng))


# -- bytes ---------------------------------------------------------------------------------------------------------------


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data))
    return start, min(len(data), start + 2 ** rng.randrange(12))


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.choice((rng.randrange(len(data)), len(data) - rng.randrange(1, 64)))]


def _drop(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + data[end:]


def _double(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:end] + data[start:]


def _zero(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + bytes(end - start) + data[end:]


def _swap(data: bytes, rng: random.Random) -> bytes:
    first, last = sorted(rng.sample(range(len(data)), 2))
    length = min(2 ** rng.randrange(10), last - first, len(data) - last)
    return data[:first] + data[last : last + length] + data[first + length : last] + data[first : first + length] + data[last + length :]


def _noise(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + rng.randbytes(end - start) + data[end:]


def _append(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.randrange(1, 200))


def _large_number(data: bytes, rng: random.Random) -> bytes:
    number = rng.choice((struct.pack("<I", 0x7FFFFFFF), struct.pack("<I", 0xFFFFFFFF), struct.pack("<Q", 2**40), struct.pack("<Q", 2**64 - 1)))
    at = rng.choice((0, rng.randrange(len(data)), max(0, len(data) - rng.randrange(1, 120))))
    return data[:at] + number + data[at + len(number) :]


_BYTES: tuple[tuple[str, Callable[[bytes, random.Random], bytes]], ...] = (
    ("bits flipped", _flip),
    ("bits flipped", _flip),
    ("cut off", _truncate),
    ("bytes dropped", _drop),
    ("bytes doubled", _double),
    ("bytes zeroed", _zero),
    ("bytes swapped", _swap),
    ("bytes of noise", _noise),
    ("bytes appended", _append),
    ("a number enlarged", _large_number),
)


# -- JSON ----------------------------------------------------------------------------------------------------------------


def edit_json(data: Any, rng: random.Random) -> Any:
    """A copy in which one field, at any depth, is odd, gone, renamed or doubled."""
    changed = copy.deepcopy(data)
    place, depth = changed, rng.randrange(6)
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = rng.choice(keys)
        inside = place[key]
        if depth == 0 or not isinstance(inside, (dict, list)) or not inside:
            break
        place, depth = inside, depth - 1
    how = rng.randrange(5)
    if how == 0:
        del place[key]
    elif how == 1 and isinstance(place, dict):
        place[f"{key}_"] = place.pop(key)
    elif how == 2 and isinstance(place, list):
        place.extend([inside] * rng.choice((1, 1000)))
    else:
        place[key] = rng.choice(_ODD)
    return changed


def _sealed(metadata: Any) -> Any:
    """With its digest made right, as whoever forges a file would."""
    from fastcnn.export.seal import seal

    try:
        return seal(metadata)
    except (TypeError, KeyError, AttributeError):
        return metadata


def _edited_description(metadata: Any, rng: random.Random) -> tuple[bool, str]:
    changed, forged = edit_json(metadata, rng), rng.random() < 0.5
    return forged, json.dumps(_sealed(changed) if forged else changed)


# -- archives ------------------------------------------------------------------------------------------------------------


def _records(what: str, data: bytes, rng: random.Random) -> Mutation:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    forged, packed = False, zipfile.ZIP_STORED
    at, other = rng.randrange(len(records)), rng.randrange(len(records))
    if what == "a record dropped":
        del records[at]
    elif what == "a record doubled":
        records.append((records[at][0], records[other][1]))
    elif what == "two records swapped":
        records[at], records[other] = (records[at][0], records[other][1]), (records[other][0], records[at][1])
    elif what == "a record renamed":
        records[at] = (rng.choice((records[at][0] + "_", "other/" + records[at][0], records[other][0])), records[at][1])
    elif what == "a record emptied":
        records[at] = (records[at][0], b"")
    elif what == "a record edited":
        records[at] = (records[at][0], _flip(records[at][1], rng) if records[at][1] else b"x")
    elif what == "packed":
        packed = zipfile.ZIP_DEFLATED
    elif what == "packed in another way":
        packed = rng.choice((zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2))
    elif what == "many records":
        records += [(f"archive/x{number}", b"") for number in range(300)]
    elif what == "the description edited":
        position = next((number for number, (name, _) in enumerate(records) if name.endswith("extra/fastcnn")), None)
        if position is not None:
            forged, text = _edited_description(json.loads(records[position][1]), rng)
            records[position] = (records[position][0], text.encode())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packed) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name that stands twice is meant
        for name, content in records:
            info = zipfile.ZipInfo(name)
            info.compress_type = packed
            archive.writestr(info, content)
    return Mutation(what, buffer.getvalue(), forged)


def _lying_directory(what: str, data: bytes, rng: random.Random) -> Mutation:
    """One field of one entry of the directory, or of its end."""
    entries, at = [], data.find(b"PK\x01\x02")
    while at >= 0:
        entries.append(at)
        at = data.find(b"PK\x01\x02", at + 4)
    offset, width = rng.choice(((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (42, 4)))
    start = rng.choice(entries)
    if rng.random() < 0.3:
        start, (offset, width) = data.rfind(b"PK\x05\x06"), rng.choice(((8, 2), (10, 2), (12, 4), (16, 4), (20, 2)))
    value = rng.choice((0, 1, 9, 0x7FFF, 2 ** (8 * width) - 1, rng.randrange(2 ** (8 * width))))
    return Mutation(what, data[: start + offset] + value.to_bytes(width, "little") + data[start + offset + width :])


_ARCHIVES = (
    *(("the description edited", _records),) * 4,
    *((what, _records) for what in ("a record dropped", "a record doubled", "two records swapped", "a record renamed", "a record emptied")),
    *((what, _records) for what in ("a record edited", "packed", "packed in another way", "many records")),
    *(("the directory lies", _lying_directory),) * 4,
)


# -- ONNX ----------------------------------------------------------------------------------------------------------------


def _onnx(what: str, data: bytes, rng: random.Random) -> Mutation:
    model, forged = onnx.load_from_string(data), False
    graph = model.graph
    if what == "the description edited":
        forged, model.metadata_props[0].value = _edited_description(json.loads(model.metadata_props[0].value), rng)
    elif what == "a node dropped":
        del graph.node[rng.randrange(len(graph.node))]
    elif what == "a node doubled":
        graph.node.append(rng.choice(graph.node))
    elif what == "two nodes swapped":
        first, second = rng.choice(graph.node), rng.choice(graph.node)
        first.op_type, second.op_type = second.op_type, first.op_type
    elif what == "two tensors swapped":
        first, second = rng.choice(graph.initializer), rng.choice(graph.initializer)
        first.name, second.name = second.name, first.name
    elif what == "a shape that lies":
        rng.choice([tensor for tensor in graph.initializer if tensor.dims]).dims[0] = rng.choice((0, 1, 2**31, 2**62))
    return Mutation(what, model.SerializeToString(), forged)


_ONNX = (
    *(("the description edited", _onnx),) * 5,
    *((what, _onnx) for what in ("a node dropped", "a node doubled", "two nodes swapped", "two tensors swapped", "a shape that lies")),
)


# -- safetensors, .fast ----------------------------------------------------------------------------------------------------


def _header(what: str, data: bytes, rng: random.Random) -> Mutation:
    """The header edited; the description in it too, with the digest in front of a .fast file's made right half of the time."""
    import hashlib

    length = int.from_bytes(data[:8], "little")
    header, forged = json.loads(data[8 : 8 + length]), False
    if what == "the header edited":
        header = edit_json(header, rng)
    else:
        ((key, text),) = header["__metadata__"].items()
        digest, _, inside = ("", "", text) if text.startswith("{") else text.partition(" ")
        changed, forged = json.dumps(edit_json(json.loads(inside), rng)), bool(digest) and rng.random() < 0.5
        digest = hashlib.sha256(changed.encode()).hexdigest() if forged else digest
        header["__metadata__"][key] = f"{digest} {changed}" if digest else changed
    text = json.dumps(header).encode()
    return Mutation(what, len(text).to_bytes(8, "little") + text + data[8 + length :], forged)


_HEADERS = (("the header edited", _header), *(("the description edited", _header),) * 2)

_SHAPED: dict[str, tuple[tuple[str, Callable[[str, bytes, random.Random], Mutation]], ...]] = {
    "onnx": _ONNX,
    "torchscript": _ARCHIVES,
    "pt2": _ARCHIVES,
    "checkpoint": _ARCHIVES,
    "fast": _HEADERS,
    "safetensors": _HEADERS,
}
FORMATS = tuple(_SHAPED)
