"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from fastcnn.errors import ParityError, RequestError
from fastcnn.files import check_target, replacing, write_text


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


def fail(path, error):
    with replacing(path) as draft:
        if isinstance(error, OSError) and error.filename == "draft":
            error = OSError(error.errno, error.strerror, str(draft))
        raise error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.EPERM, "Operation not permitted", "draft"), "Operation not permitted"),
        (SafetensorError("Error while serializing: I/O error: no room (os error 28)"), os.strerror(28)),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
            "is the disk full",
        ),
    ],
    ids=["write", "rename", "safetensors", "PyTorch"],
)
def test_a_write_that_fails_names_the_file_and_not_the_draft(tmp_path, error, said):
    with pytest.raises(RequestError, match=rf"^{re.escape(str(tmp_path))}/model\.pt cannot be written: .*{said}") as raised:
        fail(tmp_path / "model.pt", error)
    assert ".part" not in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file", "input.png"), ValueError("os error"), ParityError("differs")], ids=repr)
def test_what_is_no_failure_to_write_stays_what_it_is(tmp_path, error):
    with pytest.raises(type(error)) as raised:
        fail(tmp_path / "model.pt", error)
    assert raised.value is error


@pytest.mark.skipif(os.name == "nt", reason="the limit on the size of files is Unix's")
def test_real_writers_on_a_disk_that_takes_no_more(tmp_path):
    """A limit on the size of files stands for the full disk; in a process of its own, since it holds for all that the process writes."""
    code = """
import resource, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from fastcnn.errors import RequestError
from fastcnn.files import replacing
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
tensor = torch.zeros(1_000_000)
def write(path, writer):
    try:
        with replacing(path) as draft:
            writer(draft)
    except RequestError as error:
        print(error)
write("a.bin", lambda draft: draft.write_bytes(bytes(1_000_000)))
write("a.safetensors", lambda draft: save_file({"x": tensor}, draft))
write("a.pt", lambda draft: torch.save(tensor, draft))
print([path.name for path in Path().iterdir()])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *lines, left = done.stdout.splitlines()
    assert [line.partition(" cannot be written: ")[0] for line in lines] == ["a.bin", "a.safetensors", "a.pt"], done.stdout
    assert ".part" not in done.stdout
    assert left == "[]"


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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes in folders")
def test_a_device_or_pipe_is_no_target(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(RequestError, match="is a device or a pipe: give -o the name of a file"):
            check_target(path, True, "-o")


def test_text_has_plain_line_ends(tmp_path):
    write_text(tmp_path / "a.txt", "ä\nb\n")

    assert (tmp_path / "a.txt").read_bytes() == "ä\nb\n".encode()
