"""Where fastcnn keeps what it may make again: one folder, and nothing of the libraries that it uses elsewhere in a user's home."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """`$FASTCNN_CACHE`, or `fastcnn` in the user's cache folder."""
    if own := os.environ.get("FASTCNN_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "fastcnn")


def import_matplotlib() -> Any:
    """The `matplotlib` package, which makes folders for settings and for a list of fonts when it is imported.

    Where the user has neither and said nothing about them, both are in fastcnn's own cache.
    """
    if "matplotlib" not in sys.modules and not any(folder.exists() for folder in _matplotlib_folders()):
        os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))
    import matplotlib

    return matplotlib


def _matplotlib_folders() -> list[Path]:
    home = Path.home()
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return [config / "matplotlib", cache / "matplotlib", home / ".matplotlib"]
