"""What a file says of itself, read past the network: neither PyTorch nor the onnx package is imported for it, and no weight is loaded."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from fastcnn.errors import FileFormatError, RequestError
from fastcnn.export.formats import FORMATS

# The entry that holds our metadata in every format.
KEY = "fastcnn"

ZIP_MAGIC = b"PK\x03\x04"

# Fields of onnx.ModelProto and StringStringEntryProto, by their numbers in onnx.proto, and protobuf's ways to write one.
_IR_VERSION, _GRAPH, _METADATA = 1, 7, 14
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a file that fastcnn exported says of itself: model, versions, input, labels, weights, parity figures and the golden pair.

    Raises:
        RequestError: no such file.
        FileFormatError: truncated, of another format, or not exported by fastcnn.
    """
    return parse(Path(path), *_read(Path(path)))


def read_any(path: Path) -> tuple[str, dict[str, Any] | None]:
    """(name of the format, what `read_metadata` returns, or None for a file that others made). Errors as of `read_metadata`."""
    format_, text = _read(path)
    return format_, None if text is None else parse(path, format_, text)


def _read(path: Path) -> tuple[str, str | None]:
    if not path.is_file():
        raise RequestError(f"{path} is a folder" if path.is_dir() else f"{path} does not exist")
    with path.open("rb") as file:
        start = file.read(9)
        refuse_weights(path, start)
        if start.startswith(ZIP_MAGIC):
            return _of_archive(path, file)
        return "onnx", _of_onnx(path, file)


def parse(path: Path, format_: str, text: str | None) -> dict[str, Any]:
    """The object in a file's entry. Raises FileFormatError where there is no entry, or it holds none."""
    if text is None:
        raise FileFormatError(f"{path} was not exported by fastcnn: it is {FORMATS[format_].title}, but lacks the metadata entry {KEY!r}")
    try:
        metadata = json.loads(text)
    except ValueError as error:
        raise FileFormatError(f"{path} has damaged metadata: {error}") from error
    if not isinstance(metadata, dict):
        raise FileFormatError(f"{path} has damaged metadata: a JSON object was expected")
    return metadata


def refuse_weights(path: Path, start: bytes) -> None:
    """Raises FileFormatError for a file of weights without a network, which begins with the bytes `start`: a checkpoint of PyTorch."""
    pickled = start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5")  # the opcode PROTO, and its version
    if start.startswith(ZIP_MAGIC):
        try:
            with zipfile.ZipFile(path) as archive:
                names = {name.partition("/")[2] for name in archive.namelist()}
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            return  # what reads the archive says what is wrong with it
        pickled = "data.pkl" in names and not names & {"archive_format", "constants.pkl"}
    if pickled:
        raise FileFormatError(
            f"{path} holds weights without a network (a state dict): name the model that they belong to, "
            f"as in `fastcnn predict MODEL --weights {path}`"
        )


def refuse_safetensors(path: Path) -> None:
    """Raises FileFormatError for what `fastcnn.save` writes, and for weights in the safetensors format; says what to do with them."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= path.stat().st_size - 8:
            return
        text = file.read(length)
    try:
        header = json.loads(text) if text.startswith(b"{") else None
    except ValueError:
        return
    if not isinstance(header, dict):
        return
    if KEY in (header.get("__metadata__") or {}):
        raise FileFormatError(
            f"{path} is a module that fastcnn.save wrote, not an exported file: fastcnn.load({path.name!r}) checks it while it reads it"
        )
    raise FileFormatError(f"{path} holds weights only: `fastcnn export MODEL --weights {path.name}` makes a file that can be verified")


def _of_archive(path: Path, file: BinaryIO) -> tuple[str, str | None]:
    try:
        with zipfile.ZipFile(file) as archive:
            names = {name.partition("/")[2]: name for name in archive.namelist()}
            if "archive_format" in names and archive.read(names["archive_format"]) == b"pt2":
                format_ = "pt2"
            elif "constants.pkl" in names and any(name.startswith("code/") for name in names):
                format_ = "torchscript"
            else:
                raise FileFormatError(f"{path} is neither ONNX, TorchScript nor .pt2")
            text = archive.read(names[f"extra/{KEY}"]).decode() if f"extra/{KEY}" in names else None
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} has damaged metadata: {error}") from error
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{path} is truncated or damaged: {error}") from error
    return format_, text


# -- ONNX: protobuf's wire format, of which only the outermost message is read -----------------------------------------


def _of_onnx(path: Path, file: BinaryIO) -> str | None:
    """The value of our metadata entry; None without one."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    found, text = set(), None
    try:
        while file.tell() < end:
            number, size = _field(file)
            after = file.tell() + size
            if after > end:
                raise ValueError("cut off")
            if size:
                found.add(number)
            if number == _METADATA and text is None:
                text = _entry(file, after)
            file.seek(after)
    except (ValueError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path} is truncated, or neither ONNX, TorchScript nor .pt2") from error
    if not {_IR_VERSION, _GRAPH} <= found:
        raise FileFormatError(f"{path} is neither ONNX, TorchScript nor .pt2")
    return text


def _entry(file: BinaryIO, end: int) -> str | None:
    """The value of a key and value pair that ends at `end`, if the key is ours."""
    pair = {}
    while file.tell() < end:
        number, size = _field(file)
        pair[number] = file.read(size).decode()
    return pair.get(_ENTRY_VALUE, "") if pair.get(_ENTRY_KEY) == KEY else None


def _field(file: BinaryIO) -> tuple[int, int]:
    """(number, bytes that its value takes from here on) of the field that begins here."""
    tag = _varint(file)
    kind = tag & 7
    if kind == _VARINT:
        start = file.tell()
        _varint(file)
        size = file.tell() - start
        file.seek(start)
    elif kind == _LENGTH:
        size = _varint(file)
    elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
        size = 8 if kind == _EIGHT_BYTES else 4
    else:
        raise ValueError(f"no field of protobuf is of kind {kind}")
    return tag >> 3, size


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("cut off")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("a number of more than 64 bits")
