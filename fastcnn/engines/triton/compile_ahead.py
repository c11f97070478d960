"""Compiles kernels in processes of their own before they are needed.

A network asks for dozens of binaries, and choosing its implementations for hundreds, each of which takes about a second
of one core, one after the other where the first launch asks for it. Here the launches are gone through without being
started, what they would compile is noted, and as many processes as there are cores compile it into Triton's cache on
disk, where the launches find it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import logging
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from fastcnn.cores import usable_cores

log = logging.getLogger(__name__)

# Starting a process and importing Triton takes some seconds: fewer kernels than these are compiled as quickly here.
_FEWEST = 6
_MOST_PROCESSES = 32
_SECONDS_TO_END = 2.0
# Triton has one hook for the whole process.
_noting = threading.Lock()


@dataclass(frozen=True)
class CompileJob:
    """What Triton compiles: the function `module.name`, the types of its arguments, the constants and what is known of
    the others, and for what."""

    module: str
    name: str
    signature: dict[str, Any]
    constants: dict[Any, Any]
    attributes: dict[Any, Any]
    options: dict[str, Any]
    target: tuple[str, Any, int]

    def source(self) -> Any:
        """The kernel with its types and constants, as Triton's compiler takes it."""
        from triton.compiler import ASTSource

        return ASTSource(getattr(importlib.import_module(self.module), self.name), self.signature, self.constants, self.attributes)

    def gpu_target(self) -> Any:
        """The GPU to compile for, in Triton's form."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget(*self.target)

    def digest(self) -> str:
        """The name under which Triton's cache on disk holds the binary."""
        from triton._C.libtriton import get_cache_invalidating_env_vars
        from triton.compiler.compiler import make_backend
        from triton.runtime.cache import get_cache_key

        backend = make_backend(self.gpu_target())
        key = get_cache_key(self.source(), backend, backend.parse_options(dict(self.options)), env_vars=get_cache_invalidating_env_vars())
        return hashlib.sha256(key.encode()).hexdigest()

    def compile(self) -> Any:
        """The compiled kernel, now in the cache on disk too."""
        import triton

        return triton.compile(self.source(), target=self.gpu_target(), options=dict(self.options))


def note_jobs(calls: Iterable[Callable[[], object]]) -> list[CompileJob]:
    """What Triton would have to compile for the launches of our kernels within `calls`, each binary once, in order.
    None of them is started; a call that fails is passed over, for it will fail again where it matters."""
    import triton
    from triton.runtime import driver

    from fastcnn.kernels.launching import instead_of_launching

    target = driver.active.get_current_target()
    jobs: dict[tuple[int, str], CompileJob] = {}
    here = threading.get_ident()

    def note(*, key: str, fn: Any, compile: dict[str, Any], **others: Any) -> object:
        # What other threads launch meanwhile is compiled and starts as ever.
        if threading.get_ident() != here:
            return before(key=key, fn=fn, compile=compile, **others) if before is not None else None
        options = _with_tuples(json.loads(compile["specialization_data"])["options"])
        job = CompileJob(
            fn.module,
            fn.name,
            compile["signature"],
            compile["constants"],
            compile["configs"][0],
            options,
            (target.backend, target.arch, target.warp_size),
        )
        jobs.setdefault((id(fn.jit_function), key), job)
        return True  # do not compile

    def bind(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        kernel.warmup(*arguments, grid=grid, **options)

    with _noting:
        before = triton.knobs.runtime.jit_cache_hook
        triton.knobs.runtime.jit_cache_hook = note
        try:
            with instead_of_launching(bind):
                for call in calls:
                    with contextlib.suppress(Exception):
                        call()
        finally:
            triton.knobs.runtime.jit_cache_hook = before
    return list(jobs.values())


def missing_jobs(jobs: Iterable[CompileJob]) -> list[CompileJob]:
    """Those whose binary is not in Triton's cache on disk, each binary once, in order."""
    from triton.runtime.cache import get_cache_manager

    by_digest = {job.digest(): job for job in reversed(list(jobs))}
    return [job for digest, job in reversed(by_digest.items()) if not get_cache_manager(digest).get_group(f"{job.name[:150]}.json")]


def compile_jobs(jobs: Iterable[CompileJob], seconds: float) -> int:
    """Compile what is not in Triton's cache yet, for at most `seconds`. Returns how many were compiled; a failure is
    found again by the launch.

    Ends the processes before it returns, whatever happens.
    """
    missing = missing_jobs(jobs)
    count = min(len(missing) // 2, usable_cores(), _MOST_PROCESSES)
    if len(missing) < _FEWEST or count < 2:
        return 0
    start = time.monotonic()
    done: list[bool] = []
    todo: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    for job in missing:
        todo.put(pickle.dumps(job))
    with _workers(count) as workers:
        if len(workers) < count:
            return 0
        feeders = [threading.Thread(target=_feed, args=(worker, todo, done), daemon=True) for worker in workers]
        for feeder in feeders:
            feeder.start()
        for feeder in feeders:
            feeder.join(max(0.0, start + seconds - time.monotonic()))
    log.info("compiled %d of %d kernels in %d processes and %.1f s", len(done), len(missing), count, time.monotonic() - start)
    return len(done)


@contextlib.contextmanager
def _workers(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    # No GPU: a context on it would take half a gigabyte for each process. Not interpreted, whatever this process does.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-m", "fastcnn.engines.triton.compile_ahead"]
    workers: list[subprocess.Popen[bytes]] = []
    try:
        try:
            for _ in range(count):
                workers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment))
        except OSError as error:
            log.info("no processes to compile in: %s", error)
        yield workers
    finally:
        for worker in workers:
            worker.kill()
        for worker in workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(_SECONDS_TO_END)
            for pipe in (worker.stdin, worker.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()


def _feed(worker: subprocess.Popen[bytes], todo: queue.SimpleQueue[bytes], done: list[bool]) -> None:
    """Hand jobs to one process, one at a time, until there are none or the process is gone."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    with contextlib.suppress(OSError, ValueError, queue.Empty):
        while True:
            job = todo.get_nowait()
            worker.stdin.write(len(job).to_bytes(8, "little") + job)
            worker.stdin.flush()
            answer = worker.stdout.read(1)
            if not answer:
                return
            if answer == b"1":
                done.append(True)


def _work(jobs: BinaryIO, answers: BinaryIO) -> None:
    """Compile what comes in, one byte back for each: 1, or 0 where it failed."""
    while header := jobs.read(8):
        job: CompileJob = pickle.loads(jobs.read(int.from_bytes(header, "little")))
        try:
            kernel = job.compile()
            _make_launcher(job, kernel)
            answer = b"1"
        except Exception:
            answer = b"0"
        answers.write(answer)
        answers.flush()


def _make_launcher(job: CompileJob, kernel: Any) -> None:
    """The host code that starts a kernel: up to Triton 3.6 a C compiler makes it, once for every list of argument
    types."""
    with contextlib.suppress(Exception):
        from triton.backends.nvidia.driver import CudaLauncher

        CudaLauncher(job.source(), kernel.metadata)


def _with_tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    if isinstance(value, list):
        return tuple(_with_tuples(item) for item in value)
    return {key: _with_tuples(item) for key, item in value.items()} if isinstance(value, dict) else value


if __name__ == "__main__":
    # What a compiler prints must not end up among the answers.
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        _work(sys.stdin.buffer, out)
