"""Runs files in one runtime and prints what they answer: a script for an environment that holds nothing but that runtime and NumPy.

    python runner.py RUNTIME < JOBS

JOBS is a JSON list of {"file": path, "batches": [array, ...]}, an array being {"dtype", "shape", "data"} with base64 of its bytes. For each job one
line of JSON goes to stdout: {"answers": [array, ...]}, the first output for each batch in float64, or {"refused": reason}.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

# Runtimes that report to their makers are told not to, before they are imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment] # how Python marks a module that cannot be imported

import numpy as np  # noqa: E402 # after the settings above

Run = Callable[[Any], Any]


def _onnxruntime(path: str) -> Run:
    runtime = importlib.import_module("onnxruntime")
    runtime.set_default_logger_severity(4)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})[0]


def _reference(path: str) -> Run:
    evaluator = importlib.import_module("onnx.reference").ReferenceEvaluator(path)
    return lambda batch: evaluator.run(None, {evaluator.input_names[0]: batch})[0]


def _openvino(path: str) -> Run:
    core = importlib.import_module("openvino").Core()
    # By itself it computes in bfloat16 on CPUs that have it.
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda batch: compiled([batch])[compiled.output(0)]


def _opencv(path: str) -> Run:
    network = importlib.import_module("cv2").dnn.readNetFromONNX(path)

    def run(batch: Any) -> Any:
        network.setInput(batch)
        return network.forward()

    return run


def _tract(path: str) -> Run:
    tract = importlib.import_module("tract")
    runnable = tract.onnx().load(path).into_model().into_runnable()
    return lambda batch: runnable.run([batch])[0].to_numpy()


def _tvm(path: str) -> Run:
    tvm, onnx = importlib.import_module("tvm"), importlib.import_module("onnx")
    relax = importlib.import_module("tvm.relax")
    frontend = importlib.import_module("tvm.relax.frontend.onnx")
    compiled = tvm.compile(frontend.from_onnx(onnx.load(path)), target="llvm")
    machine = relax.VirtualMachine(compiled, tvm.cpu())
    return lambda batch: machine["main"](tvm.runtime.tensor(batch)).numpy()


RUNTIMES: dict[str, Callable[[str], Run]] = {
    "onnxruntime": _onnxruntime,
    "onnx": _reference,
    "openvino": _openvino,
    "opencv": _opencv,
    "tract": _tract,
    "tvm": _tvm,
}


def encode(array: Any) -> dict[str, Any]:
    """An array as JSON."""
    return {"dtype": str(array.dtype), "shape": list(array.shape), "data": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()}


def decode(data: dict[str, Any]) -> Any:
    """What `encode` made."""
    return np.frombuffer(base64.b64decode(data["data"]), data["dtype"]).reshape(data["shape"]).copy()


def main(runtime: str) -> None:
    """Runs the jobs on stdin, one line for each."""
    open_file = RUNTIMES[runtime]
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what a runtime prints belongs to stderr
        for job in json.load(sys.stdin):
            try:
                run = open_file(job["file"])
                found = [encode(np.asarray(run(decode(batch)), dtype=np.float64)) for batch in job["batches"]]
                line: dict[str, Any] = {"answers": found}
            except BaseException as error:  # of any kind: tvm's derive from none of Python's
                line = {"refused": " ".join(f"{error}".split()) or type(error).__name__}
            answers.write(json.dumps(line) + "\n")
            answers.flush()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main(sys.argv[1])
