"""Writing files so that they appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fastcnn.errors import RequestError

_DRAFT = ".part"


@contextlib.contextmanager
def replacing(path: str | Path, *, suffix: str | None = None) -> Iterator[Path]:
    """Gives a temporary path beside `path` with its suffix, and moves what was written there into place if the block ends well.

    Args:
        suffix: of the temporary path instead, for what reads the file before it is in place and goes by its suffix.

    Raises RequestError if the folder cannot be written to.
    """
    path = Path(path)
    suffix = path.suffix if suffix is None else suffix
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{_DRAFT}{suffix}")
    try:
        # Not mkstemp, which makes the file private: this one gets the mode that the umask leaves, as any file that a program creates.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = stat.S_IMODE(temporary.stat().st_mode)
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}") from error
    try:
        yield temporary
        temporary.chmod(mode)  # some writers, safetensors among them, put a private file of their own in its place
        temporary.replace(path)
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


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
        RequestError: it is a folder, exists without `force`, or its folder is missing or cannot be written to.
    """
    if path.is_dir():
        raise RequestError(f"{path} is a folder: give {option + ' ' if option else ''}the name of a file")
    if path.exists() and not force:
        raise RequestError(f"{path} exists: --force (force=True) overwrites it" + (f", or give {option} another name" if option else ""))
    if not path.parent.is_dir():
        raise RequestError(f"{path} cannot be written: there is no folder {path.parent}")
    try:
        # Permission bits say nothing about a read-only disk, and nothing to root.
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {path.parent}: {error.strerror}") from error
    return path


def remove_drafts(folder: Path) -> None:
    """Removes what a killed process left of `replacing` in a folder that no other process is writing to."""
    for draft in folder.glob(f".*{_DRAFT}.*"):
        draft.unlink(missing_ok=True)
