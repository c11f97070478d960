"""Parquet through pyarrow, which is an extra: pictures in the rows of a file, and parts."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from fastcnn.errors import BackendError
from fastcnn.scale.places import SourceError, open_place

# Columns of encoded pictures, as the common datasets call them, the first one that is there; else the only binary column.
_PICTURES = ("image", "jpg", "png", "bytes", "content", "data")
_NAMES = ("file", "path", "file_name", "filename", "__key__", "key", "id")
_ROWS_AT_ONCE = 64  # that are in memory, encoded


def pyarrow_parquet() -> Any:
    """The module `pyarrow.parquet`. Raises BackendError where it is not installed."""
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise BackendError("Parquet needs pyarrow, which is not installed: pip install 'fastcnn[scale]', or --part-format jsonl") from error


def row_groups(place: str) -> int:
    """How many row groups a file has. Raises SourceError."""
    with open_place(place) as file:
        return int(_open(place, file).num_row_groups)


def rows_of(place: str, group: int) -> Iterator[tuple[str, bytes | None]]:
    """(name, encoded picture or None) of each row of a row group. Raises SourceError."""
    with open_place(place) as source:
        file = _open(place, source)
        picture, name = _columns(place, file.schema_arrow)
        try:
            number = 0
            columns = [picture] if name is None else [picture, name]
            for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=columns):
                for row in batch.to_pylist():
                    yield _row(row[picture], row[name] if name else None, f"row {number}")
                    number += 1
        except Exception as error:
            raise SourceError(f"{place} cannot be read: {str(error).partition(chr(10))[0]}") from error


def _row(value: Any, name: Any, number: str) -> tuple[str, bytes | None]:
    """Datasets of Hugging Face keep {"bytes", "path"} in the picture's column."""
    if isinstance(value, dict):
        name, value = name or value.get("path"), value.get("bytes")
    return str(name) if name is not None else number, value


def _open(place: str, source: Any) -> Any:
    module = pyarrow_parquet()
    try:
        return module.ParquetFile(source)
    except Exception as error:
        raise SourceError(f"{place} cannot be read as Parquet: {str(error).partition(chr(10))[0]}") from error


def _columns(place: str, schema: Any) -> tuple[str, str | None]:
    """Names of the columns with the pictures and, where there is one, with their names."""
    import pyarrow as pa

    def holds_bytes(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            index = kind.get_field_index("bytes")
            return index >= 0 and holds_bytes(kind.field(index).type)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    binary = [field.name for field in schema if holds_bytes(field.type)]
    known = [name for name in _PICTURES if name in binary] or binary
    if not known or (len(binary) > 1 and known == binary and binary[0] not in _PICTURES):
        raise SourceError(f"{place} has {len(binary)} binary columns: one called {', '.join(_PICTURES[:-1])} or {_PICTURES[-1]} holds the pictures")
    text = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    return known[0], next((name for name in _NAMES if name in text), None)
