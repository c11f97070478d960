"""The rows that are other runtimes, each on two ONNX files: a plain `torch.onnx.export`, and ours (`fastcnn.export.export_onnx`).

On a CPU the files take any batch. On CUDA they have the batch of the run: a dynamic one costs shape arithmetic, which onnxruntime puts on
the CPU, and TensorRT a profile for each range of sizes.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastcnn.bench.peers.base import Peer, Prepared, Runner, not_importable
from fastcnn.bench.peers.subject import Accuracy, Subject
from fastcnn.errors import BackendError
from fastcnn.export import read_metadata
from fastcnn.precision import Precision
from fastcnn.runtimes.onnxruntime import import_onnxruntime
from fastcnn.runtimes.openvino import import_openvino

# ONNX name → (dtype, number in onnx.TensorProto)
_TYPES = {"tensor(float)": (torch.float32, 1), "tensor(float16)": (torch.float16, 10), "tensor(bfloat16)": (torch.bfloat16, 16)}

Providers = Sequence[tuple[str, Mapping[str, str]]]


class FromFile(Peer):
    """A row that runs an ONNX file: the plain export, or ours where `ours` is set."""

    def file(self, subject: Subject, example: Tensor) -> tuple[Path, float]:
        """The file, and the seconds that an earlier row spent on it."""
        make = subject.fastcnn_onnx if self.ours else subject.plain_onnx
        return make(example, example.shape[0] if example.is_cuda else "dynamic")

    def accuracy(self, path: Path) -> Accuracy | None:
        """What the file says of how far it is off in this row's runtime; None for one that has to be exact."""
        return None


class OnnxRuntime(FromFile):
    """onnxruntime's CPU provider; its threads spin between runs, as they do by default."""

    name = "onnxruntime"
    precisions: ClassVar[tuple[Precision, ...]] = (Precision.fp32, Precision.fp16)  # NumPy, through which its input goes, has no bfloat16

    def missing(self) -> str | None:
        """Whether the package is there."""
        return not_importable("onnxruntime")

    def prepare(self, subject: Subject, example: Tensor, threads: int) -> Prepared:
        """A session on the row's file."""
        path, reused = self.file(subject, example)
        run, proof = onnxruntime_runner(path, threads)
        return Prepared(run, proof, reused, self.accuracy(path), path.stat().st_size)


class FileInOnnxRuntime(OnnxRuntime):
    """As `onnxruntime`, on the file that fastcnn exports."""

    name = "fastcnn_file_onnxruntime"
    ours = True


class OnnxRuntimeCuda(FromFile):
    """onnxruntime's CUDA provider in NHWC with the bias inside the convolution, input and output bound on the device."""

    name = "onnxruntime_cuda"
    devices = ("cuda",)
    provider: ClassVar[str] = "CUDAExecutionProvider"

    def missing(self) -> str | None:
        """The package, or the provider in its build."""
        reason = not_importable("onnxruntime")
        if reason:
            return reason
        onnxruntime = import_onnxruntime()
        return None if self.provider in onnxruntime.get_available_providers() else f"this build of onnxruntime has no {self.provider}"

    def prepare(self, subject: Subject, example: Tensor, threads: int) -> Prepared:
        """A session on the row's file, bound to PyTorch's memory."""
        path, reused = self.file(subject, example)
        run, proof = bound_runner(path, self.providers(subject, example), example)
        return Prepared(run, {**proof, **self.more_proof(subject)}, reused, size_bytes=path.stat().st_size)

    def providers(self, subject: Subject, example: Tensor) -> Providers:
        """What the session is asked for, in order of preference."""
        return [(self.provider, _on_device(example) | _cuda_options(subject))]

    def more_proof(self, subject: Subject) -> dict[str, str]:
        """What a subclass can read back from its runtime besides."""
        return {}


class FileInOnnxRuntimeCuda(OnnxRuntimeCuda):
    """As `onnxruntime_cuda`, on the file that fastcnn exports."""

    name = "fastcnn_file_onnxruntime_cuda"
    ours = True
    precisions = (Precision.fp32, Precision.tf32, Precision.fp16)


