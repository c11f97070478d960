"""What a row costs before its first answer, and how much memory it takes: measured in a fresh process for each.

The process imports, makes the model, builds the row and gives one answer. Drawing the model's weights is not counted: an application would
load them, alike for every row. The caches of compilers are empty. The child writes one line after each phase; the parent's clock reads them.

Memory is what the process grows by from before the row is built to its highest point. On a CPU that is resident memory; building counts, as
it does for whoever deploys the row. On CUDA it is the device memory that the driver counts as taken.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from fastcnn.errors import BackendError

_PHASES = ("imported", "ready", "built", "answered")


@dataclass(frozen=True)
class ColdStartRequest:
    """One row in one process.

    Attributes:
        model: a name of the registry, for a run without `request`.
        row: a name in `fastcnn.bench.peers.table.PEERS` or `fastcnn.bench.studies.ladder.RUNGS`.
        request: the fields of the `ModelRequest` for the model.
    """

    model: str
    row: str
    device: str
    precision: str
    input_shape: tuple[int, ...]
    threads: int
    request: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ColdStart:
    """`phases`: seconds for `import`, `build` and `first_answer`. `allocator_peak_bytes` and `kernels`, how many one run launches, on CUDA only."""

    phases: dict[str, float]
    peak_memory_bytes: int
    allocator_peak_bytes: int | None = None
    kernels: int | None = None


def cold_start(request: ColdStartRequest, timeout_seconds: float = 1800.0) -> ColdStart:
    """Runs the row in a fresh process. Raises BackendError, in the child's own words, where that fails or takes too long."""
    with tempfile.TemporaryDirectory(prefix="fastcnn-bench-") as folder:
        caches = {name: str(Path(folder, name.lower())) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "FASTCNN_CACHE")}
        command = [sys.executable, "-m", "fastcnn.bench.studies.cold_start", json.dumps(asdict(request))]
        with Path(folder, "stderr").open("w+") as errors:
            start = time.perf_counter()
            # Its own session, so that Ctrl-C reaches this process alone and the child is ended here.
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | caches, start_new_session=True)
            assert process.stdout is not None
            deadline = threading.Timer(timeout_seconds, process.kill)
            deadline.start()
            try:
                times, answer = _follow(process.stdout)
                code = process.wait()
            finally:
                deadline.cancel()
                process.kill()
                process.wait()
                process.stdout.close()
            late = time.perf_counter() - start > timeout_seconds
            if code or "answered" not in times:
                errors.seek(0)
                lines = [line.strip() for line in errors.read().splitlines() if line.strip()]
                why = f"no answer within {timeout_seconds:.0f} s" if late else lines[-1] if lines else f"exit code {code}"
                raise BackendError(f"failed in a process of its own: {why}")
    phases = {
        "import": times["imported"] - start,
        "build": times["built"] - times["ready"],
        "first_answer": times["answered"] - times["built"],
    }
    return ColdStart(phases, answer["peak_memory_bytes"], answer.get("allocator_peak_bytes"), answer.get("kernels"))


def _follow(lines: IO[str]) -> tuple[dict[str, float], dict[str, int]]:
    """When each phase was over, and the figures of the last line."""
    times: dict[str, float] = {}
    answer: dict[str, int] = {}
    for line in lines:
        if line.strip() in _PHASES:
            times[line.strip()] = time.perf_counter()
        elif line.startswith("{"):
            answer = json.loads(line)
            break  # a compiler's worker process may hold the pipe open for longer
    return times, answer


def main(arguments: Sequence[str]) -> None:
    """The child: what it prints is read by `cold_start`. Whatever libraries print goes to stderr."""
    out = sys.stdout

    def tell(text: str) -> None:
        print(text, file=out, flush=True)

    with contextlib.redirect_stdout(sys.stderr):
        request = json.loads(arguments[0])
        import torch

        from fastcnn.bench.peers.subject import subject_of
        from fastcnn.bench.peers.table import PEERS
        from fastcnn.bench.studies.ladder import RUNGS
        from fastcnn.models.request import ModelRequest
        from fastcnn.precision import Precision

        tell("imported")
        device, precision, threads = request["device"], Precision(request["precision"]), request["threads"]
        torch.set_num_threads(threads)
        subject, _ = subject_of(ModelRequest.from_dict(request["request"] or {"model": request["model"]}), precision, device)
        rungs = {rung.name: rung for rung in RUNGS[device]}
        peer = {**PEERS, **rungs}[request["row"]]()
        with subject, precision.switches():
            stream = torch.cuda.stream(torch.cuda.Stream()) if device == "cuda" else contextlib.nullcontext()
            x = torch.rand(request["input_shape"], generator=torch.Generator().manual_seed(0)).to(device, precision.dtype)
            memory = _CudaMemory() if device == "cuda" else _ResidentMemory()
            with stream:
                tell("ready")
                prepared = peer.prepare(subject, x, threads)
                tell("built")
                prepared.run(x).cpu()
                tell("answered")
                prepared.run(x)
                figures = dict(memory.growth())
                if device == "cuda":
                    figures["kernels"] = _count_kernels(prepared.run, x)
            tell(json.dumps(figures))
            peer.release()


class _ResidentMemory:
    """The growth of this process's resident set from now on, at its highest."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark falls to what is resident now
        self._before = self._now()

    def growth(self) -> Mapping[str, int]:
        return {"peak_memory_bytes": max(0, self._highest() - self._before)}

    @staticmethod
    def _now() -> int:
        return _status("VmRSS") or _ResidentMemory._highest()

    @staticmethod
    def _highest() -> int:
        highest = _status("VmHWM")
        if highest is None:
            import resource  # not on Windows

            # macOS counts in bytes, other systems in KiB.
            highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return highest


def _status(key: str) -> int | None:
    """A size from Linux's account of this process, in bytes."""
    try:
        match = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


class _CudaMemory:
    """The growth of the memory taken on the device. No runtime gives back what it took, so the end stands for the highest point."""

    def __init__(self) -> None:
        import torch

        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        self._free, _ = torch.cuda.mem_get_info()
        self._allocated = torch.cuda.memory_allocated()

    def growth(self) -> Mapping[str, int]:
        import torch

        torch.cuda.synchronize()
        free, _ = torch.cuda.mem_get_info()
        allocated = torch.cuda.max_memory_allocated() - self._allocated
        return {"peak_memory_bytes": max(self._free - free, allocated), "allocator_peak_bytes": allocated}


def _count_kernels(run: object, x: object) -> int:
    """Kernels that one run launches, whatever runtime launches them, as CUPTI sees them: the proof that the work is done on the device.

    Here and not beside the timing, since CUPTI slows every launch of a process from its first use on.
    """
    import torch
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    assert callable(run)
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        run(x)
        torch.cuda.synchronize()
    return sum(event.device_type == DeviceType.CUDA and not event.name.startswith(("Mem", "cuda")) for event in record.events() or ())


if __name__ == "__main__":
    main(sys.argv[1:])
