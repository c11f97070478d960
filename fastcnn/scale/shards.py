"""The input in shards: every process that is given the same sources finds the same ones, in the same order."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import BinaryIO, Literal

from fastcnn.errors import RequestError
from fastcnn.pictures import is_picture_name
from fastcnn.scale.parquet import row_groups
from fastcnn.scale.places import SourceError, find_places, open_place, size_of

FILES_PER_SHARD = 10_000
_TARS = (".tar", ".tar.gz", ".tgz")
_LISTS = (".txt", ".lst", ".list")
_DIGITS = 12  # of a SHA-256, in hex: 2^48 names until two are likely to meet


@dataclass(frozen=True)
class Shard:
    """What is worked on, and done, as one.

    Attributes:
        kind: "tar"; "parquet", a row group of a file; "list", lines of a file that names pictures; or "files", pictures themselves.
        place: path or URL of the tar, the Parquet file or the list.
        number: of the row group, of the first picture, or of the byte at which the first line of the list begins.
        count: lines of the list.
        files: the pictures of "files".
        digest: of what it is: its place and size, or the names in it. Contents of pictures are not read for it.
    """

    kind: Literal["tar", "parquet", "list", "files"]
    place: str
    number: int = 0
    count: int = 0
    files: tuple[str, ...] = field(default=(), repr=False)
    digest: str = ""

    @property
    def name(self) -> str:
        """For the name of a file, and unlike that of any other shard."""
        readable = re.sub(r"[^A-Za-z0-9._-]+", "_", self.place)[-60:].strip("._-") or "shard"
        return f"{readable}-{self.digest}"

    @property
    def described(self) -> str:
        """What it is, for a person and for the rows of its part."""
        return self.place if self.kind == "tar" else f"{self.place}#{self.number}"


def find_shards(sources: Iterable[str], *, files_per_shard: int = FILES_PER_SHARD) -> list[Shard]:
    """The shards of folders, patterns, tars, Parquet files, lists of pictures (`.txt`, `.lst`, `.list`: a path or URL a line) and pictures.

    Of a folder or a pattern the tars, the Parquet files and the pictures are taken, sorted by name. A source that is met twice counts once.

    Raises:
        SourceError: a source cannot be read, or holds none of these.
        BackendError: what reads it is not installed.
    """
    if files_per_shard < 1:
        raise RequestError(f"a shard of files holds 1 or more, not {files_per_shard}")
    found: dict[Shard, None] = {}
    for source in sources:
        places, is_search = find_places(source)
        pictures: list[str] = []
        before = len(found)
        for place in places:
            lower = place.lower()
            if lower.endswith(_TARS):
                found[_sized("tar", place)] = None
            elif lower.endswith(".parquet"):
                found |= dict.fromkeys(_sized("parquet", place, group) for group in range(row_groups(place)))
            elif lower.endswith(_LISTS) and not is_search:
                found |= dict.fromkeys(_of_list(place, files_per_shard))
            elif not is_search or is_picture_name(place):
                pictures.append(place)
        for start in range(0, len(pictures), files_per_shard):
            files = tuple(pictures[start : start + files_per_shard])
            found[Shard("files", source, start, len(files), files, _digest(source, *files))] = None
        if len(found) == before and not pictures and is_search:
            raise SourceError(f"no picture, tar or Parquet file in {source}")
    _require_apart(found)
    return list(found)


def _require_apart(shards: Iterable[Shard]) -> None:
    """A picture named by two sources would be answered twice, and the union of the parts would not be the input."""
    met: set[str] = set()
    for shard in shards:
        for file in shard.files:
            if file in met:
                raise RequestError(f"{file} is meant by two of the sources: give each picture once")
            met.add(file)


def parse_share(text: str) -> tuple[int, int]:
    """`2/8` → (2, 8): the third of eight shares. Raises RequestError for anything but 0 ≤ i < n."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text.strip())
    if match is None:
        raise RequestError(f"--shard is i/n, as in 0/8 for the first of eight shares; it is {text!r}")
    index, count = int(match[1]), int(match[2])
    if index >= count:
        last = f"the last of {count} is {count - 1}/{count}" if count else "there is no share of 0"
        raise RequestError(f"--shard {text} is out of range: shares are counted from 0, {last}")
    return index, count


def share_of(shards: Sequence[Shard], index: int, count: int) -> list[Shard]:
    """Every `count`-th shard from number `index` on."""
    return list(islice(shards, index, None, count))


def lines_of(shard: Shard) -> Iterator[str]:
    """The paths and URLs of a "list". Raises SourceError where the list has become another one."""
    with open_place(shard.place) as file:
        file.seek(shard.number)
        lines = list(islice(_lines(file), shard.count))
    if _digest(shard.place, *lines) != shard.digest:
        raise SourceError(f"{shard.place} was changed while it was worked on: start again")
    yield from lines


def _of_list(place: str, files_per_shard: int) -> Iterator[Shard]:
    """Its lines are read, not kept: a list may name more pictures than fit into memory."""
    with open_place(place) as file:
        while True:
            start = file.tell()
            lines = list(islice(_lines(file), files_per_shard))
            if not lines:
                break
            yield Shard("list", place, start, len(lines), digest=_digest(place, *lines))
    if start == 0:
        raise SourceError(f"{place} names no picture: a list has a path or URL a line")


def _lines(file: BinaryIO) -> Iterator[str]:
    """Lines that are not empty. Reads line by line, so that the file's position is behind the last one given."""
    while line := file.readline():
        if text := line.decode("utf-8", "surrogateescape").strip():
            yield text


def _sized(kind: Literal["tar", "parquet"], place: str, number: int = 0) -> Shard:
    return Shard(kind, place, number, digest=_digest(kind, place, str(number), str(size_of(place))))


def _digest(*parts: str) -> str:
    text = "\n".join(parts).encode("utf-8", "surrogateescape")
    return hashlib.sha256(text).hexdigest()[:_DIGITS]
