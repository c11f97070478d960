"""Reading and writing the two containers: ONNX protobuf, and the zip archive of TorchScript and `.pt2`.

Both are written with the metadata last, after the bytes that were checked, so that adding the figures of a check cannot change what was checked.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx.numpy_helper

from fastcnn.archives import ZIP_MAGIC, ArchiveError
from fastcnn.errors import FileFormatError, RequestError
from fastcnn.export.archive import write_archive
from fastcnn.export.description import KEY, check_fields, open_archive, parse, refuse_safetensors, refuse_weights

_WEIGHT_RECORDS = re.compile(r"(constants|data|data/weights|data/constants)/[^/]+")


@dataclass(frozen=True)
class Container:
    """A file's content without our metadata: what is checked, and what the digests cover.

    Attributes:
        damaged: records whose checksum does not match their bytes.
    """

    format: str
    content: bytes | Mapping[str, bytes]
    damaged: tuple[str, ...] = ()

    def write(self, path: Path, metadata: Mapping[str, Any] | None = None) -> None:
        """Write the file; byte for byte the same for the same content and metadata."""
        text = json.dumps(metadata, ensure_ascii=False, separators=(",", ":"), default=str) if metadata is not None else None
        if isinstance(self.content, bytes):
            # Concatenated protobuf messages merge: the entry is appended to the list of metadata.
            entry = (
                onnx.ModelProto(metadata_props=[onnx.StringStringEntryProto(key=KEY, value=text)]).SerializeToString() if text is not None else b""
            )
            path.write_bytes(self.content + entry)
        else:
            extra = {f"extra/{KEY}": text.encode()} if text is not None else {}
            write_archive(path, {**self.content, **extra})

    @property
    def opset(self) -> int | None:
        """Version of the standard operators in an ONNX file; None for any other format."""
        if not isinstance(self.content, bytes):
            return None
        model = onnx.load_model_from_string(self.content)
        return next((entry.version for entry in model.opset_import if entry.domain == ""), None)

    def digests(self) -> dict[str, str]:
        """SHA-256 of the weights (names, dtypes, shapes, bytes), and of the graph: everything else but our metadata."""
        if isinstance(self.content, bytes):
            return _onnx_digests(onnx.load_model_from_string(self.content))
        weights = {name: data for name, data in self.content.items() if _WEIGHT_RECORDS.fullmatch(name)}
        rest = {name: data for name, data in self.content.items() if name not in weights}
        return {"weights": _sha256_of(weights.items()), "graph": _sha256_of(rest.items())}


def read_container(path: Path) -> tuple[Container, dict[str, Any]]:
    """(content, metadata) of a file that fastcnn wrote.

    Raises:
        RequestError: no such file.
        FileFormatError: truncated, of another format, or without fastcnn's metadata.
    """
    if not path.is_file():
        raise RequestError(f"{path} is a folder" if path.is_dir() else f"{path} does not exist")
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(ZIP_MAGIC):
        container, text = _read_archive(path)
    else:
        refuse_weights(path, start)
        refuse_safetensors(path)
        container, text = _read_onnx(path)
    return container, parse(path, container.format, text)


# -- ONNX --------------------------------------------------------------------------------------------------------------


def _read_onnx(path: Path) -> tuple[Container, str | None]:
    with path.open("rb") as file:
        check_fields(path, file)
    data = path.read_bytes()
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's exceptions differ between its implementations
        raise FileFormatError(f"{path} is truncated, or neither ONNX, TorchScript nor .pt2") from error
    if not model.ir_version or not model.graph.node:
        raise FileFormatError(f"{path} is neither ONNX, TorchScript nor .pt2")
    text = next((entry.value for entry in model.metadata_props if entry.key == KEY), None)
    kept = [entry for entry in model.metadata_props if entry.key != KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    return Container("onnx", serialize(model)), text


def serialize(model: onnx.ModelProto) -> bytes:
    """Bytes of a model; the same in every process."""
    return model.SerializeToString(deterministic=True)


def _onnx_digests(model: onnx.ModelProto) -> dict[str, str]:
    tensors = [
        (f"{tensor.name}\0{tensor.data_type}\0{','.join(map(str, tensor.dims))}", _tensor_bytes(tensor))
        for tensor in sorted(model.graph.initializer, key=lambda tensor: tensor.name)
    ]
    del model.graph.initializer[:]
    return {"weights": _sha256_of(tensors), "graph": _sha256_of([("", serialize(model))])}


def _tensor_bytes(tensor: onnx.TensorProto) -> bytes:
    """The numbers of a tensor, whichever of its fields holds them."""
    return tensor.raw_data if tensor.HasField("raw_data") else onnx.numpy_helper.to_array(tensor).tobytes()


# -- the archive of TorchScript and .pt2 -------------------------------------------------------------------------------


def _read_archive(path: Path) -> tuple[Container, str | None]:
    records: dict[str, bytes] = {}
    damaged = []
    with path.open("rb") as file:
        directory, format_ = open_archive(path, file)
        try:
            for name in directory.records:
                records[name] = directory.read(file, name)
                if not directory.holds(name, records[name]):
                    damaged.append(name)
        except ArchiveError as error:
            raise FileFormatError(f"{path} is truncated or damaged: {error}") from error
    text = records.pop(f"extra/{KEY}", None)
    try:
        return Container(format_, records, tuple(damaged)), None if text is None else text.decode()
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} has damaged metadata: {error}") from error


def _sha256_of(entries: Iterable[tuple[str, bytes]] | Sequence[tuple[str, bytes]]) -> str:
    digest = hashlib.sha256()
    for name, data in sorted(entries, key=lambda entry: entry[0]):
        digest.update(f"{name}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()
