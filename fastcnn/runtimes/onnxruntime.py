"""ONNX Runtime on the CPU."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from fastcnn.errors import BackendError

_PROVIDER = "CPUExecutionProvider"
# Warnings about the optimizer's choices mean nothing to a user, and what is an error is raised, so that its line on stderr would be a second one.
_FATAL_ONLY = 4

# How the runtime says which operation it means, the kind first or second, and what was wrong with it.
_OPERATION = (
    r"while running (?P<kind>\w+) node\. Name:'(?P<name>[^']*)' Status Message: (?P<why>.*)",
    r"Node ?\((?P<name>[^)]*)\) Op \((?P<kind>\w+)\) (?P<why>.*)",
    r"Could not find an implementation for (?P<kind>\w+)\(\d+\) node with name '(?P<name>[^']*)'",
    r"of operator \((?P<kind>\w+)\) in node \((?P<name>[^)]*)\) (?P<why>.*)",
    r"node with name '(?P<name>[^']*)' of type (?P<kind>\w+)",
)


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


def reason(error: Exception) -> str:
    """What the runtime complains of, in one line that begins with the operation where the runtime names it."""
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(str(error).split()))
    for pattern in _OPERATION:
        found = re.search(pattern, line)
        if found:
            why = found.groupdict().get("why") or "it has no kernel for this type"
            return f"operation {found['kind']}{f' ({name})' if (name := found['name']) and name != found['kind'] else ''}: {why}"
    return line or type(error).__name__


def open_session(model: bytes | Path, *, threads: int | None = None, optimized_model: Path | None = None, optimize: bool = True) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU provider and no other.

    Args:
        model: the bytes of an ONNX model, or the file that holds it.
        threads: for the operations; the runtime's own choice by default.
        optimized_model: where the runtime writes the graph as it runs it, fused nodes and all.
        optimize: False runs the graph as it stands in the file, node by node.

    Raises:
        BackendError: the runtime is not installed, refuses the model, or chose another provider.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.intra_op_num_threads = threads or 0
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized_model is not None:
        options.optimized_model_filepath = str(optimized_model)
    try:
        session = onnxruntime.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers=[_PROVIDER])
    except Exception as error:  # the runtime's exceptions have no common base
        raise BackendError(f"onnxruntime cannot run the model: {reason(error)}") from error
    if session.get_providers() != [_PROVIDER]:
        raise BackendError(f"onnxruntime chose {', '.join(session.get_providers())} instead of the CPU provider")
    return session
