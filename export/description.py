"""What a file says of itself, read past the network: neither PyTorch nor the onnx package is imported for it, and no weight is loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

from fastcnn.archives import ZIP_MAGIC, ArchiveError, Directory, read_directory
from fastcnn.errors import FileFormatError, RequestError
from fastcnn.export.formats import FORMATS
from fastcnn.export.schema import DamagedError, check_description
from fastcnn.limits import MAX_RECORDS, beyond, parse_json
from fastcnn.weight_files import safetensors_header

# The entry that holds our metadata in every format.
KEY = "fastcnn"

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
        if start.startswith(ZIP_MAGIC):
            return _of_archive(path, file)
        refuse_weights(path, start)
        return "onnx", _of_onnx(path, file)


def parse(path: Path, format_: str, text: str | None) -> dict[str, Any]:
    """The object in a file's entry, its fields checked. Raises FileFormatError where there is no entry, or it holds no such object."""
    if text is None:
        raise FileFormatError(f"{path} was not exported by fastcnn: it is {FORMATS[format_].title}, but lacks the metadata entry {KEY!r}")
    try:
        metadata = parse_json(text)
        check_description(metadata, format_)
    except DamagedError as error:
        raise FileFormatError(f"{path} is damaged: {error}") from error
    except ValueError as error:
        raise FileFormatError(f"{path} has damaged metadata: {error}") from error
    return metadata


def refuse_weights(path: Path, start: bytes) -> None:
    """Raises FileFormatError for a file of weights without a network, which begins with the bytes `start`: a bare pickle of PyTorch."""
    if start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5"):  # the opcode PROTO, and its version
        raise _weights_only(path)


def _weights_only(path: Path) -> FileFormatError:
    return FileFormatError(
        f"{path} holds weights without a network (a state dict): name the model that they belong to, as in `fastcnn predict MODEL --weights {path}`"
    )


def refuse_safetensors(path: Path) -> None:
    """Raises FileFormatError for what `fastcnn.save` writes, and for weights in the safetensors format; says what to do with them."""
    try:
        header = safetensors_header(path)
    except ValueError:
        return
    if KEY in (header.get("__metadata__") or {}):
        raise FileFormatError(
            f"{path} is a module that fastcnn.save wrote, not an exported file: fastcnn.load({path.name!r}) checks it while it reads it"
        )
    raise FileFormatError(f"{path} holds weights only: `fastcnn export MODEL --weights {path.name}` makes a file that can be verified")


# -- the archive of TorchScript and .pt2 -------------------------------------------------------------------------------


def open_archive(path: Path, file: BinaryIO) -> tuple[Directory, str]:
    """(directory, format) of an archive that may have been exported by fastcnn.

    Raises FileFormatError where it was not: it is damaged, a checkpoint, or packed.
    """
    try:
        directory = read_directory(file)
        names = directory.records
        if "data.pkl" in names and not {"archive_format", "constants.pkl"} & set(names):
            raise _weights_only(path)
        if "archive_format" in names and directory.read(file, "archive_format") == b"pt2":
            return directory, "pt2"
    except ArchiveError as error:
        raise FileFormatError(f"{path} is truncated or damaged: {error}") from error
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return directory, "torchscript"
    raise FileFormatError(f"{path} is neither ONNX, TorchScript nor .pt2")


def _of_archive(path: Path, file: BinaryIO) -> tuple[str, str | None]:
    directory, format_ = open_archive(path, file)
    try:
        text = directory.read(file, f"extra/{KEY}").decode() if f"extra/{KEY}" in directory.records else None
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} has damaged metadata: {error}") from error
    except ArchiveError as error:
        raise FileFormatError(f"{path} is truncated or damaged: {error}") from error
    return format_, text


# -- ONNX: protobuf's wire format, of which only the outermost message is read -----------------------------------------


def check_fields(path: Path, file: BinaryIO) -> None:
    """Raises FileFormatError for a file whose outermost message is not that of ONNX, or has too many fields."""
    _of_onnx(path, file)


def _of_onnx(path: Path, file: BinaryIO) -> str | None:
    """The value of our metadata entry; None without one."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    found, text, fields = set(), None, 0
    try:
        while file.tell() < end:
            number, size = _field(file)
            fields += 1
            reason = beyond(MAX_RECORDS, "its fields are", fields) if fields % 1024 == 0 else None
            if reason is not None:
                raise FileFormatError(f"{path} is damaged: {reason}")
            after = file.tell() + size
            if after > end:
                raise ValueError("cut off")
            if size:
                found.add(number)
            if number == _METADATA and text is None:
                text = _entry(file, after)
            file.seek(after)
    except FileFormatError:
        raise
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
        if file.tell() + size > end:
            raise ValueError("cut off")
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
