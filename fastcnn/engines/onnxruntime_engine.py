"""The graph as an ONNX model in an ONNX Runtime session on the CPU."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcnn.engines.base import Lowered
from fastcnn.engines.runtime_rows import rows_of_onnx
from fastcnn.errors import BackendError
from fastcnn.graph.ir import CapturedGraph
from fastcnn.graph.passes import STANDARD_PASSES
from fastcnn.graph.plan import PlanRow
from fastcnn.target import Target


class OnnxRuntimeEngine:
    """Runs on the CPU; float32, and float16 with the runtime's own casts around what it has no float16 kernel for."""

    name = "onnxruntime"
    passes: Sequence[str] = STANDARD_PASSES

    def unavailable(self) -> str | None:
        return None if importlib.util.find_spec("onnxruntime") else "onnxruntime is not installed"

    def unsupported(self, target: Target) -> str | None:
        if target.device.type != "cpu":
            return f"runs on the CPU only, the input is on {target.device}"
        return None if target.dtype in (torch.float32, torch.float16) else f"has no kernels for {target.dtype} on a CPU"

    def unfit_for_auto(self) -> str | None:
        return None

    def lower(self, captured: CapturedGraph, target: Target, artifact: bytes | None = None) -> Lowered:
        from fastcnn.export.onnx_lowering import lower_to_onnx

        model = artifact or lower_to_onnx(captured).SerializeToString()
        session = _session(model)
        (input_name,) = [value.name for value in session.get_inputs()]

        def run(x: Tensor) -> list[Tensor]:
            return [torch.from_numpy(array) for array in session.run(None, {input_name: x.contiguous().numpy()})]

        # Its kernels keep NaN, but where a LayerNorm overflows is not where PyTorch's does.
        return Lowered(run, lambda: _rows(captured, model), artifact=model)


def _session(model: bytes, optimized_model: Path | None = None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    if optimized_model is not None:
        options.optimized_model_filepath = str(optimized_model)
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions have no common base
        raise BackendError(f"onnxruntime cannot run the model: {' '.join(str(error).split())}") from error
    if session.get_providers() != ["CPUExecutionProvider"]:
        raise BackendError(f"onnxruntime chose {session.get_providers()} instead of the CPU provider")
    return session


def _rows(captured: CapturedGraph, model: bytes) -> tuple[PlanRow, ...]:
    """What the runtime made of the model: it writes its optimized graph, fused nodes and all, to a file."""
    import onnx

    with tempfile.TemporaryDirectory(prefix="fastcnn-") as folder:
        path = Path(folder) / "optimized.onnx"
        _session(model, path)
        return rows_of_onnx(captured, onnx.load(path), onnx.load_from_string(model))
