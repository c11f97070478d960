"""Run an exported file in the runtimes that users run it in: onnxruntime and OpenVINO, or PyTorch in a fresh process."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastcnn.errors import ParityError

Batches = Sequence[NDArray[np.float32]]
Results = list[list[NDArray[np.float64]]]


def runtimes_for(format_: str) -> dict[str, Callable[[Path, Batches], Results]]:
    """Name → function that runs a file of this format on the CPU, of the runtimes installed here.

    The function takes batches [N, ...] float32 and returns float64 arrays, a list per batch; ParityError where the runtime refuses the file.
    """
    if format_ != "onnx":
        return {"torch": lambda path, batches: _run_fresh_process(format_, path, batches)}
    runners: dict[str, Callable[[Path, Batches], Results]] = {"onnxruntime": _run_onnxruntime}
    if importlib.util.find_spec("openvino") is not None:
        runners["openvino"] = _run_openvino
    return runners


def _run_onnxruntime(path: Path, batches: Batches) -> Results:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: warnings about the optimizer's choices mean nothing to a user
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (source,) = session.get_inputs()
        return [_as_float64(session.run(None, {source.name: batch})) for batch in batches]
    except Exception as error:  # the runtime's exceptions have no common base
        raise _refused("onnxruntime", error) from error


def _run_openvino(path: Path, batches: Batches) -> Results:
    import openvino

    try:
        core = openvino.Core()
        # Without the hint, a CPU with AMX computes float32 models in bfloat16.
        compiled = core.compile_model(core.read_model(path.read_bytes()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        results = []
        for batch in batches:
            answer = compiled([batch])
            # Copied: the next batch reuses the buffers.
            results.append(_as_float64([np.array(answer[port]) for port in compiled.outputs]))
        return results
    except Exception as error:
        raise _refused("OpenVINO", error) from error


def _run_fresh_process(format_: str, path: Path, batches: Batches) -> Results:
    import torch

    with tempfile.TemporaryDirectory(prefix="fastcnn-") as folder:
        inputs, outputs = Path(folder, "inputs.pt"), Path(folder, "outputs.pt")
        torch.save([torch.from_numpy(batch) for batch in batches], inputs)
        # -P: the script's folder must not stand on the module path.
        script = [sys.executable, "-P", str(Path(__file__).with_name("fresh_process.py")), format_, str(path), str(inputs), str(outputs)]
        process = subprocess.run(script, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        if process.returncode != 0:
            lines = [line.strip() for line in process.stderr.splitlines() if line.strip()]
            raise ParityError(f"PyTorch in a fresh process cannot run the file: {lines[-1] if lines else f'it ended with code {process.returncode}'}")
        return [_as_float64([tensor.numpy() for tensor in batch]) for batch in torch.load(outputs, weights_only=True)]


def _as_float64(arrays: Sequence[NDArray]) -> list[NDArray[np.float64]]:
    return [np.asarray(array, dtype=np.float64) for array in arrays]


def _refused(runtime: str, error: Exception) -> ParityError:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return ParityError(f"{runtime} cannot run the file: {reason}")
