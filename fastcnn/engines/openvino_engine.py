"""The graph as an ONNX model compiled by OpenVINO for the CPU."""

from __future__ import annotations

import importlib.util
import queue
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastcnn.engines.base import Lowered, on_tensors
from fastcnn.engines.runtime_rows import rows_of_openvino
from fastcnn.errors import BackendError
from fastcnn.graph.ir import CapturedGraph
from fastcnn.graph.passes import STANDARD_PASSES
from fastcnn.runtimes.openvino import compile_model, reason
from fastcnn.target import Target

_PRECISION = {torch.float32: "f32", torch.bfloat16: "bf16", torch.int8: "f32"}


class OpenVinoEngine:
    """Runs on the CPU; float32, int8, and bfloat16 where the CPU multiplies it natively.

    Args:
        passes: names of the passes that run over a graph before it is lowered.
    """

    name = "openvino"

    def __init__(self, passes: Sequence[str] = STANDARD_PASSES) -> None:
        self.passes = tuple(passes)

    def unavailable(self) -> str | None:
        """Why it cannot run on this machine, or None where it can."""
        return None if importlib.util.find_spec("openvino") else "openvino is not installed (pip install 'fastcnn[openvino]')"

    def unsupported(self, target: Target) -> str | None:
        """Why it cannot run on the target's device or in its dtype, or None where it can."""
        if target.device.type != "cpu":
            return f"runs on the CPU only, the input is on {target.device}"
        return None if target.dtype in _PRECISION else f"has no kernels for {target.dtype} on a CPU"

    def unfit_for_auto(self) -> str | None:
        """None: `auto` always tries it."""
        return None

    def lower(self, captured: CapturedGraph, target: Target, artifact: bytes | None = None) -> Lowered:
        """The graph's ONNX model, or `artifact`, compiled for the usual batch; another batch compiles it once more, for any.

        Raises:
            BackendError: OpenVINO refuses the model, or would compute in another precision.
            RequestError: an operation has no ONNX form.
        """
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

        def run(*inputs: NDArray[Any]) -> list[NDArray[Any]]:
            if inputs[0].shape[0] == usual:
                return fixed.run(*inputs)
            with lock:
                if not any_batch:
                    any_batch.append(_Compiled(model, dtype, None))
            return any_batch[0].run(*inputs)

        # oneDNN's ReLU gives 0 for NaN.
        return Lowered(
            on_tensors(run),
            lambda: rows_of_openvino(captured, fixed.runtime_model()),
            propagates_nan=False,
            input_dtype=torch.float32,
            artifact=model,
            run_array=run,
        )


class _Compiled:
    """A model compiled for one batch size, or for any.

    Inception-v3 runs about 1.5 % faster compiled for its batch than with a dynamic one; the dynamic form is compiled when another batch first comes.
    """

    def __init__(self, model: bytes, dtype: torch.dtype, batch_size: int | None) -> None:
        self._compiled = compile_model(model, precision=_PRECISION[dtype], threads=torch.get_num_threads(), batch_size=batch_size)
        # A request serves one call at a time: idle ones wait in the queue, and a call that finds none makes one.
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run(self, *inputs: NDArray[Any]) -> list[NDArray[Any]]:
        """Inputs [N, …] → arrays of their own, one for each output."""
        try:
            request = self._idle.get_nowait()
        except queue.Empty:
            request = self._compiled.create_infer_request()
        try:
            try:
                results = request.infer([np.ascontiguousarray(x) for x in inputs], share_inputs=True, share_outputs=True)
            except RuntimeError as error:
                raise BackendError(f"OpenVINO cannot run the model: {reason(error)}") from error
            return [results[port].copy() for port in self._compiled.outputs]
        finally:
            self._idle.put(request)

    def runtime_model(self) -> Any:
        """The graph as OpenVINO executes it."""
        return self._compiled.get_runtime_model()
