"""Processes in which nothing but PyTorch is loaded, without importing PyTorch for each of them.

Every check of a TorchScript or `.pt2` file runs `export/fresh_process.py` in a process of its own, whose import of PyTorch
takes longer than the check. The tests make dozens of such files. While they run, one process imports PyTorch, nothing else,
and forks a child for each script: the child is as fresh. `tests/export/test_determinism.py` exports in processes that know
nothing of this one, so the plain way is tested there.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

SCRIPT = "fresh_process.py"
_LONGEST_JOB = 1 << 17  # bytes; the environment is most of it
_DESCRIPTORS = 3


def is_fresh_process(command: Any, options: dict[str, Any]) -> bool:
    """Whether a call of `subprocess.Popen` runs our script between two pipes, its complaints in a file."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    plain = options.keys() == {*pipes, "stderr"} and {name: options[name] for name in pipes} == pipes and hasattr(options["stderr"], "fileno")
    return plain and isinstance(command, list) and command[:2] == [sys.executable, "-P"] and Path(command[2]).name == SCRIPT


def starting_them_forked(start: Callable[..., Any]) -> Callable[..., Any]:
    """`subprocess.Popen`, but for our script."""
    parents: list[_Parent] = []

    def start_or_fork(command: Any, **options: Any) -> Any:
        if not is_fresh_process(command, options):
            return start(command, **options)
        if not parents:
            parents.append(_Parent())
        return _Child(parents[0], command, options["stderr"])

    return start_or_fork


class _Parent:
    """The process that has imported PyTorch and forks, one child at a time; jobs come with the child's three descriptors, answers are lines."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen([sys.executable, "-P", __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()])
        theirs.close()
        atexit.register(self._end)

    def answer(self) -> int:
        """The next number that it says: the child's id, and later how it ended."""
        said = self.socket.recv(64)
        assert said, "the process that forks ended"
        return int(said)

    def _end(self) -> None:
        self.socket.close()
        self._process.wait()


class _Child:
    """What `Popen` returns, as far as `export/runtimes.py` uses it."""

    def __init__(self, parent: _Parent, command: list[str], complaints: IO[bytes]) -> None:
        self._parent = parent
        self.returncode: int | None = None
        its_input, ours = os.pipe()
        answers, its_output = os.pipe()
        job = {"script": command[2:], "starter": os.getpid(), "folder": os.getcwd(), "environment": dict(os.environ)}
        socket.send_fds(parent.socket, [json.dumps(job).encode()], [its_input, its_output, complaints.fileno()])
        os.close(its_input)
        os.close(its_output)
        self.stdin, self.stdout = os.fdopen(ours, "wb"), os.fdopen(answers, "rb")
        self.pid = parent.answer()

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *error: object) -> None:
        self.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        self.wait()

    def wait(self) -> int:
        """The exit code, as Popen has it."""
        if self.returncode is None:
            self.returncode = self._parent.answer()
        return self.returncode

    def kill(self) -> None:
        """Ends a child that still runs."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def _serve(jobs: socket.socket) -> None:
    """Forks for every job until there are no more. Children start with PyTorch and with what `torch.export.load` imports of it."""
    import torch  # noqa: F401

    for name in ("torch._dynamo", "torch._export.serde.serialize", "torch.export.pt2_archive._package"):
        with contextlib.suppress(ImportError):  # private names: where one is missing, its child imports what it needs
            importlib.import_module(name)
    while True:
        text, ancillary, _, _ = jobs.recvmsg(_LONGEST_JOB, socket.CMSG_SPACE(_DESCRIPTORS * array.array("i").itemsize))
        if not text:
            return
        descriptors = array.array("i", ancillary[0][2])
        child = os.fork()
        if child == 0:
            jobs.close()
            os._exit(_run_here(json.loads(text), descriptors))
        for descriptor in descriptors:
            os.close(descriptor)
        jobs.send(str(child).encode())
        _, status = os.waitpid(child, 0)
        jobs.send(str(os.waitstatus_to_exitcode(status)).encode())


def _run_here(job: dict[str, Any], descriptors: array.array[int]) -> int:
    """Runs the script in this process, as `python -P SCRIPT` would; returns the exit code."""
    import runpy

    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    # It ends with the process that started it: here the one that forked.
    sys.argv = [str(os.getppid()) if word == str(job["starter"]) else word for word in job["script"]]
    code = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as theirs:
        _serve(theirs)
