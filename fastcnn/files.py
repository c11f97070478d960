"""Writing files so that they appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fastcnn.errors import RequestError

_DRAFT = ".part"


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path beside `path` with its suffix, and moves what was written there into place if the block ends well.

    Raises RequestError if the folder cannot be written to.
    """
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=f"{_DRAFT}{path.suffix}", dir=path.parent)
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes the file private; give it the mode that open() would have given.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_drafts(folder: Path) -> None:
    """Removes what a killed process left of `replacing` in a folder that no other process is writing to."""
    for draft in folder.glob(f".*{_DRAFT}.*"):
        draft.unlink(missing_ok=True)
