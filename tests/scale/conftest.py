"""Tars of small pictures."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from picture_support import write_pictures


@pytest.fixture
def tars(tmp_path: Path) -> Callable[..., list[str]]:
    """`tars(4, 10, corrupt=(3,))` writes t/0.tar … t/3.tar with ten pictures each beside a label each; returns `tar/member` of all."""

    def write(count: int, each: int, corrupt: tuple[int, ...] = ()) -> list[str]:
        files = write_pictures(tmp_path / "loose", count * each, corrupt)
        (tmp_path / "t").mkdir()
        names = []
        for number in range(count):
            with tarfile.open(tmp_path / "t" / f"{number}.tar", "w") as tar:
                for file in files[number * each : (number + 1) * each]:
                    tar.add(file, Path(file).name)
                    label = Path(file).with_suffix(".cls")
                    label.write_text("3")
                    tar.add(label, label.name)
                    label.unlink()
                    names.append(f"t/{number}.tar/{Path(file).name}")
        return names

    return write
