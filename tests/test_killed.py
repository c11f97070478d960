"""What a killed process leaves: nothing after the next write in that folder, and no process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fastcnn.export
from fastcnn.files import replacing
from fastcnn.owners import is_abandoned, own_mark

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")

WRITER = """
import sys, time
from fastcnn.files import replacing
with replacing("a.txt") as draft:
    draft.write_text("half")
    (draft.parent / ".tmp of a library").write_text("half")
    print(draft, flush=True)
    time.sleep(60)
"""


def started(code, folder):
    process = subprocess.Popen([sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()


def test_drafts_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path):
    dead, _ = started(WRITER, tmp_path)
    dead.kill()
    dead.communicate()
    assert len(list(tmp_path.iterdir())) == 1
    living, draft = started(WRITER, tmp_path)
    try:
        assert [path.name for path in tmp_path.iterdir()] == [Path(draft).parent.name]
        with replacing(tmp_path / "b.txt") as own:
            own.write_text("whole")
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([Path(draft).parent.name, "b.txt"])
    finally:
        living.kill()
        living.communicate()


def test_whose_draft_it_is(tmp_path):
    own = tmp_path / f".a.{own_mark()}.part"
    foreign = tmp_path / ".a.00000000-1-1-00000000.part"
    for path in (own, foreign, tmp_path / ".a.part"):
        path.touch()
        assert not is_abandoned(path)
    os.utime(foreign, (0, 0))
    assert is_abandoned(foreign)


@pytest.mark.parametrize("how", ["the signal", "the pipe"])
def test_a_child_ends_with_its_parent(how, tmp_path):
    """Killed while the child waits for its batches; by the pipe alone where this process is the parent and closes it."""
    script = str(Path(fastcnn.export.__file__).with_name("fresh_process.py"))
    if how == "the pipe":
        command = [sys.executable, "-P", script, "pt2", "none", str(os.getpid())]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        child.stdin.close()
        assert child.wait(60) == 1
        return
    code = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-P", {script!r}, "pt2", "none", str(os.getpid())], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
time.sleep(0.5)
print(child.pid, flush=True)
time.sleep(60)
"""
    parent, pid = started(code, tmp_path)
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 60
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away")
def test_what_is_replaced_hands_on_its_mode_and_owner(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(0o640)
    os.chown(path, 1234, 4321)
    (tmp_path / "link").symlink_to(path)
    for target in (path, tmp_path / "link"):
        with replacing(target) as draft:
            draft.write_text(target.name)
        there = path.stat()
        assert (path.read_text(), there.st_mode & 0o777, there.st_uid, there.st_gid) == (target.name, 0o640, 1234, 4321)
    assert (tmp_path / "link").is_symlink()
