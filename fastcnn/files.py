"""Writing files so that they appear whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fastcnn.errors import FastcnnError, RequestError
from fastcnn.owners import is_abandoned, own_mark

_DRAFT = ".part"


@contextlib.contextmanager
def replacing(path: str | Path, *, suffix: str | None = None) -> Iterator[Path]:
    """Gives a temporary path with the suffix of `path`, and moves what was written there into place if the block ends well.

    It lies in a hidden folder of its own beside `path`, for some writers (safetensors among them) write a draft of their own first. Folders of
    processes that were killed are removed on the way. A file that is replaced hands on its mode and owner; a link is written through.

    Args:
        suffix: of the temporary path instead, for what reads the file before it is in place and goes by its suffix.

    Raises RequestError if the folder cannot be written to.
    """
    path = Path(path)
    real = _behind_link(path)
    _remove_abandoned(real.parent)
    folder = real.with_name(f".{real.stem[:60]}.{own_mark()}{_DRAFT}")
    temporary = folder / f"{real.stem[:60]}{real.suffix if suffix is None else suffix}"
    try:
        folder.mkdir(0o700)
        # Not mkstemp, which makes the file private: this one gets the mode that the umask leaves, as any file that a program creates.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        before = real.stat() if real.exists() else None
        mode = stat.S_IMODE((before or temporary.stat()).st_mode)
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise RequestError(f"{path} cannot be written: {error.strerror}") from error
    with _drafting(path, folder):
        yield temporary
        temporary.chmod(mode)  # some writers, safetensors among them, put a private file of their own in its place
        if before is not None:
            _give_to(temporary, before)
        temporary.replace(real)


@contextlib.contextmanager
def making_folder(path: Path) -> Iterator[Path]:
    """Gives a hidden folder beside `path`, and renames it to `path` if the block ends well; else nothing of it stays behind.

    Raises RequestError if the folder cannot be written.
    """
    _remove_abandoned(path.parent)
    draft = path.with_name(f".{path.name[:60]}.{own_mark()}{_DRAFT}")
    with _drafting(path, draft):
        draft.mkdir()
        yield draft
        if path.is_dir():
            path.rmdir()  # an empty one; Windows renames over none
        draft.rename(path)


@contextlib.contextmanager
def _drafting(path: Path, folder: Path) -> Iterator[None]:
    """Whatever happens, `folder` is gone afterwards. Raises RequestError that names `path` where the system did not take the bytes."""
    try:
        yield
    except FastcnnError:
        raise
    except Exception as error:
        reason = _write_failure(error, folder)
        if reason is None:
            raise
        raise RequestError(f"{path} cannot be written: {reason}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_folder_target(path: Path, option: str = "") -> Path:
    """Finds out before the work whether a folder can be made at `path`; nothing stays behind.

    Args:
        option: of the command line, that named the folder.

    Raises:
        RequestError: it is a file, or a folder with something in it, or the folder around it is missing or cannot be written to.
    """
    other = f"give {option + ' ' if option else ''}the name of a new folder"
    try:
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise RequestError(f"{path} is no folder: {other}")
        if path.is_dir() and any(path.iterdir()):
            raise RequestError(f"{path} exists and is not empty: {other}")
        around = path.absolute().parent
        if not around.is_dir():
            raise RequestError(f"{path} cannot be written: there is no folder {around}")
        with tempfile.TemporaryFile(dir=around):
            pass
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}") from error
    return path


def _behind_link(path: Path) -> Path:
    """The file that a symbolic link leads to, there or not; any other path as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _give_to(path: Path, before: os.stat_result) -> None:
    """Makes `path` the property of who owned what it replaces, as far as this process may."""
    now = path.stat()
    if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid) and hasattr(os, "chown"):
        with contextlib.suppress(PermissionError):
            os.chown(path, before.st_uid, before.st_gid)
            path.chmod(stat.S_IMODE(before.st_mode))  # a change of the owner takes set-user-ID away


def _write_failure(error: Exception, folder: Path) -> str | None:
    """Why the system did not take the bytes of what lies in `folder`, if that is what `error` says."""
    if isinstance(error, OSError):
        ours = error.filename is None or folder in Path(os.fsdecode(error.filename)).parents
        return error.strerror or str(error) if ours else None
    # safetensors and PyTorch write past Python, and wrap what the system said in errors of their own.
    text = str(error)
    number = re.search(r"\(os error (\d+)\)", text)
    if number is not None:
        return os.strerror(int(number[1]))
    return "PyTorch could not write all of it; is the disk full?" if "inline_container.cc" in text else None


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """A UTF-8 file with plain line ends, whole or not at all. Raises RequestError if it cannot be written."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")


def check_target(path: Path, force: bool, option: str = "") -> Path:
    """Finds out before the work whether a file can be written at `path`; nothing stays behind.

    Args:
        force: an existing file may be overwritten.
        option: of the command line, that named the file.

    Raises:
        RequestError: it is a folder, a device or a pipe, exists without `force`, or its folder is missing or cannot be written to.
    """
    if path.is_dir():
        raise RequestError(f"{path} is a folder: give {option + ' ' if option else ''}the name of a file")
    if path.exists() and not path.is_file():
        raise RequestError(f"{path} is a device or a pipe: give {option + ' ' if option else ''}the name of a file")
    if path.exists() and not force:
        raise RequestError(f"{path} exists: --force (force=True) overwrites it" + (f", or give {option} another name" if option else ""))
    folder = _behind_link(path).parent
    if not folder.is_dir():
        raise RequestError(f"{path} cannot be written: there is no folder {folder}")
    try:
        # Permission bits say nothing about a read-only disk, and nothing to root.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {folder}: {error.strerror}") from error
    return path


_tidied: set[Path] = set()


def _remove_abandoned(folder: Path) -> None:
    """Removes the drafts of processes that are gone, once for each folder."""
    folder = folder.absolute()
    if folder in _tidied:
        return
    _tidied.add(folder)
    with contextlib.suppress(OSError):
        for draft in [entry for entry in folder.iterdir() if entry.name.startswith(".") and entry.name.endswith(_DRAFT)]:
            if is_abandoned(draft):
                _remove(draft)


def _remove(draft: Path) -> None:
    with contextlib.suppress(OSError):
        if draft.is_dir() and not draft.is_symlink():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink()