class OnnxRuntimeTensorRt(OnnxRuntimeCuda):
    """onnxruntime's TensorRT provider; what TensorRT does not take runs in the CUDA provider. Its float32 is TF32."""

    name = "onnxruntime_tensorrt"
    precisions: ClassVar[tuple[Precision, ...]] = (Precision.tf32, Precision.fp16, Precision.bf16)
    provider = "TensorrtExecutionProvider"

    def missing(self) -> str | None:
        """Besides what the CUDA provider needs: TensorRT's own libraries."""
        reason = super().missing()
        if reason is None and not importlib.util.find_spec("tensorrt") and not ctypes.util.find_library("nvinfer"):
            return "TensorRT is not installed"
        return reason

    def prepare(self, subject: Subject, example: Tensor, threads: int) -> Prepared:
        """As the CUDA row, with a folder that shows the engines which TensorRT builds."""
        if importlib.util.find_spec("tensorrt"):
            importlib.import_module("tensorrt")  # loads the libraries that its wheel holds, where onnxruntime would not look
        self._cache = subject.folder("tensorrt")
        return super().prepare(subject, example, threads)

    def providers(self, subject: Subject, example: Tensor) -> Providers:
        """TensorRT, then CUDA for what it does not take."""
        options = {
            "trt_fp16_enable": str(int(subject.precision is Precision.fp16)),
            "trt_bf16_enable": str(int(subject.precision is Precision.bf16)),
            "trt_engine_cache_enable": "1",  # so that the engine can be seen
            "trt_engine_cache_path": str(self._cache),
        }
        device = _on_device(example)
        return [(self.provider, device | options), ("CUDAExecutionProvider", device | _cuda_options(subject))]

    def more_proof(self, subject: Subject) -> dict[str, str]:
        """How many engines TensorRT built. Raises BackendError for none."""
        engines = len(list(self._cache.glob("*.engine")))
        if not engines:
            raise BackendError("TensorRT built no engine: the whole model would run in the CUDA provider")
        return {"engines": str(engines)}


class FileInTensorRt(OnnxRuntimeTensorRt):
    """As `onnxruntime_tensorrt`, on the file that fastcnn exports."""

    name = "fastcnn_file_tensorrt"
    ours = True
    precisions = (Precision.tf32, Precision.fp16)


class OpenVino(FromFile):
    """OpenVINO's CPU device, in float32: its own choice on some CPUs is bfloat16, another function."""

    name = "openvino"
    precisions: ClassVar[tuple[Precision, ...]] = (Precision.fp32,)

    def missing(self) -> str | None:
        """Whether the package is there."""
        return not_importable("openvino")

    def prepare(self, subject: Subject, example: Tensor, threads: int) -> Prepared:
        """The row's file, compiled. Raises BackendError where OpenVINO takes another device or precision."""
        openvino = import_openvino()
        path, reused = self.file(subject, example)
        options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        compiled = openvino.Core().compile_model(str(path), "CPU", options)
        devices = list(compiled.get_property("EXECUTION_DEVICES"))
        if devices != ["CPU"]:
            raise BackendError(f"OpenVINO runs on {', '.join(devices)} where the CPU was asked for")
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if precision != "f32":
            raise BackendError(f"OpenVINO computes in {precision} where f32 was asked for")
        request = compiled.create_infer_request()

        def run(x: Tensor) -> Tensor:
            # The output array is a view of memory that the next run overwrites: the caller gets a copy, as from every other row.
            return torch.from_numpy(request.infer({0: x.numpy()}, share_inputs=True)[0])

        granted = compiled.get_property("INFERENCE_NUM_THREADS")
        proof = {"device": "CPU", "precision": precision, "threads": str(granted)}
        return Prepared(run, proof, reused, self.accuracy(path), path.stat().st_size)


class FileInOpenVino(OpenVino):
    """As `openvino`, on the file that fastcnn exports."""

    name = "fastcnn_file_openvino"
    ours = True


class _Int8File(FromFile):
    """A row that runs fastcnn's file in 8 bits, which was judged in each runtime when it was written."""

    ours = True
    precisions: ClassVar[tuple[Precision, ...]] = (Precision.int8,)
    runtime: ClassVar[str]

    def computes_in(self, precision: Precision) -> Precision:
        """int8."""
        return Precision.int8

    def file(self, subject: Subject, example: Tensor) -> tuple[Path, float]:
        """One file for every runtime."""
        return subject.fastcnn_int8_onnx(example)

    def accuracy(self, path: Path) -> Accuracy:
        """The figures of the row's runtime."""
        about = read_metadata(path)["quantization"]
        figures = about["gate"][self.runtime]
        return Accuracy(figures["relative_error"], figures["top1_agreement"], about["limits"]["max_error"])


