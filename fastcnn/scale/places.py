"""Where bytes come from: local paths, and URLs of whatever fsspec reads (s3://, gs://, https:// …)."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar, cast

from fastcnn.errors import BackendError, RequestError
from fastcnn.text import first_line

T = TypeVar("T")


class SourceError(RequestError):
    """A source that cannot be read, so that nobody can say which pictures are in it; what has no part is tried again by the next run."""


def is_url(place: str) -> bool:
    """Whether fsspec is to read a place."""
    return "://" in place


def open_place(place: str) -> BinaryIO:
    """The bytes of a file, open for reading and seeking. Raises SourceError."""
    if is_url(place):
        system, path = _remote(place)
        return cast(BinaryIO, _trying(place, lambda: system.open(path, "rb")))
    return _trying(place, lambda: cast(BinaryIO, open(place, "rb")))


def read_place(place: str) -> bytes:
    """All bytes of a file. Raises SourceError, and FileNotFoundError where there is none."""
    if not is_url(place):
        with open_place(place) as file:
            return file.read()
    system, path = _remote(place)
    try:
        return bytes(system.cat_file(path))
    except FileNotFoundError:
        raise
    except Exception as error:
        raise SourceError(f"{place} cannot be read: {_reason(error)}") from error


def size_of(place: str) -> int:
    """Bytes of a file. Raises SourceError."""
    if is_url(place):
        system, path = _remote(place)
        return int(_trying(place, lambda: system.size(path)) or 0)
    return _trying(place, lambda: os.path.getsize(place))


def find_places(source: str) -> tuple[list[str], bool]:
    """(the files that a source means, sorted; whether they were found in a folder or by a pattern). Hidden ones in folders are left out.

    Raises SourceError where there is nothing.
    """
    if is_url(source):
        return _find_remote(source)
    if os.path.isdir(source):
        return _walk(source), True
    if os.path.exists(source):
        return [source], False
    if glob.has_magic(source):
        found: list[str] = []
        for path in sorted(glob.glob(source, recursive=True)):
            # With ** the files of a folder match by themselves.
            if not os.path.isdir(path):
                found.append(path)
            elif "**" not in source:
                found += _walk(path)
        return found, True
    raise SourceError(f"no file or folder {source}")


def _walk(folder: str) -> list[str]:
    paths = []

    def refuse(error: OSError) -> None:
        raise SourceError(f"{error.filename} cannot be read: {error.strerror}") from error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [os.path.join(parent, name) for name in files if not name.startswith(".")]
    return sorted(paths)


def _find_remote(url: str) -> tuple[list[str], bool]:
    system, path = _remote(url)
    is_pattern = glob.has_magic(path)
    if not is_pattern and _trying(url, lambda: system.isfile(path)):
        return [url], False
    found = _trying(url, lambda: system.glob(path) if is_pattern else system.find(path))
    if not found:
        raise SourceError(f"nothing is at {url}, or it cannot be read")
    shown = [one for one in found if not any(part.startswith(".") for part in one.removeprefix(path).split("/"))]
    return sorted(str(system.unstrip_protocol(one)) for one in shown), True


def _remote(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise BackendError(f"{url} is read through fsspec, which is not installed: pip install 'fastcnn[scale]'") from error
    return cast("tuple[Any, str]", _trying(url, lambda: url_to_fs(url)))


def _trying(place: str, read: Callable[[], T]) -> T:
    """What `read` gives. The clients of buckets raise errors of their own kinds, so any is taken for a source that cannot be read."""
    try:
        return read()
    except Exception as error:
        raise SourceError(f"{place} cannot be read: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return str(error).strip().partition("\n")[0] or first_line(error)
