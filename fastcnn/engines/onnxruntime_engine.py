"""The graph as an ONNX model in an ONNX Runtime session on the CPU."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastcnn.engines.base import Lowered, on_tensors
from fastcnn.engines.runtime_rows import rows_of_onnx
from fastcnn.errors import BackendError
from fastcnn.graph.ir import CapturedGraph
from fastcnn.graph.passes import STANDARD_PASSES
from fastcnn.graph.plan import PlanRow
from fastcnn.runtimes.onnxruntime import open_session, reason
from fastcnn.target import Target


class OnnxRuntimeEngine:
    """Runs on the CPU; float32, int8, and float16 with the runtime's own casts around what it has no float16 kernel for.

    Args:
        passes: names of the passes that run over a graph before it is lowered.
    """

    name = "onnxruntime"

    def __init__(self, passes: Sequence[str] = STANDARD_PASSES) -> None:
        self.passes = tuple(passes)

    def unavailable(self) -> str | None:
        """Why it cannot run on this machine, or None where it can."""
        return None if importlib.util.find_spec("onnxruntime") else "onnxruntime is not installed"

    def unsupported(self, target: Target) -> str | None:
        """Why it cannot run on the target's device or in its dtype, or None where it can."""
        if target.device.type != "cpu":
            return f"runs on the CPU only, the input is on {target.device}"
        return None if target.dtype in (torch.float32, torch.float16, torch.int8) else f"has no kernels for {target.dtype} on a CPU"

    def unfit_for_auto(self) -> str | None:
        """None: `auto` always tries it."""
        return None

    def lower(self, captured: CapturedGraph, target: Target, artifact: bytes | None = None) -> Lowered:
        """A session over the graph's ONNX model, or over `artifact`, the model that an earlier lowering left.

        Raises:
            BackendError: ONNX Runtime refuses the model.
            RequestError: an operation has no ONNX form.
        """
        from fastcnn.export.onnx_lowering import lower_to_onnx

        model = artifact or lower_to_onnx(captured).SerializeToString()
        session = open_session(model, threads=torch.get_num_threads())
        input_names = [value.name for value in session.get_inputs()]
        output_names = [value.name for value in session.get_outputs()]

        def run(*inputs: NDArray[Any]) -> list[NDArray[Any]]:
            try:
                return list(session.run(output_names, dict(zip(input_names, map(np.ascontiguousarray, inputs), strict=True))))
            except Exception as error:  # the runtime's exceptions have no common base
                raise BackendError(f"onnxruntime cannot run the model: {reason(error)}") from error

        # Its kernels keep NaN, but where a LayerNorm overflows is not where PyTorch's does.
        input_dtype = torch.float32 if target.dtype == torch.int8 else None
        return Lowered(on_tensors(run), lambda: _rows(captured, model), input_dtype=input_dtype, artifact=model, run_array=run)


def _rows(captured: CapturedGraph, model: bytes) -> tuple[PlanRow, ...]:
    """What the runtime made of the model: it writes its optimized graph, fused nodes and all, to a file."""
    import onnx

    with tempfile.TemporaryDirectory(prefix="fastcnn-") as folder:
        path = Path(folder) / "optimized.onnx"
        open_session(model, threads=torch.get_num_threads(), optimized_model=path)
        return rows_of_onnx(captured, onnx.load(path), onnx.load_from_string(model))
