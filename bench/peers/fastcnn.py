"""The rows that are ours."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fastcnn.bench.peers.base import Peer, Prepared, inference
from fastcnn.bench.peers.subject import Accuracy, Subject
from fastcnn.errors import BackendError
from fastcnn.optimized_module import OptimizedModule
from fastcnn.parity.rules import CEILING
from fastcnn.precision import Precision
from fastcnn.quantization.scheme import has_bfloat16


class Fastcnn(Peer):
    """`fastcnn.optimize`; a subclass names its backend."""

    name = "fastcnn"
    ours = True
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    backend: ClassVar[str] = "auto"

    def missing(self) -> str | None:
        """What the backend says that it lacks; `auto` always finds one."""
        from fastcnn.engines import available_backends

        return None if self.backend == "auto" else available_backends().get(self.backend, f"fastcnn has no backend {self.backend}")

    def prepare(self, subject: Subject, example: Tensor, threads: int) -> Prepared:
        """`fastcnn.optimize` with the row's backend. Raises BackendError where it gave back another one."""
        import fastcnn

        fast = fastcnn.optimize(subject.model, example, backend=self.backend, allow_tf32=subject.precision is Precision.tf32)
        if self.backend not in ("auto", fast.backend):
            raise BackendError(f"fastcnn.optimize gave back the backend {fast.backend} where {self.backend} was asked for")
        return _prepared(fast, example)


def _prepared(fast: OptimizedModule, example: Tensor, accuracy: Accuracy | None = None) -> Prepared:
    proof = {"backend": fast.backend, "device": str(example.device), "dtype": str(fast.dtype).removeprefix("torch.")}
    weights = sum(tensor.nbytes for tensor in fast.source.graph.constants().values())
    return Prepared(
        inference(fast), proof | ({} if example.is_cuda else {"threads": str(torch.get_num_threads())}), accuracy=accuracy, size_bytes=weights
    )


class _InBfloat16(Fastcnn):
    """A row in bfloat16 beside those in float32 and int8: float32 in and out, no calibration."""

    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    precisions: ClassVar[tuple[Precision, ...]] = (Precision.int8,)

    def computes_in(self, precision: Precision) -> Precision:
        """bfloat16."""
        return Precision.bf16

    def missing(self) -> str | None:
        """Besides what the backend needs: a CPU that multiplies bfloat16. Without, it is emulated, and slower than float32."""
        return super().missing() or (None if has_bfloat16() else "this CPU multiplies no bfloat16")

    def prepare(self, subject: Subject, example: Tensor, threads: int) -> Prepared:
        """`fastcnn.optimize` in bfloat16, judged on the run's pictures."""
        import fastcnn

        fast = fastcnn.optimize(subject.model, example, backend=self.backend, dtype=torch.bfloat16)
        return _prepared(fast, example, subject.accuracy_of(fast, example.shape[1:], CEILING["bfloat16"]))


class Bfloat16OnTorch(_InBfloat16):
    """As `fastcnn_torch`, in bfloat16."""

    name = "fastcnn_bf16_torch"
    backend = "torch"


class Bfloat16OnOpenVino(_InBfloat16):
    """As `fastcnn_openvino`, in bfloat16."""

    name = "fastcnn_bf16_openvino"
    backend = "openvino"


class FastcnnTorch(Fastcnn):
    """PyTorch's own operations on the fused graph."""

    name = "fastcnn_torch"
    backend = "torch"


class FastcnnOnnxRuntime(Fastcnn):
    """onnxruntime on the fused graph, behind the module's interface."""

    name = "fastcnn_onnxruntime"
    devices = ("cpu",)
    precisions = (Precision.fp32, Precision.fp16)
    backend = "onnxruntime"


class FastcnnOpenVino(Fastcnn):
    """OpenVINO on the fused graph, behind the module's interface."""

    name = "fastcnn_openvino"
    devices = ("cpu",)
    precisions = (Precision.fp32, Precision.bf16)
    backend = "openvino"


class FastcnnNcnn(Fastcnn):
    """ncnn on the fused graph, behind the module's interface."""

    name = "fastcnn_ncnn"
    devices = ("cpu",)
    precisions = (Precision.fp32,)
    backend = "ncnn"


class FastcnnTriton(Fastcnn):
    """Our kernels and cuDNN's, whichever was measured to be faster, as one CUDA graph."""

    name = "fastcnn_triton"
    devices = ("cuda",)
    backend = "triton"
