"""The graph as an ONNX model compiled by OpenVINO for the CPU."""

from __future__ import annotations

import importlib.util
import io
import queue
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastcnn.engines.base import Lowered
from fastcnn.engines.runtime_rows import rows_of_openvino
from fastcnn.errors import BackendError
from fastcnn.graph.ir import CapturedGraph
from fastcnn.graph.passes import STANDARD_PASSES
from fastcnn.target import Target

# OpenVINO lowers the precision by itself where the CPU has fast bfloat16; asked for by name, it computes what the dtype says.
_PRECISION = {torch.float32: "f32", torch.bfloat16: "bf16"}


class OpenVinoEngine:
    """Runs on the CPU; float32, and bfloat16 where the CPU multiplies it natively."""

    name = "openvino"
    passes: Sequence[str] = STANDARD_PASSES

    def unavailable(self) -> str | None:
        return None if importlib.util.find_spec("openvino") else "openvino is not installed (pip install 'fastcnn[openvino]')"

    def unsupported(self, target: Target) -> str | None:
        if target.device.type != "cpu":
            return f"runs on the CPU only, the input is on {target.device}"
        return None if target.dtype in _PRECISION else f"has no kernels for {target.dtype} on a CPU"

    def unfit_for_auto(self) -> str | None:
        return None

    def lower(self, captured: CapturedGraph, target: Target, artifact: bytes | None = None) -> Lowered:
        from fastcnn.export.onnx_lowering import lower_to_onnx

        if artifact is None:
            if target.dtype != torch.float32:
                # The weights stay float32 in the model; the runtime rounds them once, when it packs them.
                captured = captured.copy()
                captured.cast_constants(torch.float32)
            artifact = lower_to_onnx(captured).SerializeToString()
        model, usual, dtype = artifact, target.usual_batch, target.dtype
        fixed = _Compiled(model, dtype, usual)
        lock, any_batch = threading.Lock(), list[_Compiled]()

        def run(x: Tensor) -> list[Tensor]:
            if x.shape[0] == usual:
                return fixed.run(x)
            with lock:
                if not any_batch:
                    any_batch.append(_Compiled(model, dtype, None))
            return any_batch[0].run(x)

        # oneDNN's ReLU gives 0 for NaN.
        return Lowered(
            run, lambda: rows_of_openvino(captured, fixed.runtime_model()), propagates_nan=False, input_dtype=torch.float32, artifact=model
        )


class _Compiled:
    """A model compiled for one batch size, or for any.

    Inception-v3 runs about 1.5 % faster compiled for its batch than with a dynamic one; the dynamic form is compiled when another batch first comes.
    """

    def __init__(self, model: bytes, dtype: torch.dtype, batch_size: int | None) -> None:
        self._compiled = _compile(model, dtype, batch_size)
        # A request serves one call at a time: idle ones wait in the queue, and a call that finds none makes one.
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run(self, x: Tensor) -> list[Tensor]:
        try:
            request = self._idle.get_nowait()
        except queue.Empty:
            request = self._compiled.create_infer_request()
        try:
            results = request.infer([x.contiguous().numpy()], share_inputs=True, share_outputs=True)
            return [torch.from_numpy(results[port].copy()) for port in self._compiled.outputs]
        finally:
            self._idle.put(request)

    def runtime_model(self) -> Any:
        return self._compiled.get_runtime_model()


def _compile(model: bytes, dtype: torch.dtype, batch_size: int | None) -> Any:
    import openvino

    core = openvino.Core()
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _PRECISION[dtype],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        # One stream over all threads, whatever number of cores and sockets there is: PyTorch's threading, so that a comparison is one of kernels.
        "NUM_STREAMS": 1,
    }
    try:
        network = core.read_model(io.BytesIO(model))
        if batch_size is not None:
            network.reshape([batch_size, *list(network.inputs[0].partial_shape)[1:]])
        compiled = core.compile_model(network, "CPU", options)
    except RuntimeError as error:
        raise BackendError(f"OpenVINO cannot compile the model: {' '.join(str(error).split())}") from error
    chosen = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if chosen != _PRECISION[dtype]:
        raise BackendError(f"OpenVINO would compute in {chosen} on this CPU, {_PRECISION[dtype]} was asked for")
    return compiled
