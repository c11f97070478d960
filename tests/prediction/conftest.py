"""Pictures and files that the tests of prediction share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from picture_support import write_pictures


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., list[str]]:
    """`pictures(12, corrupt=(3, 7))` writes small pictures into a folder and returns their paths in order; those numbers are damaged."""
    return lambda count, corrupt=(): write_pictures(tmp_path / "pictures", count, corrupt)
