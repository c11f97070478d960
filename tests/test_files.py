"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import stat

import pytest

from fastcnn.errors import RequestError
from fastcnn.files import check_target, remove_drafts, replacing, write_text


def test_appears_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as draft:
        assert draft.suffix == ".txt"
        draft.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
    if os.name == "posix":
        (tmp_path / "plain").touch()
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def write_half(path):
    with replacing(path) as draft:
        draft.write_text("half")
        raise KeyboardInterrupt


def test_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(KeyboardInterrupt):
        write_half(path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(RequestError, match=r"a\.txt cannot be written: No such file or directory"), replacing(tmp_path / "none" / "a.txt"):
        pass


def test_drafts_of_a_killed_process(tmp_path):
    (tmp_path / ".a.x1y2.part.txt").touch()
    (tmp_path / "part.txt").touch()
    remove_drafts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["part.txt"]


def test_a_target_is_checked_before_the_work(tmp_path):
    (tmp_path / "there").write_text("old")

    assert check_target(tmp_path / "new", force=False) == tmp_path / "new"
    assert check_target(tmp_path / "there", force=True) == tmp_path / "there"
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    for path, message in (
        (tmp_path / "there", r"there exists: --force \(force=True\) overwrites it, or give --json another name"),
        (tmp_path, "is a folder: give --json the name of a file"),
        (tmp_path / "none" / "new", "there is no folder .*none"),
    ):
        with pytest.raises(RequestError, match=message):
            check_target(path, False, "--json")


def test_text_has_plain_line_ends(tmp_path):
    write_text(tmp_path / "a.txt", "ä\nb\n")

    assert (tmp_path / "a.txt").read_bytes() == "ä\nb\n".encode()
