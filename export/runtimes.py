"""Run an exported file in the runtimes that users run it in: onnxruntime, OpenVINO, PyTorch (in a fresh process where a file is being checked)."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastcnn.errors import BackendError, FileFormatError, ParityError, UnknownNameError
from fastcnn.runtimes import onnxruntime, openvino
from fastcnn.runtimes.onnxruntime import open_session
from fastcnn.runtimes.openvino import compile_model

# What a file takes: an array [N, ...], or a tuple of them where it has several inputs.
Batch = NDArray | tuple[NDArray, ...]
Batches = Sequence[Batch]
Results = list[list[NDArray[np.float64]]]

_TITLE = {"onnxruntime": "onnxruntime", "openvino": "OpenVINO", "torch": "PyTorch"}
_REASON = {"onnxruntime": onnxruntime.reason, "openvino": openvino.reason}


@dataclass(frozen=True)
class OpenFile:
    """A file loaded into a runtime of this process.

    Attributes:
        run: a batch in the file's own layout and dtype → its outputs.
        dtype: of the first input, as the runtime says it: "float32" or "uint8"; None where it does not.
        shape: of the first input, as the runtime says it; None for a free size, and None altogether where it does not.
        inputs: how many there are, as far as the runtime says it.
    """

    runtime: str
    run: Callable[[Batch], list[NDArray]]
    dtype: str | None = None
    shape: tuple[int | None, ...] | None = None
    inputs: int = 1


def open_file(path: Path, format_: str, *, runtime: str | None = None, threads: int | None = None) -> OpenFile:
    """Load a file to run it many times on the CPU.

    Args:
        format_: "onnx", "torchscript" or "pt2".
        runtime: "onnxruntime" (the default) or "openvino" for ONNX, "torch" for the others.
        threads: of onnxruntime and OpenVINO; their own choice by default. PyTorch has one setting for the process.

    Raises:
        UnknownNameError: a runtime that does not run this format.
        BackendError: the runtime is not installed.
        FileFormatError: the runtime refuses the file.
    """
    openers = {"onnxruntime": _open_onnxruntime, "openvino": _open_openvino} if format_ == "onnx" else {"torch": _open_torch}
    runtime = runtime or next(iter(openers))
    if runtime not in openers:
        raise UnknownNameError(f"runtime of {format_} files", runtime, openers)
    if importlib.util.find_spec(runtime) is None:
        raise BackendError(f"{runtime} is not installed")
    try:
        return openers[runtime](path, format_, threads)
    except Exception as error:  # the runtimes' exceptions have no common base
        raise FileFormatError(f"{path}: {_refusal(runtime, error)}") from error


def runtimes_for(format_: str) -> dict[str, Callable[[Path, Batches], Results]]:
    """Name → function that runs a file of this format on the CPU, of the runtimes installed here.

    The function takes batches in the file's own layout and dtype and returns float64 arrays, a list per batch; ParityError where the runtime
    refuses the file.
    """
    if format_ != "onnx":
        return {"torch": lambda path, batches: _run_fresh_process(format_, path, batches)}
    runners: dict[str, Callable[[Path, Batches], Results]] = {"onnxruntime": partial(_run_here, "onnxruntime")}
    if importlib.util.find_spec("openvino") is not None:
        runners["openvino"] = partial(_run_here, "openvino")
    return runners


def _open_onnxruntime(path: Path, format_: str, threads: int | None) -> OpenFile:
    session = open_session(path, threads=threads)
    source, *others = session.get_inputs()
    names = [value.name for value in (source, *others)]
    dtype = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}.get(source.type, source.type)
    shape = tuple(size if isinstance(size, int) else None for size in source.shape)
    return OpenFile("onnxruntime", lambda batch: session.run(None, dict(zip(names, _arrays(batch), strict=True))), dtype, shape, len(names))


def _open_openvino(path: Path, format_: str, threads: int | None) -> OpenFile:
    compiled = compile_model(path.read_bytes(), threads=threads)

    def run(batch: Batch) -> list[NDArray]:
        answer = compiled(list(_arrays(batch)))
        # Copied: the next batch reuses the buffers.
        return [np.array(answer[port]) for port in compiled.outputs]

    source = compiled.input(0)
    shape = tuple(size.get_length() if size.is_static else None for size in source.partial_shape)
    return OpenFile("openvino", run, str(np.dtype(source.element_type.to_dtype())), shape, len(compiled.inputs))


def _open_torch(path: Path, format_: str, threads: int | None) -> OpenFile:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.load says that it is deprecated
        module = torch.jit.load(str(path), map_location="cpu") if format_ == "torchscript" else torch.export.load(path).module()

    def run(batch: Batch) -> list[NDArray]:
        with torch.inference_mode():
            result = module(*map(torch.from_numpy, _arrays(batch)))
        return [tensor.numpy() for tensor in ([result] if isinstance(result, torch.Tensor) else result)]

    return OpenFile("torch", run)


def _run_here(runtime: str, path: Path, batches: Batches) -> Results:
    opener = {"onnxruntime": _open_onnxruntime, "openvino": _open_openvino}[runtime]
    try:
        opened = opener(path, "onnx", None)
        return [_as_float64(opened.run(batch)) for batch in batches]
    except Exception as error:  # the runtimes' exceptions have no common base
        raise ParityError(_refusal(runtime, error)) from error


def _run_fresh_process(format_: str, path: Path, batches: Batches) -> Results:
    """In a process that gets the batches through a pipe and gives the outputs back through another one, so that no file is left of them.

    The first pipe stays open until the answer is there: its end tells the process that this one is gone.
    """
    import torch

    buffer = io.BytesIO()
    torch.save([[torch.from_numpy(array) for array in _arrays(batch)] for batch in batches], buffer)
    # -P: the script's folder must not stand on the module path.
    script = [sys.executable, "-P", str(Path(__file__).with_name("fresh_process.py")), format_, str(path), str(os.getpid())]
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # its complaint says why it went away
                process.stdin.write(buffer.getbuffer().nbytes.to_bytes(8, "little"))
                process.stdin.write(buffer.getbuffer())
                process.stdin.flush()
            answer = process.stdout.read()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()
        finally:
            process.kill()
        if process.returncode != 0:
            complaints.seek(0)
            lines = [line.strip() for line in complaints.read().decode(errors="replace").splitlines() if line.strip()]
            raise ParityError(f"PyTorch in a fresh process cannot run the file: {lines[-1] if lines else f'it ended with code {process.returncode}'}")
    return [_as_float64([tensor.numpy() for tensor in batch]) for batch in torch.load(io.BytesIO(answer), weights_only=True)]


def _arrays(batch: Batch) -> tuple[NDArray, ...]:
    return batch if isinstance(batch, tuple) else (batch,)


def _as_float64(arrays: Sequence[NDArray]) -> list[NDArray[np.float64]]:
    return [np.asarray(array, dtype=np.float64) for array in arrays]


def _refusal(runtime: str, error: Exception) -> str:
    if isinstance(error, BackendError):
        return str(error)
    if runtime in _REASON:
        return f"{_TITLE[runtime]} cannot run the file: {_REASON[runtime](error)}"
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"{_TITLE[runtime]} cannot run the file: {reason}"
