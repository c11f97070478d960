"""What is killed: a writer of each kind, run in a process that was forked from one that has imported PyTorch.

Most of a fresh process's time goes into imports, in which there is nothing to leave behind; a fork gets to the writing at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dataset_files import write_mnist
from picture_support import write_pictures

_OF_PARTS = ("--part-format", "jsonl", "--files-per-shard", "9")

# Processes that a writer started are told by it, whoever their parent is by then.
_MARK = "FASTCNN_KILLED_WRITER"


def _command(*words: str) -> None:
    from fastcnn.cli.app import app

    try:
        app(list(words), prog_name="fastcnn")
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"{' '.join(words)} ended with {end.code}") from None


def _export(format_: str) -> Callable[[Path], None]:
    return lambda data: _command("export", "simple_cnn", f"--{format_}", "--force", "--batch-size", "2")


def _optimize(data: Path) -> None:
    _command("optimize", "simple_cnn", "--backend", "onnxruntime", "--force")


def _bundle(data: Path) -> None:
    if not Path("repo").exists():
        _command("bundle", "simple_cnn", "-o", "repo")


def _parts(data: Path) -> None:
    _command("predict", "simple_cnn", str(data / "pictures"), "--backend", "reference", "-o", "parts", "--shard", "0/1", *_OF_PARTS)


def _predict(data: Path) -> None:
    resume = ["--resume"] if Path("answers.jsonl").exists() else []
    _command("predict", "simple_cnn", str(data / "pictures"), "--backend", "reference", "-o", "answers.jsonl", "--batch-size", "4", *resume)


def _train(data: Path) -> None:
    resume = ["--resume"] if Path("run/checkpoint.pt").exists() else []
    _command("train", "simple_cnn", "--dataset", "mnist", "--data", str(data), "--epochs", "3", "--workers", "0", "-o", "run", *resume)


@dataclass(frozen=True)
class Writer:
    """Something that writes in the current folder.

    Attributes:
        run: writes; takes the folder with pictures and a dataset. Run again, it goes on or begins again.
        results: patterns of what must come out with the same bytes. Other files it leaves (curves, times) are only named.
    """

    run: Callable[[Path], None]
    results: tuple[str, ...]


WRITERS = {
    "onnx": Writer(_export("onnx"), ("simple_cnn.onnx",)),
    "torchscript": Writer(_export("torchscript"), ("simple_cnn.pt",)),
    "pt2": Writer(_export("pt2"), ("simple_cnn.pt2",)),
    "fast": Writer(_optimize, ("simple_cnn.fast",)),
    "bundle": Writer(_bundle, ("repo/SHA256SUMS", "repo/simple_cnn/1/model.onnx")),
    "parts": Writer(_parts, ("parts/*.jsonl",)),
    "predict": Writer(_predict, ("answers.jsonl",)),
    "train": Writer(_train, ("run/simple_cnn.safetensors",)),
}


def prepare(folder: Path) -> Path:
    """Pictures and a small MNIST for the writers, and everything imported that a fork would import."""
    import torch

    import fastcnn.export
    import fastcnn.optimization
    import fastcnn.training.setup  # noqa: F401

    torch.set_num_threads(1)  # threads do not survive a fork
    write_mnist(folder, train=400, test=40)
    write_pictures(folder / "pictures", 60)
    return folder


@dataclass(frozen=True)
class Left:
    """What a folder holds.

    Attributes:
        names: of all files, those in hidden folders too.
        digests: SHA-256 of each result that is there.
    """

    names: frozenset[str]
    digests: dict[str, str]

    @classmethod
    def of(cls, folder: Path, writer: Writer) -> Left:
        """What lies in `folder` now."""
        names = frozenset(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        found = [path for pattern in writer.results for path in folder.glob(pattern)]
        digests = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}
        return cls(names, digests)


def run_in(folder: Path, writer: Writer, data: Path, kill_after: float | None = None) -> float:
    """Runs the writer in a fork, in `folder`; kills it after so many seconds, if it still runs. Returns the seconds that it ran.

    Raises RuntimeError where a writer that nobody killed failed; its last words are in `stderr.txt` beside the folder.
    """
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        os._exit(_run_here(folder, writer, data))
    if kill_after is None:
        _, status = os.waitpid(child, 0)
        if status:
            raise RuntimeError((folder.parent / "stderr.txt").read_text())
    else:
        while time.perf_counter() - started < kill_after and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.001)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return time.perf_counter() - started


def _run_here(folder: Path, writer: Writer, data: Path) -> int:
    words = os.open(folder.parent / "stderr.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (1, 2):
        os.dup2(words, stream)
    os.chdir(folder)
    os.environ[_MARK] = str(folder)
    try:
        writer.run(data)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def processes_of(folder: Path) -> list[int]:
    """Processes that a writer in `folder` started, and that still run."""
    mark = f"{_MARK}={folder}\0".encode()
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if mark in (entry / "environ").read_bytes() and "\nState:\tZ" not in (entry / "status").read_text():
                found.append(int(entry.name))
    return found
