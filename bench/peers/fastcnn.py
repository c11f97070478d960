"""The rows that are ours."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fastcnn.bench.peers.base import Peer, Prepared, inference
from fastcnn.bench.peers.subject import Subject
from fastcnn.errors import BackendError
from fastcnn.precision import Precision


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
        proof = {"backend": fast.backend, "device": str(example.device), "dtype": str(fast.dtype).removeprefix("torch.")}
        return Prepared(inference(fast), proof | ({} if example.is_cuda else {"threads": str(torch.get_num_threads())}))


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
