"""A strict reader of zip archives as PyTorch writes them: what the directory says is checked before a record is read, and only what is asked for is.

Strict, because several readers open the same file: a record that two of them could see differently (a name that stands twice, another name in
front of the bytes than in the directory, a size that lies) makes the archive a damaged one. Layout: APPNOTE.TXT of PKWARE, version 6.3.10.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from fastcnn.limits import MAX_BYTES, MAX_RECORDS, beyond, inflate

ZIP_MAGIC = b"PK\x03\x04"
STORED, DEFLATED = 0, 8

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s4B4HL2L5H2L")
_LOCAL = struct.Struct("<4s2B4HL2L2H")
_ENCRYPTED = 1 << 0 | 1 << 6 | 1 << 13
_PATCHES = 1 << 5


class ArchiveError(ValueError):
    """No archive, a damaged one, or one that asks for too much. The text says what is wrong, without the file's name."""


@dataclass(frozen=True)
class Record:
    """One record as the directory has it.

    Attributes:
        path: its full name.
        method: `STORED` or `DEFLATED`.
        crc: CRC-32 of its bytes.
        packed: bytes in the file.
        size: bytes of the record.
        offset: of its header in the file.
    """

    path: str
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    offset: int


@dataclass(frozen=True)
class Directory:
    """The records of an archive, by their names without the folder that all of them stand in, in the file's order."""

    records: Mapping[str, Record]
    start: int

    def read(self, file: BinaryIO, name: str) -> bytes:
        """The bytes of a record, whether or not they have its checksum (`holds`).

        Raises:
            ArchiveError: the header in front of the bytes contradicts the directory, or the bytes are not of the size that it says.
        """
        record = self.records[name]
        file.seek(record.offset)
        header = file.read(_LOCAL.size)
        if len(header) < _LOCAL.size:
            raise ArchiveError(f"record {name} is cut off")
        magic, _, _, flags, method, _, _, _, _, _, name_length, extra_length = _LOCAL.unpack(header)
        if magic != ZIP_MAGIC or file.read(name_length) != record.path.encode() or (flags, method) != (record.flags, record.method):
            raise ArchiveError(f"record {name} is not what the directory says")
        start = record.offset + _LOCAL.size + name_length + extra_length
        if start + record.packed > self.start:
            raise ArchiveError(f"record {name} does not end before the directory")
        file.seek(start)
        data = file.read(record.packed)
        if record.method == DEFLATED:
            try:
                data = inflate(data, record.size, raw=True)
            except ValueError as error:
                raise ArchiveError(f"record {name} is damaged: {error}") from error
        return data

    def holds(self, name: str, data: bytes) -> bool:
        """Whether `data` has the checksum of the record."""
        return zlib.crc32(data) == self.records[name].crc


def read_directory(file: BinaryIO) -> Directory:
    """What an archive holds, checked against the file's size and `fastcnn.limits`. No record is read.

    Raises:
        ArchiveError: it is damaged, holds what PyTorch does not write (encryption, other methods than deflate), or asks for too much.
    """
    length = file.seek(0, 2)
    count, size, start = _end(file, length)
    reason = beyond(MAX_RECORDS, "its records are", count)
    if reason is None and count * _ENTRY.size > size:
        reason = f"its directory has no room for {count:,} records"
    if reason is not None:
        raise ArchiveError(reason)
    file.seek(start)
    data = file.read(size)
    records: dict[str, Record] = {}
    folder, at, total, packed = None, 0, 0, 0
    for _ in range(count):
        record, at = _entry(data, at)
        top, _, name = record.path.partition("/")
        if name in records or (folder is not None and top != folder):
            raise ArchiveError(f"record {name} stands there twice" if name in records else f"its records stand in the folders {folder} and {top}")
        if record.offset + _LOCAL.size + record.packed > start:
            raise ArchiveError(f"record {name} does not end before the directory")
        folder, records[name] = top, record
        total, packed = total + record.size, packed + record.packed
    if at != size:
        raise ArchiveError("its directory holds more than its records")
    if packed > start:
        raise ArchiveError("its records overlap")
    grown = beyond(MAX_BYTES, "bytes that its records grow by when they are unpacked are", total - packed)
    if grown is not None:
        raise ArchiveError(grown)
    return Directory(records, start)


def _end(file: BinaryIO, length: int) -> tuple[int, int, int]:
    """(records, bytes of the directory, where it begins)."""
    tail_start = max(0, length - _END.size - 0xFFFF)
    file.seek(tail_start)
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise ArchiveError("its end, the directory of the archive, is missing")
    _, disk, first_disk, here, count, size, start, comment = _END.unpack_from(tail, at)
    if len(tail) - at != _END.size + comment or disk or first_disk or here != count:
        raise ArchiveError("the end of its directory is damaged")
    end = tail_start + at
    locator = at - _END64_LOCATOR.size
    if locator >= 0 and tail.startswith(b"PK\x06\x07", locator):
        _, _, end, _ = _END64_LOCATOR.unpack_from(tail, locator)
        if not 0 <= end <= length - _END64.size:
            raise ArchiveError("the end of its directory is damaged")
        file.seek(end)
        magic, own, _, _, disk, first_disk, here, count, size, start = _END64.unpack(file.read(_END64.size))
        if magic != b"PK\x06\x06" or disk or first_disk or here != count or end + 12 + own != tail_start + locator:
            raise ArchiveError("the end of its directory is damaged")
    if start + size != end:
        raise ArchiveError("its directory is not where its end says")
    return count, size, start


def _entry(data: bytes, at: int) -> tuple[Record, int]:
    """The entry of the directory at `at`, and where the next one begins."""
    if len(data) - at < _ENTRY.size:
        raise ArchiveError("its directory is cut off")
    fields = _ENTRY.unpack_from(data, at)
    magic, flags, method, crc, packed, size = fields[0], fields[5], fields[6], fields[9], fields[10], fields[11]
    name_length, extra_length, comment_length, disk, offset = *fields[12:16], fields[18]
    name_at = at + _ENTRY.size
    after = name_at + name_length + extra_length + comment_length
    if magic != b"PK\x01\x02" or after > len(data) or disk:
        raise ArchiveError("its directory is damaged")
    try:
        path = data[name_at : name_at + name_length].decode()
    except UnicodeDecodeError as error:
        raise ArchiveError("its directory holds a name that is no text") from error
    if flags & _ENCRYPTED:
        raise ArchiveError(f"record {path} is encrypted")
    if flags & _PATCHES or method not in (STORED, DEFLATED):
        raise ArchiveError(f"record {path} is compressed in a way that PyTorch does not read")
    extra = data[name_at + name_length : name_at + name_length + extra_length]
    size, packed, offset = _wide(extra, path, size, packed, offset)
    if method == STORED and size != packed:
        raise ArchiveError(f"record {path} has two sizes")
    return Record(path, flags, method, crc, packed, size, offset), after


def _wide(extra: bytes, path: str, *values: int) -> tuple[int, ...]:
    """The sizes and the offset, those beyond 32 bits from the extra field that holds them."""
    if 0xFFFFFFFF not in values:
        return values
    while len(extra) >= 4:
        tag, length = struct.unpack_from("<2H", extra)
        content, extra = extra[4 : 4 + length], extra[4 + length :]
        if tag == 1:
            found = []
            for value in values:
                if value == 0xFFFFFFFF:
                    if len(content) < 8:
                        break
                    value, content = int.from_bytes(content[:8], "little"), content[8:]
                found.append(value)
            if len(found) == len(values):
                return tuple(found)
    raise ArchiveError(f"record {path} lacks its size")