class Int8InOnnxRuntime(_Int8File, OnnxRuntime):
    """As `onnxruntime`, on the file in 8 bits."""

    name = "fastcnn_int8_onnxruntime"
    runtime = "onnxruntime"


class Int8InOpenVino(_Int8File, OpenVino):
    """As `openvino`, on the file in 8 bits; what is not rounded is computed in float32."""

    name = "fastcnn_int8_openvino"
    runtime = "openvino"


def onnxruntime_runner(path: Path, threads: int) -> tuple[Runner, dict[str, str]]:
    """A session of onnxruntime's CPU provider on a file with one input, and the proof of where it runs.

    Raises BackendError where the session has another provider than the one asked for.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    _check_providers(session, ["CPUExecutionProvider"])
    (value,) = session.get_inputs()
    dtype, _ = _TYPES[value.type]

    def run(x: Tensor) -> Tensor:
        outputs: list[Any] = session.run(None, {value.name: x.to(dtype).numpy()})
        return torch.from_numpy(outputs[0])

    return run, {"provider": "CPUExecutionProvider", "threads": str(session.get_session_options().intra_op_num_threads)}


def bound_runner(path: Path, providers: Providers, example: Tensor) -> tuple[Runner, dict[str, str]]:
    """A session on a file of one input and a fixed batch that reads and writes PyTorch's own memory, and the proof of where it runs.

    Args:
        providers: (name, options) in order of preference; the session must have the first, and must leave no node to the CPU
            unless that is the one.
        example: tells the device.

    Raises BackendError where the session has other providers or other options than those asked for; onnxruntime itself raises where a
    node would be left to the CPU.
    """
    onnxruntime = import_onnxruntime()
    names = [name for name, _ in providers]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if "CPUExecutionProvider" not in names:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    # enable_fallback=0: it would otherwise build the session again without the provider that failed, and say so on stdout only.
    session = onnxruntime.InferenceSession(str(path), options, providers=list(providers), enable_fallback=0)
    _check_providers(session, names)
    granted = session.get_provider_options()[names[0]]
    switches = {key: (value, granted[key]) for key, value in providers[0][1].items() if key in _SWITCHES and key in granted}
    refused = [f"{key}={found}" for key, (value, found) in switches.items() if _is_on(value) is not _is_on(found)]
    if refused:
        raise BackendError(f"onnxruntime did not do as asked: it runs with {', '.join(refused)}")
    (source,), target = session.get_inputs(), session.get_outputs()[0]
    (input_dtype, input_type), (output_dtype, output_type) = _TYPES[source.type], _TYPES[target.type]
    shape, device = list(target.shape), example.device
    binding = session.io_binding()

    def run(x: Tensor) -> Tensor:
        value = x.to(input_dtype).contiguous()
        output = torch.empty(shape, dtype=output_dtype, device=device)
        binding.bind_input(source.name, device.type, device.index or 0, input_type, list(value.shape), value.data_ptr())
        binding.bind_output(target.name, device.type, device.index or 0, output_type, shape, output.data_ptr())
        session.run_with_iobinding(binding)
        return output

    shown = {key: found for key, (_, found) in switches.items()}
    return run, {"provider": names[0], "bound to": device.type, "nodes on the CPU": "none" if example.is_cuda else "all", **shown}


_SWITCHES = ("prefer_nhwc", "fuse_conv_bias", "use_tf32", "trt_fp16_enable", "trt_bf16_enable")


def _is_on(value: str) -> bool:
    return value.lower() in ("1", "true")


def _check_providers(session: Any, asked: Sequence[str]) -> None:
    found = session.get_providers()
    # The CPU provider is always the last one; whether it runs anything is checked apart.
    if found[: len(asked)] != list(asked) or set(found) - {*asked, "CPUExecutionProvider"}:
        raise BackendError(f"onnxruntime runs on {', '.join(found)} where {', '.join(asked)} was asked for")


def _on_device(example: Tensor) -> dict[str, str]:
    """The device, and the stream whose events time the run."""
    return {"device_id": str(example.device.index or 0), "user_compute_stream": str(torch.cuda.current_stream(example.device).cuda_stream)}


def _cuda_options(subject: Subject) -> dict[str, str]:
    return {"prefer_nhwc": "1", "fuse_conv_bias": "1", "use_tf32": str(int(subject.precision is Precision.tf32))}
