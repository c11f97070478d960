"""ONNX Runtime on the CPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fastcnn.errors import BackendError

_PROVIDER = "CPUExecutionProvider"
_ERRORS_ONLY = 3  # warnings about the optimizer's choices mean nothing to a user


def import_onnxruntime() -> Any:
    """The `onnxruntime` package, its telemetry off unless the environment says otherwise.

    From 1.31 on, the import alone looks up a host and writes a device identifier below the home folder. The switch is the runtime's own and is read
    once, when it starts: it comes too late for a program that imported `onnxruntime` before.

    Raises:
        BackendError: it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(f"onnxruntime cannot be imported: {error} (pip install onnxruntime)") from error
    return onnxruntime


def open_session(model: bytes | Path, *, threads: int | None = None, optimized_model: Path | None = None) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU provider and no other.

    Args:
        model: the bytes of an ONNX model, or the file that holds it.
        threads: for the operations; the runtime's own choice by default.
        optimized_model: where the runtime writes the graph as it runs it, fused nodes and all.

    Raises:
        BackendError: the runtime is not installed, refuses the model, or chose another provider.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = threads or 0
    if optimized_model is not None:
        options.optimized_model_filepath = str(optimized_model)
    try:
        session = onnxruntime.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers=[_PROVIDER])
    except Exception as error:  # the runtime's exceptions have no common base
        raise BackendError(f"onnxruntime cannot run the model: {' '.join(str(error).split())}") from error
    if session.get_providers() != [_PROVIDER]:
        raise BackendError(f"onnxruntime chose {', '.join(session.get_providers())} instead of the CPU provider")
    return session
