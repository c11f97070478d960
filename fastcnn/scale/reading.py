"""The pictures of a shard, one after the other, encoded as they lie there."""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from typing import BinaryIO

from fastcnn.limits import MAX_BYTES, beyond
from fastcnn.pictures import PictureError, is_picture_name
from fastcnn.scale.parquet import rows_of
from fastcnn.scale.places import SourceError, is_url, open_place, read_place
from fastcnn.scale.shards import Shard, lines_of


@dataclass(frozen=True)
class Entry:
    """A picture that is not decoded yet.

    Attributes:
        file: its name: a path, a URL, a member of the tar, or what the Parquet file calls it.
        data: the encoded picture; None where `file` has to be opened for it.
        reason: why there is none.
    """

    file: str
    data: bytes | None = field(default=None, repr=False)
    reason: str | None = None

    def source(self) -> str | BinaryIO:
        """What `fastcnn.pictures.open_picture` opens. Raises PictureError for none, and SourceError where a bucket cannot be read."""
        if self.reason is not None:
            raise PictureError(self.reason)
        if self.data is not None:
            return BytesIO(self.data)
        if not is_url(self.file):
            return self.file
        try:
            return BytesIO(read_place(self.file))
        except FileNotFoundError as error:
            raise PictureError("there is no such file") from error


def entries(shard: Shard) -> Iterator[Entry]:
    """Every picture of a shard, in its order.

    Raises SourceError where the shard itself is damaged or gone, so that nobody knows what else was in it.
    """
    if shard.kind == "tar":
        yield from _members(shard.place)
    elif shard.kind == "parquet":
        for name, data in rows_of(shard.place, shard.number):
            yield Entry(name, data, "the row holds no picture" if data is None else None)
    else:
        yield from map(Entry, shard.files if shard.kind == "files" else lines_of(shard))


def _members(place: str) -> Iterator[Entry]:
    """Members that end like pictures; hidden ones are left out, as in folders."""
    with open_place(place) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:*") as tar:
                for member in tar:
                    if not member.isdir() and is_picture_name(member.name) and not os.path.basename(member.name).startswith("."):
                        yield _member(tar, member)
                _require_end(place, tar)
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise SourceError(f"{place} cannot be read as a tar: {error or type(error).__name__}") from error


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Entry:
    reason = beyond(MAX_BYTES, "its bytes are", member.size)
    if reason is not None:
        return Entry(member.name, reason=reason)
    try:
        content = tar.extractfile(member)
    except KeyError:
        return Entry(member.name, reason="a link to what is not in the archive")
    if content is None:
        return Entry(member.name, reason="not a file, but a device or a pipe")
    data = content.read()
    if len(data) != member.size and not (member.issym() or member.islnk()):
        raise tarfile.ReadError("unexpected end of data")
    return Entry(member.name, data)


def _require_end(place: str, tar: tarfile.TarFile) -> None:
    """tarfile takes a damaged header, and an archive that was cut between two members, for the end. The end is a block of zeros."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    block = tar.fileobj.read(tarfile.BLOCKSIZE)
    if block != bytes(tarfile.BLOCKSIZE):
        raise SourceError(
            f"{place} is no whole tar: {'it is cut off' if len(block) < tarfile.BLOCKSIZE else 'a header is damaged'} at byte {tar.offset}"
        )
