"""The zip archive of TorchScript and `.pt2`, as PyTorch reads and writes it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

_ALIGNMENT = 64  # of tensor bytes in the archive, as PyTorch writes them, so that they can be memory-mapped


def write_archive(path: Path, records: Mapping[str, bytes]) -> None:
    """An archive that PyTorch reads: stored, no dates, each record's bytes at a multiple of 64."""
    with path.open("wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, data in records.items():
            info = zipfile.ZipInfo(f"archive/{name}", date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 0  # else it says on which system it was written
            start = file.tell() + 30 + len(info.filename.encode())  # 30: the fixed part of a local header
            padding = -(start + 4) % _ALIGNMENT  # 4: the header of the extra field
            info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
            archive.writestr(info, data)


def read_records(data: zipfile.ZipFile) -> dict[str, bytes]:
    """Records of an archive that PyTorch wrote, without its top folder, in their order, and without its random-looking serialization id."""
    names = {info.filename: info.filename.partition("/")[2] for info in data.infolist()}
    return {name: data.read(path) for path, name in names.items() if name != ".data/serialization_id"}
